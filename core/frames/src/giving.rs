//! Giving memory back: what may be discarded, and what became of it.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::bits::PageMask;
use crate::discard::{Discard, Extent, RemovedBy, Reuse, Tally, push};
use crate::ledger::{Ledger, Place};
use crate::residency::add;
use crate::space::Granule;
use crate::state::PageState;
use crate::walk::FrameWalk;

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// I/O on these pages begins: they are not discarded or swept until [`Ledger::unpin`] has been called as often.
    ///
    /// Returns how many of them have no memory behind them in a space on demand. I/O must not begin before they have: through a
    /// mapping it would put memory there unseen, and through a file descriptor read zeros for what is on its way. So ask for
    /// each ([`Ledger::missing`], [`Ledger::fault`]) until none is missing. A pin by itself populates nothing.
    pub fn pin(&mut self, extent: Extent) -> PageCount {
        let mut missing = 0;
        let extents = self.sorted(&[extent]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            if let Some(place) = self.place(space, frame) {
                self.pins.pin(place.entry, mask);
                self.sweep.spare(place.entry, mask);
                add(&mut missing, mask.minus(self.settled(&place)).count());
            }
        }
        self.scratch = extents;
        PageCount(missing)
    }

    /// The first run of pages without memory in an extent of a space on demand, ending with its frame at the latest. `None` if all
    /// of them have memory, or lie beyond the space. Asking populates nothing.
    pub fn missing(&mut self, extent: Extent) -> Option<Extent> {
        let extents = self.sorted(&[extent]);
        let found = FrameWalk::new(&extents).find_map(|(space, frame, mask)| {
            let place = self.place(space, frame)?;
            let run = mask.minus(self.settled(&place)).runs().next()?;
            Some(place.extent(run))
        });
        self.scratch = extents;
        found
    }

    /// I/O on these pages is over. Pages that lose their last pin and are in the balloon, and which the guest promised not
    /// to touch ([`Reuse::TellsFirst`]), are to be discarded now: their inflation met the pin, or the I/O put memory
    /// behind them again. Without the promise the chance has passed with the acknowledgement, and it has for reported pages always.
    /// Pages that are not pinned are ignored.
    pub fn unpin(&mut self, extent: Extent, reuse: Reuse, out: &mut Vec<Discard>) {
        let from = out.len();
        let extents = self.sorted(&[extent]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let released = self.pins.unpin(place.entry, mask);
            self.release(&place, released, reuse, (from, out));
        }
        self.scratch = extents;
    }

    /// Pages can be discarded again: those in the balloon now are, if the guest promised not to touch them.
    pub(crate) fn release(
        &mut self,
        place: &Place,
        released: PageMask,
        reuse: Reuse,
        out: (usize, &mut Vec<Discard>),
    ) {
        if reuse == Reuse::TellsFirst {
            let given = self.states(place).1.mask(PageState::Ballooned);
            self.discard(place, released.and(given), given, out);
        }
    }

    /// A discard in a space on demand was carried out, all of it or this piece of it: its memory is gone, and makes room. Every
    /// discard there is to be answered with this or [`Ledger::discard_failed`]. Until then its pages count as resident, and a
    /// fault on them has to wait: memory that came meanwhile would be discarded with what the guest wrote to it.
    /// What was not asked for is ignored.
    pub fn discarded(&mut self, done: Discard) {
        self.answer(done, |ledger, place, left| {
            let before = ledger.memory(place).count();
            let mut moves = ledger.transit.of(place.entry);
            let gone = moves.held.and(left).count();
            moves.held = moves.held.minus(left);
            ledger.transit.set(place.entry, moves);
            ledger.totals.returned(before, gone);
        });
    }

    /// A discard in a space on demand was not carried out, all of it or this piece of it: its memory is there. Pages that
    /// were swept are `Present` again; pages that were given up count as resident until they are discarded after all.
    pub fn discard_failed(&mut self, failed: Discard) {
        self.answer(failed, |ledger, place, left| {
            let outstanding = ledger.states(place).1.mask(PageState::Outstanding);
            let there = ledger.transit.of(place.entry).held.and(left).and(outstanding);
            ledger.change(place, there, PageState::Present);
        });
    }

    /// Ends discards, with what is to be done about a frame's pages.
    fn answer(&mut self, discard: Discard, then: impl Fn(&mut Self, &Place, PageMask)) {
        let (first, count) = (discard.offset.pages_floor().0, discard.len.pages_floor().0);
        let extents = self.sorted(&[Extent { space: discard.space, first, count }]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let mut moves = self.transit.of(place.entry);
            let left = moves.leaving.and(mask);
            moves.leaving = moves.leaving.minus(left);
            self.transit.set(place.entry, moves);
            then(self, &place, left);
        }
        self.finish(extents);
    }

    /// Memory of a space on demand is gone already: somebody else punched it (QEMU's own balloon or page reporting; an
    /// madvise), or a fault came for a page that the ledger calls `Present` and the file has a hole there. Nothing is to be discarded.
    ///
    /// Only tell what is known to be gone at the moment of the call. A tale of a hole that has been filled since makes the ledger know
    /// of less memory than there is; [`Ledger::correct`] mends that. Pages being populated are therefore left alone
    /// ([`Tally::arriving`]): which of the two came last is not known, so look again when they have been.
    /// In other spaces this does nothing.
    pub fn removed(&mut self, named: &[Extent], by: RemovedBy) -> Tally {
        let to = match by {
            RemovedBy::Balloon => PageState::Ballooned,
            RemovedBy::Report => PageState::Reported,
            RemovedBy::Other => PageState::Outstanding,
        };
        let extents = self.sorted(named);
        let mut tally = Tally::default();
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame).filter(|place| place.on_demand) else { continue };
            let arriving = self.transit.of(place.entry).arriving;
            let gone = mask.minus(arriving);
            add(&mut tally.named.0, mask.count());
            add(&mut tally.arriving.0, mask.and(arriving).count());
            add(&mut tally.pinned.0, gone.and(self.pins.mask(place.entry)).count());
            let before = self.memory(&place);
            self.record(&place, gone, to, &mut tally);
            self.drop_memory(&place, gone);
            self.totals.returned(before.count(), before.and(gone).count());
        }
        self.finish(extents);
        tally
    }

    /// Pages that are not `Present` have no memory any more.
    pub(crate) fn drop_memory(&mut self, place: &Place, mask: PageMask) {
        let mut moves = self.transit.of(place.entry);
        moves.held = moves.held.minus(mask);
        self.transit.set(place.entry, moves);
    }

    /// The pages of a frame whose memory is there and stays: neither arriving nor leaving.
    fn settled(&self, place: &Place) -> PageMask {
        let moves = self.transit.of(place.entry);
        self.memory(place).minus(moves.arriving).minus(moves.leaving)
    }

    /// Discards `wanted` pages of a frame, or the whole frame if every page is in `allowed`. Returns how many
    /// wanted pages have I/O in flight. Must be asked before the states change.
    pub(crate) fn discard(
        &mut self,
        place: &Place,
        wanted: PageMask,
        allowed: PageMask,
        (from, out): (usize, &mut Vec<Discard>),
    ) -> u64 {
        if wanted.is_empty() {
            return 0;
        }
        let moves = self.transit.of(place.entry);
        let memory = self.memory(place);
        // Populating is I/O like any other: the order of two calls to the kernel is not known.
        let pinned = self.pins.mask(place.entry).or(moves.arriving);
        let free = free_of(place, wanted, allowed.minus(moves.leaving), pinned).minus(moves.leaving);
        let free = match place.valid == free {
            _ if !free.meets(memory) => PageMask::EMPTY,
            true => free,
            false => free.and(memory),
        };
        if place.on_demand && !free.is_empty() {
            self.transit.set(place.entry, crate::transit::Moves { leaving: moves.leaving.or(free), ..moves });
        }
        for run in free.runs() {
            push(out, from, place.extent(run));
        }
        wanted.and(pinned).and(memory).count()
    }
}

/// What of a frame can be discarded.
fn free_of(place: &Place, wanted: PageMask, allowed: PageMask, pinned: PageMask) -> PageMask {
    let whole = allowed.minus(pinned).covers(place.valid);
    match place.granule {
        Granule::Page if whole => place.valid,
        Granule::Page => wanted.minus(pinned),
        Granule::Frame if whole && place.valid.count() == PAGES_PER_FRAME => place.valid,
        Granule::Frame | Granule::Never => PageMask::EMPTY,
    }
}
