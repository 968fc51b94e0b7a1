//! The guest's memory: served, or not handed over yet.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Context;
use plimsoll_frames::Ledger;
use plimsoll_pager::{Config, Pager, PagerStatus, Parts};
use plimsoll_shm::SharedWords;
use plimsoll_uffd::handover::VmmSocket;
use plimsoll_uffd::{HostRange, Uffd};
use plimsoll_units::MemTarget;
use plimsoll_vhost_user::handover::Mapping;
use plimsoll_vhost_user::layout::Layout;
use rustix::fs::OFlags;

use super::ledger;
use super::news::News;
use crate::args::Args;

/// How long a reset waits at a time for I/O on the guest's memory to end, before it says that it does not.
const RESET_PATIENCE: Duration = Duration::from_secs(10);

/// A guest's memory.
pub(super) enum Memory {
    /// No VMM has it mapped, so that nobody can touch it.
    Unmapped(Box<Ledger<SharedWords>>),
    /// Its faults are answered.
    Served(Served),
}

/// Memory whose faults are answered.
pub(super) struct Served {
    /// Never dropped: that would wait for its threads, and a VMM can hold them up (see [`Pager`]). It ends with the process.
    pager: &'static Pager<SharedWords>,
    /// A thread takes everything back for the guest's new start.
    resetting: Arc<AtomicBool>,
}

impl Memory {
    /// Takes over what the process before left. Faults are answered from then on.
    pub(super) fn new(
        args: &Args,
        layout: &Layout,
        guest: OwnedFd,
        vmm: Option<Mapping>,
        news: &Arc<News>,
    ) -> anyhow::Result<Self> {
        let words = layout.ledger().context("shared memory has no ledger")?;
        let stat = rustix::fs::fstat(&guest).context("cannot ask the guest's memory for its size")?;
        let ledger = ledger::find(words, args, &stat)?;
        let Some(vmm) = vmm else { return Ok(Self::Unmapped(Box::new(ledger))) };
        let range = HostRange::new(vmm.address, u64::try_from(stat.st_size).unwrap_or(0))?;
        // The VMM has it too, and may have made it block.
        let flags = rustix::fs::fcntl_getfl(&vmm.uffd).context("cannot read a userfaultfd's flags")?;
        rustix::fs::fcntl_setfl(&vmm.uffd, flags | OFlags::NONBLOCK)
            .context("cannot make a userfaultfd not block")?;
        let hints = Some(VmmSocket::from(vmm.connection));
        let parts = Parts { memory: guest, uffd: Uffd::from(vmm.uffd), range, ledger, hints };
        let news = Arc::clone(news);
        // What QEMU's firmware begins in after a reset lies below 1 MiB.
        let config = Config { kept_frames: 1, ..Config::for_memfd()? };
        let pager = Pager::start(parts, &config, move |event| news.tell(event))
            .context("cannot serve the guest's memory")?;
        Ok(Self::Served(Served { pager: Box::leak(Box::new(pager)), resetting: Arc::default() }))
    }

    pub(super) fn set_target(&mut self, target: MemTarget) {
        match self {
            Self::Unmapped(ledger) => ledger.set_target(target),
            Self::Served(served) => {
                served.pager.set_target(target);
            }
        }
    }

    /// Begins a sweep, or lets one that waits to begin be for this too.
    pub(super) fn sweep(&self) {
        if let Self::Served(served) = self {
            // Without patience it only asks.
            let _ = served.pager.sweep(Duration::ZERO);
        }
    }

    /// Begins to take everything back, unless that is under way. `news` tells of its end.
    pub(super) fn reset(&self, news: &Arc<News>) -> std::io::Result<()> {
        match self {
            Self::Unmapped(_) => Ok(()),
            Self::Served(served) => served.reset(Arc::clone(news)),
        }
    }

    pub(super) fn is_mapped(&self) -> bool {
        matches!(self, Self::Served(_))
    }

    pub(super) fn is_resetting(&self) -> bool {
        matches!(self, Self::Served(served) if served.resetting.load(SeqCst))
    }

    /// Where the ledger can be asked without a pager, and what a pager says.
    pub(super) fn ask(&self) -> Answer<'_> {
        match self {
            Self::Unmapped(ledger) => Answer::Unmapped(ledger),
            Self::Served(served) => Answer::Served(Box::new(served.pager.status())),
        }
    }
}

/// How things are.
pub(super) enum Answer<'a> {
    /// By the ledger; the file is empty.
    Unmapped(&'a Ledger<SharedWords>),
    /// By the pager.
    Served(Box<PagerStatus>),
}

impl Served {
    fn reset(&self, news: Arc<News>) -> std::io::Result<()> {
        if self.resetting.swap(true, SeqCst) {
            return Ok(());
        }
        // Noted before it is answered: should this process die now, the next one carries it out before it serves.
        self.pager.with_ledger(|ledger, _| ledger.begin_reboot());
        let (pager, resetting) = (self.pager, Arc::clone(&self.resetting));
        let run = move || {
            while let Err(error) = pager.reset(RESET_PATIENCE) {
                tracing::warn!(%error, "the guest's memory is not all taken back yet");
            }
            resetting.store(false, SeqCst);
            news.turn();
        };
        let started = std::thread::Builder::new().name("pod-reset".to_owned()).spawn(run);
        started.map(drop).inspect_err(|_| self.resetting.store(false, SeqCst))
    }
}
