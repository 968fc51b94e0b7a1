//! What a guest tells, and what may be discarded on its word.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use crate::bits::PageMask;
use crate::discard::{Discard, Extent, Reuse, Tally};
use crate::layout;
use crate::ledger::{Ledger, Place};
use crate::residency::add;
use crate::state::PageState;
use crate::walk::FrameWalk;

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// The guest puts pages into the balloon. Appends to `out` what is to be discarded before the guest is answered.
    ///
    /// Extents may come in any order and overlap. Naming a page again changes nothing, but discards it again:
    /// after a crash an unanswered request is run once more, and the first run may not have come to the discard.
    ///
    /// When the ledger has no map left for a frame whose pages begin to differ, the whole frame counts as `Present`
    /// ([`Tally::unmapped`]): that may count less given up than was, and can discard nothing that was not named.
    ///
    /// In a space on demand only what has memory is discarded, and each discard is to be answered ([`Ledger::discarded`]).
    pub fn inflate(&mut self, named: &[Extent], reuse: Reuse, out: &mut Vec<Discard>) -> Tally {
        self.give_up(PageState::Ballooned, named, reuse, out)
    }

    /// The guest reports free pages, like [`Ledger::inflate`]. `reuse` says what holds for pages of the *balloon*; reported
    /// ones may always be re-used without a word, so only those named now count towards a whole frame.
    pub fn report(&mut self, named: &[Extent], reuse: Reuse, out: &mut Vec<Discard>) -> Tally {
        self.give_up(PageState::Reported, named, reuse, out)
    }

    /// The guest takes pages back. It may name pages that it never gave up. In a space on demand those whose memory
    /// is gone are `Outstanding` then.
    pub fn deflate(&mut self, named: &[Extent]) -> Tally {
        let extents = self.sorted(named);
        let mut tally = Tally::default();
        for (space, frame, mask) in FrameWalk::new(&extents) {
            if let Some(place) = self.place(space, frame) {
                add(&mut tally.named.0, mask.count());
                self.take_back(&place, mask, &mut tally);
            }
        }
        self.finish(extents);
        tally
    }

    /// Pages are no longer given up. Where that is known, those without memory are `Outstanding`; memory that is on its way
    /// out does not count.
    pub(crate) fn take_back(&mut self, place: &Place, mask: PageMask, tally: &mut Tally) {
        if !place.on_demand {
            return self.record(place, mask, PageState::Present, tally);
        }
        let states = self.states(place).1;
        let given_up = mask.and(states.mask(PageState::Ballooned).or(states.mask(PageState::Reported)));
        let moves = self.transit.of(place.entry);
        let there = given_up.and(moves.held).minus(moves.leaving);
        self.record(place, there, PageState::Present, tally);
        self.record(place, given_up.minus(there), PageState::Outstanding, tally);
    }

    /// The guest's device was reset, or the guest began anew: nothing is given up any more. Takes effect with one store,
    /// so that a crash leaves all of it or none. Pins stay; their I/O is still in flight. Memory stays too; to take it
    /// back from a guest that begins anew, see [`Ledger::begin_reboot`].
    pub fn reset(&mut self) {
        self.words.store(layout::AT_RESETTING, 1);
        self.finish_reset();
    }

    /// Carries out a reset that is marked, and takes the mark away.
    pub(crate) fn finish_reset(&mut self) {
        for (id, space) in self.spaces.clone() {
            for frame in 0..space.frames() {
                let place = Place::of(id, space, frame);
                self.take_back(&place, place.valid, &mut Tally::default());
            }
        }
        self.store_counters();
        self.words.store(layout::AT_RESETTING, 0);
    }

    fn give_up(&mut self, to: PageState, named: &[Extent], reuse: Reuse, out: &mut Vec<Discard>) -> Tally {
        let from = out.len();
        let extents = self.sorted(named);
        let mut tally = Tally::default();
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let earlier = match reuse {
                Reuse::TellsFirst => self.states(&place).1.mask(PageState::Ballooned),
                Reuse::AtOnce => PageMask::EMPTY,
            };
            let pinned = self.discard(&place, mask, mask.or(earlier), (from, out));
            add(&mut tally.pinned.0, pinned);
            add(&mut tally.named.0, mask.count());
            self.record(&place, mask, to, &mut tally);
        }
        self.finish(extents);
        tally
    }

    /// Puts pages into a state and counts those that were in another.
    pub(crate) fn record(&mut self, place: &Place, mask: PageMask, to: PageState, tally: &mut Tally) {
        match self.change(place, mask, to) {
            Some(changed) => add(&mut tally.changed.0, changed),
            None => add(&mut tally.unmapped.0, mask.count()),
        }
    }

    /// Ends an event that went over these extents.
    pub(crate) fn finish(&mut self, extents: Vec<Extent>) {
        self.scratch = extents;
        self.store_counters();
    }
}
