//! The guest begins anew: everything on demand is outstanding again.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::bits::PageMask;
use crate::discard::{Discard, Tally};
use crate::layout;
use crate::ledger::{Ledger, Place};
use crate::space::Granule;
use crate::state::PageState;

/// Frames looked at for each one that may be changed.
const LOOK_AHEAD: u64 = 64;

/// How far a reboot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reboot {
    /// There is more to do: carry out the discards and call again.
    More,
    /// All has been looked at, but some memory cannot go yet: under I/O, being populated, or its discard has not been answered. Call
    /// again when that has changed.
    Waiting {
        /// Pages of spaces on demand that are not outstanding yet.
        left: PageCount,
        /// Pages whose discard has not been answered.
        leaving: PageCount,
    },
    /// Every page that is not kept ([`Ledger::keep_at_reboot`]) is outstanding and the host has its memory. Also if no reboot is
    /// under way.
    Done,
}

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// The guest begins anew. What was given up is not any more ([`Ledger::reset`]), and the memory of the spaces on
    /// demand is to be taken back, by [`Ledger::continue_reboot`]. That a reboot is under way takes one store and survives this
    /// process; an attach tells of it ([`crate::Repairs::reboot`]).
    ///
    /// The guest must not run, and nobody may write to its memory for the new start, from before this call until `Done`: what is
    /// written meanwhile is taken away with the rest.
    pub fn begin_reboot(&mut self) {
        self.words.store(layout::AT_REBOOTING, 1);
        self.reboot_cursor = 0;
        self.reset();
    }

    /// So many frames at the beginning of each space on demand are left as they are by every reboot from now on; none, if this
    /// is not called. To be said by each process before it goes on with a reboot: it is not in the words.
    ///
    /// A machine's reset leaves its memory alone, and its firmware may rely on that: SeaBIOS begins in the copy of itself
    /// that it made below 1 MiB (QEMU's chipsets map that, and not the ROM, also after a reset).
    pub fn keep_at_reboot(&mut self, frames: u64) {
        self.kept_frames = frames;
    }

    /// Whether a reboot is under way.
    #[must_use]
    pub fn is_rebooting(&self) -> bool {
        self.words.load(layout::AT_REBOOTING) != 0
    }

    /// Makes up to `most` frames outstanding (1 if that is 0), and appends their discards to `out`. After an attach, first tell where
    /// memory is ([`Ledger::correct`]).
    pub fn continue_reboot(&mut self, most: usize, out: &mut Vec<Discard>) -> Reboot {
        if !self.is_rebooting() {
            return Reboot::Done;
        }
        let from = out.len();
        let most = u64::try_from(most).unwrap_or(u64::MAX).max(1);
        let (mut changes, mut looks) = (most, most.saturating_mul(LOOK_AHEAD));
        while changes > 0 && looks > 0 {
            let Some(place) = self.on_demand_from(self.reboot_cursor) else { break };
            self.reboot_cursor = place.entry.saturating_add(1);
            looks = looks.saturating_sub(1);
            if place.frame >= self.kept_frames && self.forget_contents(&place, (from, out)) {
                changes = changes.saturating_sub(1);
            }
        }
        self.store_counters();
        self.reboot_progress()
    }

    fn reboot_progress(&mut self) -> Reboot {
        if self.on_demand_from(self.reboot_cursor).is_some() {
            return Reboot::More;
        }
        let on_demand = self.spaces.iter().filter(|(_, space)| space.on_demand);
        let pages: u64 = on_demand.map(|(_, space)| space.pages).sum();
        let left = pages.saturating_sub(self.counts.outstanding.0).saturating_sub(self.kept_pages());
        let left = PageCount(left);
        let leaving = PageCount(self.transit.leaving());
        if left.0 == 0 && leaving.0 == 0 {
            self.words.store(layout::AT_REBOOTING, 0);
            return Reboot::Done;
        }
        self.reboot_cursor = 0;
        Reboot::Waiting { left, leaving }
    }

    /// Pages with something in them that a reboot leaves alone.
    fn kept_pages(&self) -> u64 {
        let on_demand = self.spaces.iter().filter(|(_, space)| space.on_demand);
        let kept = on_demand.flat_map(|(id, space)| {
            let frames = space.pages.div_ceil(PAGES_PER_FRAME).min(self.kept_frames);
            (0..frames).map(|frame| Place::of(*id, *space, frame))
        });
        kept.map(|place| {
            let outstanding = self.states(&place).1.counts(place.valid).outstanding.0;
            place.valid.count().saturating_sub(outstanding)
        })
        .sum()
    }

    /// Makes a frame's pages outstanding, as far as that is possible now. Returns whether anything changed.
    fn forget_contents(&mut self, place: &Place, (from, out): (usize, &mut Vec<Discard>)) -> bool {
        let before = (self.states(place).1, self.transit.of(place.entry));
        let mut tally = Tally::default();
        // The guest may have given pages up between two calls.
        let all = place.valid;
        self.take_back(place, all, &mut tally);
        let moves = self.transit.of(place.entry);
        let busy = self.pins.mask(place.entry).or(moves.arriving).or(moves.leaving);
        let mut go = self.states(place).1.present(all).minus(busy);
        if place.granule != Granule::Page && !busy.is_empty() {
            go = PageMask::EMPTY;
        }
        // Nothing in the frame is worth keeping: one discard is better than many, and huge pages go by it alone.
        self.discard(place, go, all, (from, out));
        self.record(place, go, PageState::Outstanding, &mut tally);
        before != (self.states(place).1, self.transit.of(place.entry))
    }
}
