//! How much memory the guest has and may have: target, limit, and what has been done so far.

use core::sync::atomic::AtomicU64;

use plimsoll_units::{MemTarget, PAGES_PER_FRAME, PageCount};

use crate::layout;
use crate::ledger::Ledger;

/// What the guest has and may have of the spaces that are populated on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// What it was promised, and is to come down to.
    pub target: MemTarget,
    /// Pages with memory behind them, as the ledger knows it: those `Present`, and those given up whose memory is still there
    /// (under I/O, or the discard has not been answered).
    pub resident: PageCount,
}

impl Residency {
    pub(crate) const fn new(target_pages: u64, resident: u64) -> Self {
        Self { target: MemTarget(PageCount(target_pages).bytes()), resident: PageCount(resident) }
    }

    /// What it may have at this moment: the target, or what it has if that is still more after the target was lowered.
    ///
    /// Nothing is populated while the guest has its target or more, so that what it has then only falls, and the limit with it.
    /// This is why a lowered target needs no other record than itself, and goes on after a crash.
    #[must_use]
    pub fn limit(self) -> PageCount {
        self.target_pages().max(self.resident)
    }

    /// What may be populated.
    #[must_use]
    pub fn room(self) -> PageCount {
        PageCount(self.target_pages().0.saturating_sub(self.resident.0))
    }

    const fn target_pages(self) -> PageCount {
        self.target.0.pages_floor()
    }
}

/// What was done since the ledger was formatted. None ever falls. The last event before a kill may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames populated whole, 2 MiB at once.
    pub populated_frames: u64,
    /// Pages populated in smaller pieces.
    pub populated_pages: u64,
    /// Frames that had memory behind all their pages and gave back a part of it.
    pub split_frames: u64,
    /// Frames that had memory behind all their pages and gave it back in one piece.
    pub returned_frames: u64,
    /// Pages that gave back their memory, those of whole frames included.
    pub returned_pages: u64,
    /// Frames that had memory behind all their pages and were swept whole.
    pub swept_frames: u64,
    /// Pages swept, those of whole frames included.
    pub swept_pages: u64,
    /// Faults for which there was no memory.
    pub exhausted: u64,
}

impl Totals {
    pub(crate) const fn from_words(words: [u64; 8]) -> Self {
        let [populated_frames, populated_pages, split_frames, returned_frames, rest @ ..] = words;
        let [returned_pages, swept_frames, swept_pages, exhausted] = rest;
        Self {
            populated_frames,
            populated_pages,
            split_frames,
            returned_frames,
            returned_pages,
            swept_frames,
            swept_pages,
            exhausted,
        }
    }

    const fn words(self) -> [u64; 8] {
        [
            self.populated_frames,
            self.populated_pages,
            self.split_frames,
            self.returned_frames,
            self.returned_pages,
            self.swept_frames,
            self.swept_pages,
            self.exhausted,
        ]
    }

    /// Memory of a frame is gone: of `before` pages that had some, `gone` have none now.
    pub(crate) fn returned(&mut self, before: u64, gone: u64) {
        add(&mut self.returned_pages, gone);
        if before == PAGES_PER_FRAME && gone == PAGES_PER_FRAME {
            add(&mut self.returned_frames, 1);
        } else if before == PAGES_PER_FRAME && gone > 0 {
            add(&mut self.split_frames, 1);
        }
    }
}

pub(crate) fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// What the spaces on demand may hold in memory together, rounded down to whole pages. Takes effect with one store, and
    /// survives this process. Raising makes room at once; lowering takes nothing away: it lets nothing more be populated until
    /// pages have come back ([`Residency::limit`]). A ledger begins with a target of nothing.
    pub fn set_target(&mut self, target: MemTarget) {
        self.words.store_changed(layout::AT_TARGET, target.0.pages_floor().0);
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> MemTarget {
        self.residency().target
    }

    /// What the guest has and may have.
    #[must_use]
    pub fn residency(&self) -> Residency {
        Residency::new(self.words.load(layout::AT_TARGET), self.resident_pages())
    }

    /// What was done so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn resident_pages(&self) -> u64 {
        self.present_on_demand.saturating_add(self.transit.held())
    }

    /// Puts the counters into the words, at the end of an event.
    pub(crate) fn store_counters(&self) {
        self.words.store_counts(self.counts);
        self.words.store_changed(layout::AT_RESIDENT, self.resident_pages());
        self.words.store_array(layout::AT_TOTALS, &self.totals.words());
    }
}
