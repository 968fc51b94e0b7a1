//! What the threads of a pager share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plimsoll_frames::{Discard, Extent, Ledger, Reuse, SpaceId};
use plimsoll_shm::Notifier;
use plimsoll_uffd::UffdError;
use plimsoll_uffd::handover::VmmSocket;

use crate::file::{GuestFile, Pages};
use crate::fill::Filler;
use crate::mapping::Mapping;
use crate::status::{FaultCounters, HintCounters, PagerEvent, SweepReport};
use crate::sweep::SweepDepth;
use crate::waiting::Waiting;
use crate::{AroundDiscard, Scrub};

/// How long nobody tries again after memory could not be had; twice as long after each time.
pub(crate) const FIRST_BACK_OFF: Duration = Duration::from_millis(10);
/// Nobody waits longer: a year.
const LONGEST_PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest of those times.
pub(crate) const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

/// What only one thread at a time touches. The lock is held for calls to the ledger, and to the file where its answer must
/// not be overtaken; never while memory is populated, scanned or discarded.
pub(crate) struct State<W> {
    pub(crate) ledger: Ledger<W>,
    pub(crate) waiting: Waiting,
    /// Pages taken from `waiting` that are being asked for again just now.
    pub(crate) retrying: usize,
    /// Since when somebody has been waiting without a break.
    pub(crate) stalled_since: Option<Instant>,
    /// What the embedding program was told of it.
    pub(crate) told: Told,
    /// When memory may be asked for again, after the kernel had none.
    pub(crate) refused_until: Option<Instant>,
    pub(crate) back_off: Duration,
    /// Threads that wait for anything to change: for pins, for a reboot, for a sweep they asked for.
    pub(crate) watchers: usize,
    /// Those of them that wait for room.
    pub(crate) starving: usize,
    /// When to see again whether who waits can be served.
    pub(crate) serve_at: Option<Instant>,
    pub(crate) reuse: Reuse,
    pub(crate) sweep: Sweeping,
    pub(crate) look: Look,
    pub(crate) faults: FaultCounters,
    pub(crate) hints: HintCounters,
}

/// Events that are told once while somebody waits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) exhausted: bool,
    pub(crate) refused: bool,
}

/// What is to be swept, and what was.
#[derive(Debug, Default)]
pub(crate) struct Sweeping {
    /// Whole sweeps asked for, and how many of them are done.
    pub(crate) asked: u64,
    pub(crate) done: u64,
    /// How closely the next one of them is to look.
    pub(crate) depth: Option<SweepDepth>,
    /// Not before: the last sweep for a waiting guest found too little to be worth its time.
    pub(crate) not_before: Option<Instant>,
    /// Pages populated since the ledger was formatted, when that sweep ended.
    pub(crate) populated: u64,
    /// A batch is open whose protection could not be lifted: when to try again.
    pub(crate) lift_at: Option<Instant>,
    pub(crate) running: bool,
    pub(crate) runs: u64,
    pub(crate) pages: u64,
    pub(crate) last: Option<SweepReport>,
}

/// Where the file is to be asked what it has, and when.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Everywhere, at once.
    pub(crate) everywhere: bool,
    /// At some pages, later.
    pub(crate) later: Vec<Later>,
}

/// Where to look later.
#[derive(Clone, Debug)]
pub(crate) struct Later {
    pub(crate) at: Instant,
    pub(crate) pages: Pages,
    /// How long it was waited this time.
    pub(crate) wait: Duration,
}

impl<W: AsRef<[AtomicU64]>> State<W> {
    pub(crate) fn new(ledger: Ledger<W>, reuse: Reuse) -> Self {
        Self {
            ledger,
            waiting: Waiting::default(),
            retrying: 0,
            stalled_since: None,
            told: Told::default(),
            refused_until: None,
            back_off: FIRST_BACK_OFF,
            watchers: 0,
            starving: 0,
            serve_at: None,
            reuse,
            sweep: Sweeping::default(),
            look: Look::default(),
            faults: FaultCounters::default(),
            hints: HintCounters::default(),
        }
    }

    /// Somebody waits for a page until there is memory.
    pub(crate) fn wait_for(&mut self, page: u64) {
        self.waiting.push(page);
        self.stalled_since.get_or_insert_with(Instant::now);
    }

    /// Whether asking for memory makes sense now.
    pub(crate) fn may_ask(&self) -> bool {
        self.refused_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Whether a page that is waited for could be had.
    fn could_serve(&self) -> bool {
        !self.waiting.is_empty() && self.ledger.residency().room().0 > 0 && self.may_ask()
    }

    /// Takes the page to serve next, if one can be served.
    pub(crate) fn next_to_serve(&mut self) -> Option<u64> {
        if self.could_serve() { self.waiting.pop() } else { None }
    }

    /// Whether somebody needs room.
    pub(crate) fn is_short(&self) -> bool {
        !self.waiting.is_empty() || self.starving > 0
    }

    /// Pages populated since the ledger was formatted.
    pub(crate) fn populated(&self) -> u64 {
        let totals = self.ledger.totals();
        let frames = totals.populated_frames.saturating_mul(plimsoll_units::PAGES_PER_FRAME);
        frames.saturating_add(totals.populated_pages)
    }

    /// Nobody waits any more, after it was told that somebody did: for how long.
    fn relief(&mut self) -> Option<PagerEvent> {
        if !self.waiting.is_empty() || self.retrying > 0 {
            return None;
        }
        let since = self.stalled_since.take()?;
        let told = std::mem::take(&mut self.told);
        (told.exhausted || told.refused).then(|| PagerEvent::Relieved { after: since.elapsed() })
    }
}

/// All that a pager has.
pub(crate) struct Shared<W> {
    pub(crate) file: GuestFile,
    pub(crate) mapping: Mapping,
    pub(crate) space: SpaceId,
    pub(crate) filler: Filler,
    pub(crate) settings: Settings,
    pub(crate) state: Mutex<State<W>>,
    /// Something changed that a thread waits for.
    pub(crate) changed: Condvar,
    /// The sweeper is to look what there is to do.
    pub(crate) work: Condvar,
    /// The fault threads are to serve who waits.
    pub(crate) nudge: Notifier,
    /// All are to end. Poked once, never taken.
    pub(crate) stop: Notifier,
    pub(crate) stopping: AtomicBool,
    /// The VMM has ended.
    pub(crate) gone: AtomicBool,
    /// Where the VMM tells of holes, read by one thread at a time.
    pub(crate) socket: Option<VmmSocket>,
    pub(crate) hearing: Mutex<()>,
    /// There is no more to be heard. (The socket stays open, for others may be polling it.)
    pub(crate) hints_ended: AtomicBool,
    pub(crate) tell: Box<dyn Fn(PagerEvent) + Send + Sync>,
}

/// What stays as it was configured.
pub(crate) struct Settings {
    pub(crate) scrub: Scrub,
    pub(crate) sweep_goal: Option<u64>,
    pub(crate) holes_are: plimsoll_frames::RemovedBy,
    pub(crate) around_discard: Option<AroundDiscard>,
}

impl<W: AsRef<[AtomicU64]>> Shared<W> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<W>> {
        // A thread that panicked here was in the middle of an event, as one that was killed; the next one goes on as after that.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn extent(&self, pages: &Pages) -> Extent {
        let count = pages.end.saturating_sub(pages.start);
        Extent { space: self.space, first: pages.start, count }
    }

    /// Ends whatever changed the ledger: who waits for that is told. Every change goes through here, for this is what
    /// keeps the promise that nobody waits while there is room.
    pub(crate) fn settle(&self, mut state: MutexGuard<'_, State<W>>) {
        let serve = state.could_serve();
        let relief = state.relief();
        let watched = state.watchers > 0;
        drop(state);
        if watched {
            self.changed.notify_all();
        }
        if serve {
            self.nudge.poke();
        }
        if let Some(event) = relief {
            (self.tell)(event);
        }
    }

    /// The VMM has ended: said once.
    pub(crate) fn vmm_gone(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            (self.tell)(PagerEvent::VmmGone);
        }
    }

    /// Lets all go on who wait for pages.
    pub(crate) fn wake(&self, pages: &Pages) {
        // Any other answer means that it is not mapped there any more: nobody waits.
        if let Err(UffdError::Gone) = self.mapping.wake(pages) {
            self.vmm_gone();
        }
    }

    /// Waits until something changed, at most until `deadline`. Returns `false` when that has passed, or the pager ends.
    pub(crate) fn watch<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<W>>,
        deadline: Instant,
    ) -> (MutexGuard<'a, State<W>>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || self.is_stopping() {
            return (state, false);
        }
        state.watchers = state.watchers.saturating_add(1);
        let waited = self.changed.wait_timeout(state, left);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.watchers = state.watchers.saturating_sub(1);
        (state, true)
    }
}

/// The pages of a discard.
pub(crate) fn pages_of(discard: &Discard) -> Pages {
    let first = discard.offset.pages_floor().0;
    first..first.saturating_add(discard.len.pages_floor().0)
}

/// So much later than now. However long somebody is patient, there is such a moment.
pub(crate) fn after(patience: Duration) -> Instant {
    let now = Instant::now();
    let later = |by| now.checked_add(by);
    later(patience).or_else(|| later(LONGEST_PATIENCE)).unwrap_or(now)
}

/// Counts one more.
pub(crate) fn bump(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}
