//! The pager as its embedding program sees it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use plimsoll_frames::{AuditError, Discard, Granule, Ledger, Residency, Reuse, SpaceId};
use plimsoll_shm::Notifier;
use plimsoll_uffd::handover::{Extent, VmmSocket};
use plimsoll_uffd::{HostRange, Uffd};
use plimsoll_units::{MemTarget, PageCount};

use crate::file::GuestFile;
use crate::fill::Filler;
use crate::mapping::Mapping;
use crate::pins::{Pinned, pin};
use crate::shared::{Settings, Shared, State, after};
use crate::status::{PagerEvent, PagerStatus, Stalled, SweepReport, SweepStatus};
use crate::sweep::SweepDepth;
use crate::{Config, PinError, ResetError, StartError};

/// What a pager works with. All of it outlives the pager: the keeper has copies.
pub struct Parts<W> {
    /// The guest's memory: a memfd, or a file on tmpfs.
    pub memory: OwnedFd,
    /// Where its faults are told of.
    pub uffd: Uffd,
    /// Where the VMM maps it, from its beginning to its end.
    pub range: HostRange,
    /// The ledger: new, or taken over by [`Ledger::attach`]. The file's space is added if it is not there. A new ledger has a
    /// target of nothing: set it here, or with [`Pager::set_target`].
    pub ledger: Ledger<W>,
    /// Where the VMM tells of the holes it makes, if it does.
    pub hints: Option<VmmSocket>,
}

/// Serves the faults of one guest's memory. See the crate's documentation.
///
/// Dropped, it stops its threads; whoever waits for memory goes on waiting, as after a crash, for the next pager. (A VMM that makes
/// the userfaultfd block can keep a thread in read(2), and whoever drops the pager with it: a process that has to end does not
/// drop it, it ends.)
pub struct Pager<W: AsRef<[AtomicU64]> + Send + 'static> {
    shared: Arc<Shared<W>>,
    threads: Vec<JoinHandle<()>>,
}

impl<W: AsRef<[AtomicU64]> + Send + 'static> Pager<W> {
    /// Takes over what a pager before this one left, if there was one, and serves from then on. `tell` is called from the pager's threads;
    /// it must return quickly.
    ///
    /// # Errors
    /// [`StartError`]; nobody is served then.
    pub fn start(
        parts: Parts<W>,
        config: &Config,
        tell: impl Fn(PagerEvent) + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        config.check()?;
        let shared = Arc::new(shared(parts, config, Box::new(tell))?);
        shared.recover()?;
        let mut pager = Self { shared, threads: Vec::new() };
        for number in 0..config.fault_threads {
            pager.spawn(&format!("pod-fault-{number}"), Shared::fault_thread)?;
        }
        pager.spawn("pod-sweep", Shared::sweeper_thread)?;
        Ok(pager)
    }

    fn spawn(&mut self, name: &str, run: impl Fn(&Shared<W>) + Send + 'static) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let thread = Builder::new().name(name.to_owned()).spawn(move || run(&shared));
        self.threads.push(thread.map_err(StartError::Thread)?);
        Ok(())
    }

    /// The space that the guest's memory is in the ledger.
    #[must_use]
    pub fn space(&self) -> SpaceId {
        self.shared.space
    }

    /// What the guest may have from now on. More is there for who waits within a fault's time; less takes nothing away,
    /// but nothing is populated until enough has come back ([`Residency::limit`]).
    pub fn set_target(&self, target: MemTarget) -> Residency {
        let mut state = self.shared.lock();
        state.ledger.set_target(target);
        let residency = state.ledger.residency();
        self.shared.settle(state);
        residency
    }

    /// What the guest has promised about pages in the balloon, now that it has agreed on it with its device.
    pub fn set_reuse(&self, reuse: Reuse) {
        self.shared.lock().reuse = reuse;
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> PagerStatus {
        let state = self.shared.lock();
        let stalled = state.stalled_since.map(|since| Stalled {
            since_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            page: state.waiting.first(),
            waiting: state.waiting.len().saturating_add(state.retrying),
        });
        let sweeps = SweepStatus {
            runs: state.sweep.runs,
            pages: state.sweep.pages,
            running: state.sweep.running,
            last: state.sweep.last,
        };
        PagerStatus {
            residency: state.ledger.residency(),
            allocated: self.shared.file.allocated().ok(),
            counts: state.ledger.counts(),
            totals: state.ledger.totals(),
            stalled,
            sweeps,
            faults: state.faults,
            hints: state.hints,
        }
    }

    /// Looks at every page of the guest once, takes those that are empty, and waits for the end of it; `None` if it does not end in
    /// time. Without patience it only asks for it. Others who ask at the same time get the same sweep.
    pub fn sweep(&self, patience: Duration) -> Option<SweepReport> {
        self.sweep_as(SweepDepth::Pages, patience)
    }

    /// The same for frames of 2 MiB that are empty as a whole: quick, and what is in use stays in one piece.
    pub fn sweep_frames(&self, patience: Duration) -> Option<SweepReport> {
        self.sweep_as(SweepDepth::WholeFrames, patience)
    }

    fn sweep_as(&self, depth: SweepDepth, patience: Duration) -> Option<SweepReport> {
        let mut state = self.shared.lock();
        // The closest look that any of those wants who ask at the same time.
        state.sweep.depth = state.sweep.depth.max(Some(depth));
        state.sweep.asked = state.sweep.asked.saturating_add(1);
        let ticket = state.sweep.asked;
        self.shared.work.notify_one();
        let deadline = after(patience);
        let mut go_on = true;
        while state.sweep.done < ticket && go_on && !self.shared.gone.load(Ordering::Acquire) {
            (state, go_on) = self.shared.watch(state, deadline);
        }
        if state.sweep.done >= ticket { state.sweep.last } else { None }
    }

    /// The VMM made a hole, or says so, and that `lost` such messages were lost: the file is asked.
    pub fn hint(&self, extent: Extent, lost: u64) {
        self.shared.hint(extent.offset, extent.length, lost);
    }

    /// Asks the file about all the guest's memory, and takes over what it says.
    pub fn correct(&self) {
        self.shared.correct_everywhere();
    }

    /// Compares the ledger with itself and with the kernel, and returns how many pages the kernel counts less than the ledger: holes
    /// that nobody has told of yet.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn audit(&self) -> Result<PageCount, AuditError> {
        let state = self.shared.lock();
        // Without an answer of the kernel there is nothing to compare with.
        let allocated = self.shared.file.allocated().unwrap_or(state.ledger.residency().resident);
        state.ledger.audit()?;
        state.ledger.audit_resident(allocated)
    }

    /// Keeps pages (the first, and the one after the last) for I/O. Those without memory get some; if there is no room it is waited
    /// for.
    ///
    /// # Errors
    /// [`PinError`]; nothing is pinned then.
    pub fn pin(&self, first: u64, end: u64, patience: Duration) -> Result<Pinned<W>, PinError> {
        pin(&self.shared, first..end, patience)
    }

    /// The ledger, for a device of the same guest in the same process: its balloon, for instance. Discards that come of it are to
    /// be given to [`Pager::carry_out`] before the guest is answered. No faults are answered meanwhile.
    pub fn with_ledger<T>(&self, act: impl FnOnce(&mut Ledger<W>, SpaceId) -> T) -> T {
        let mut state = self.shared.lock();
        let done = act(&mut state.ledger, self.shared.space);
        self.shared.settle(state);
        done
    }

    /// Gives memory back as the ledger says, and tells it so. Only discards of this pager's space.
    pub fn carry_out(&self, discards: &[Discard]) {
        self.shared.carry_out(discards);
    }

    /// The guest begins anew: everything is outstanding again, and the host has its memory. The guest must not run meanwhile. A crash
    /// on the way is made good by the next pager.
    ///
    /// # Errors
    /// [`ResetError`] if I/O on some pages does not end. Call again, then.
    pub fn reset(&self, patience: Duration) -> Result<(), ResetError> {
        self.shared.reset(patience)
    }

    /// Ends all threads. Whoever waits for memory goes on waiting, for the next pager.
    pub fn stop(self) {}
}

impl<W: AsRef<[AtomicU64]> + Send + 'static> Drop for Pager<W> {
    fn drop(&mut self) {
        {
            // With the lock held, so that nobody is just about to wait without having seen it.
            let _state = self.shared.lock();
            self.shared.stopping.store(true, Ordering::Release);
        }
        self.shared.stop.poke();
        self.shared.work.notify_all();
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

fn shared<W: AsRef<[AtomicU64]>>(
    parts: Parts<W>,
    config: &Config,
    tell: Box<dyn Fn(PagerEvent) + Send + Sync>,
) -> Result<Shared<W>, StartError> {
    let Parts { memory, uffd, range, mut ledger, hints } = parts;
    let file = GuestFile::new(memory)?;
    let failed = |what| move |errno| StartError::File { what, errno };
    let size = file.size().map_err(failed("size"))?;
    if range.len() != size {
        return Err(StartError::NotWhole { range, size });
    }
    let key = file.key().map_err(failed("device and inode"))?;
    ledger.keep_at_reboot(config.kept_frames);
    let space = ledger.add_space_on_demand(key, PageCount(file.pages()), Granule::Page)?;
    Ok(Shared {
        filler: Filler::new(config.huge_pages, config.scrub),
        mapping: Mapping::new(uffd, range),
        file,
        space,
        settings: Settings {
            scrub: config.scrub,
            sweep_goal: config.sweep_goal.map(|goal| goal.0),
            holes_are: config.holes_are,
            around_discard: config.around_discard.clone(),
        },
        state: Mutex::new(State::new(ledger, config.reuse)),
        changed: Condvar::new(),
        work: Condvar::new(),
        nudge: Notifier::new()?,
        stop: Notifier::new()?,
        stopping: AtomicBool::new(false),
        gone: AtomicBool::new(false),
        socket: hints,
        hearing: Mutex::new(()),
        hints_ended: AtomicBool::new(false),
        tell,
    })
}
