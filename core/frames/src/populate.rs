//! Putting memory behind pages when they are touched.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use plimsoll_units::PAGES_PER_FRAME;

use crate::bits::PageMask;
use crate::discard::{Discard, Extent, Reuse};
use crate::ledger::{Ledger, Place};
use crate::residency::{Residency, add};
use crate::space::{Granule, SpaceId};
use crate::state::PageState;
use crate::walk::FrameWalk;

/// Where there is not room for a whole frame, one fault takes at most this part of what room there is (a page at least): a guest
/// that goes on upwards gets 512 pages in some forty faults, and one that does not leaves the room to others' faults.
const SHARE_OF_SMALL_ROOM: u64 = 8;

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Put memory behind these pages, wake whoever waits for them, and say how it went ([`Ledger::populated`],
    /// [`Ledger::populate_failed`]). The ledger counts them as `Present` already: should this process die before the memory
    /// is there, they are present over a hole, which [`Ledger::correct`] mends.
    Populate(Extent),
    /// There is memory: wake whoever waits. If there is none after all, say so ([`Ledger::removed`]) and ask again.
    Present,
    /// Being populated for another fault, whose wake is for this one too.
    Arriving,
    /// Being discarded: ask again when the discard has been answered.
    Leaving,
    /// There is no memory to be had: the guest waits until pages come back, a sweep finds some, or the target is raised.
    /// In a file of huge pages there may be room, but not for a frame.
    Exhausted(Residency),
    /// No page of a space on demand.
    Unknown,
}

/// What to do about a write to a page that is protected for a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// Lift the protection of all the pages named, and wake. The sweep will not take them.
    Lift,
    /// Some are being discarded: ask again when that has been answered.
    Leaving,
}

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// The guest, or somebody on its behalf, touched a page that has no memory. Takes no longer for a large guest than for
    /// a small one.
    ///
    /// A frame no page of which has memory is populated whole if there is room for it, pages in the balloon excepted (nobody
    /// would hear of it when the guest takes those back, and they would be lost to it until then): unless the page itself
    /// was in the balloon, which says that the guest is taking pages back without a word. Otherwise the run of pages
    /// without memory around the fault is populated, as far as a small room allows.
    pub fn fault(&mut self, space: SpaceId, page: u64) -> Fault {
        let place = self.place(space, page / PAGES_PER_FRAME).filter(|place| place.on_demand);
        let Some(place) = place else { return Fault::Unknown };
        let offset = page.checked_rem(PAGES_PER_FRAME).unwrap_or(0);
        let one = PageMask::single(offset);
        if !place.valid.covers(one) {
            return Fault::Unknown;
        }
        let moves = self.transit.of(place.entry);
        // The memory of a huge page comes and goes for all of it.
        let together = if place.granule == Granule::Page { one } else { place.valid };
        if moves.leaving.meets(together) {
            return Fault::Leaving;
        }
        self.sweep.spare(place.entry, one);
        if self.memory(&place).meets(one) {
            // Given up, but never discarded, and in use again.
            self.change(&place, one, PageState::Present);
            self.store_counters();
            return if moves.arriving.meets(one) { Fault::Arriving } else { Fault::Present };
        }
        let fault = match self.choose(&place, offset) {
            Some(run) => self.give(&place, offset, run),
            None => {
                add(&mut self.totals.exhausted, 1);
                Fault::Exhausted(self.residency())
            }
        };
        self.store_counters();
        fault
    }

    /// The guest wrote to protected pages: they must not be swept, for what was read of them is no longer true.
    pub fn write_fault(&mut self, extent: Extent) -> WriteFault {
        let mut answer = WriteFault::Lift;
        let extents = self.sorted(&[extent]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            if self.transit.of(place.entry).leaving.meets(mask) {
                answer = WriteFault::Leaving;
            }
            self.sweep.spare(place.entry, mask);
        }
        self.scratch = extents;
        answer
    }

    /// Pages that were to be populated have memory now. Appends to `out` what the guest put into the balloon meanwhile
    /// and promised not to touch ([`Reuse::TellsFirst`]). Without the promise, or if they were reported, such pages keep
    /// their memory until they are given up again, and count as resident.
    pub fn populated(&mut self, extent: Extent, reuse: Reuse, out: &mut Vec<Discard>) {
        let from = out.len();
        let extents = self.sorted(&[extent]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let arrived = self.arrive(&place, mask);
            self.release(&place, arrived, reuse, (from, out));
        }
        self.finish(extents);
    }

    /// Pages that were to be populated have no memory: they are `Outstanding`, or given up if that happened meanwhile, and
    /// their room can be used again.
    pub fn populate_failed(&mut self, extent: Extent) {
        let extents = self.sorted(&[extent]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let failed = self.arrive(&place, mask);
            let present = failed.and(self.states(&place).1.mask(PageState::Present));
            self.change(&place, present, PageState::Outstanding);
            self.drop_memory(&place, failed);
        }
        self.finish(extents);
    }

    /// Pages of a frame are no longer on their way here. Returns those that were.
    fn arrive(&mut self, place: &Place, mask: PageMask) -> PageMask {
        let mut moves = self.transit.of(place.entry);
        let arrived = moves.arriving.and(mask);
        moves.arriving = moves.arriving.minus(arrived);
        self.transit.set(place.entry, moves);
        arrived
    }

    /// The pages to populate for a fault at `offset`; `None` if there is no room.
    fn choose(&self, place: &Place, offset: u64) -> Option<PageMask> {
        let room = self.residency().room().0;
        let taken = self.memory(place).or(self.transit.of(place.entry).leaving);
        let missing = place.valid.minus(taken);
        if place.granule != Granule::Page {
            return (missing.count() <= room).then_some(missing);
        }
        if room == 0 {
            return None;
        }
        let eligible = missing.minus(self.left_alone(place, offset));
        if eligible == place.valid && eligible.count() <= room {
            return Some(eligible);
        }
        let most = if room >= PAGES_PER_FRAME { room } else { (room / SHARE_OF_SMALL_ROOM).max(1) };
        eligible.run_at(offset, most).map(|run| PageMask::range(&run))
    }

    /// Pages that a fault at `offset` says nothing of: those in the balloon, unless it is one of them.
    fn left_alone(&self, place: &Place, offset: u64) -> PageMask {
        let ballooned = self.states(place).1.mask(PageState::Ballooned);
        if ballooned.meets(PageMask::single(offset)) { PageMask::EMPTY } else { ballooned }
    }

    /// Records that `run` is being populated.
    fn give(&mut self, place: &Place, offset: u64, run: PageMask) -> Fault {
        if run.count() == PAGES_PER_FRAME {
            add(&mut self.totals.populated_frames, 1);
        } else {
            add(&mut self.totals.populated_pages, run.count());
        }
        // In a file of huge pages memory comes for pages in the balloon too.
        let kept = run.and(self.left_alone(place, offset));
        self.change(place, run.minus(kept), PageState::Present);
        let mut moves = self.transit.of(place.entry);
        moves.arriving = moves.arriving.or(run);
        moves.held = moves.held.or(kept);
        self.transit.set(place.entry, moves);
        self.sweep.populated(place.entry);
        Fault::Populate(place.extent(run.hull()))
    }
}
