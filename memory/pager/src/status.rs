//! What a pager tells of itself.

use std::time::Duration;

use plimsoll_frames::{Counts, Residency, Totals};
use plimsoll_units::{PAGES_PER_FRAME, PageCount, Ppm};
use rustix::io::Errno;

/// Something an embedding program wants to know at once. Told from the pager's threads: to be taken note of quickly.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PagerEvent {
    /// The guest waits for memory, and sweeping does not help it: somebody has to decide. Told once until [`PagerEvent::Relieved`].
    Exhausted {
        /// What it has and may have.
        residency: Residency,
        /// Pages that are waited for.
        waiting: usize,
    },
    /// Nobody waits any more, after [`PagerEvent::Exhausted`] or [`PagerEvent::Refused`].
    Relieved {
        /// How long somebody has waited.
        after: Duration,
    },
    /// The guest may have memory, but the kernel has none: the file system or the control group is full. It is tried again, less and
    /// less often. Told once until [`PagerEvent::Relieved`].
    Refused {
        /// The page.
        page: u64,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The VMM tells no more of holes: it closed the connection, or broke the protocol (then with the reason). Holes are still
    /// found when the guest comes to them.
    HintsEnded {
        /// What was wrong.
        reason: Option<String>,
    },
    /// The VMM has unmapped a part of the guest's memory, which it does when it ends.
    Unmapped,
    /// The VMM has ended.
    VmmGone,
    /// Faults can no longer be served by one of the threads, or by none: end this process, the next one takes over.
    Failed {
        /// What happened.
        reason: String,
    },
}

/// Everything about a pager at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagerStatus {
    /// What the guest was promised and what it has, by the ledger.
    pub residency: Residency,
    /// What the kernel counts for the file, in memory or swapped out. `None` if it did not say.
    pub allocated: Option<PageCount>,
    /// Pages by state.
    pub counts: Counts,
    /// What was done since the ledger was formatted, over the lives of all pagers.
    pub totals: Totals,
    /// That somebody waits for memory.
    pub stalled: Option<Stalled>,
    /// Sweeps of this process.
    pub sweeps: SweepStatus,
    /// Faults answered by this process.
    pub faults: FaultCounters,
    /// What the VMM told this process.
    pub hints: HintCounters,
}

impl PagerStatus {
    /// The part of the memory populated so far that came in whole frames of 2 MiB; `None` before there was any.
    #[must_use]
    pub fn whole_frame_share(&self) -> Option<Ppm> {
        let whole = self.totals.populated_frames.saturating_mul(PAGES_PER_FRAME);
        let all = whole.saturating_add(self.totals.populated_pages);
        (all > 0).then(|| Ppm::ratio(whole, all))
    }
}

/// That a guest waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// For how long somebody has been waiting without a break, in milliseconds.
    pub since_ms: u64,
    /// The page that has been waited for the longest; `None` in the moment it is tried again.
    pub page: Option<u64>,
    /// Pages that are waited for.
    pub waiting: usize,
}

/// Sweeps of one pager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepStatus {
    /// How many there were.
    pub runs: u64,
    /// Pages taken.
    pub pages: u64,
    /// One is under way.
    pub running: bool,
    /// The last one.
    pub last: Option<SweepReport>,
}

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Pages looked at, if only to see that their frame is in use.
    pub looked: u64,
    /// Pages taken.
    pub pages: u64,
    /// Frames among them that were taken whole.
    pub frames: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether it came to the end. If not, it had found enough, or had looked at everything twice because the guest populated all the
    /// time.
    pub whole: bool,
}

/// Faults by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Faults on missing pages.
    pub missing: u64,
    /// Writes to pages that were protected for a sweep.
    pub protected: u64,
    /// Missing ones that had memory already when they were looked at.
    pub present: u64,
    /// Missing ones that the ledger thought had memory: somebody made a hole without a word.
    pub repaired: u64,
    /// Missing ones for which there was no room.
    pub exhausted: u64,
    /// Times that the kernel had no memory.
    pub refused: u64,
    /// Faults at addresses that are not the guest's memory, and events that are none of ours.
    pub odd: u64,
}

/// What a VMM told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintCounters {
    /// Hints.
    pub heard: u64,
    /// Hints that it could not send.
    pub lost: u64,
    /// Pages found gone because of them.
    pub gone: u64,
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_share_of_whole_frames_is_of_pages() {
        let mut status = PagerStatus {
            residency: Residency::default(),
            allocated: None,
            counts: Counts::default(),
            totals: Totals::default(),
            stalled: None,
            sweeps: SweepStatus::default(),
            faults: FaultCounters::default(),
            hints: HintCounters::default(),
        };
        assert_eq!(status.whole_frame_share(), None);
        status.totals = Totals { populated_frames: 3, populated_pages: 512, ..Totals::default() };
        assert_eq!(status.whole_frame_share(), Some(Ppm::percent(75)));
    }
}
