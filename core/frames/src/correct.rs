//! Setting right what the ledger believes of memory by what the kernel says.

use core::sync::atomic::AtomicU64;

use plimsoll_units::PageCount;

use crate::bits::PageMask;
use crate::discard::Extent;
use crate::ledger::{Ledger, Place};
use crate::residency::add;
use crate::state::PageState;
use crate::walk::FrameWalk;

/// What [`Ledger::correct`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrected {
    /// Pages with memory that the ledger knew nothing of. They are `Present` now.
    pub found: PageCount,
    /// Pages without memory that the ledger thought had some. Those that were `Present` are `Outstanding` now.
    pub lost: PageCount,
}

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// Takes over from the kernel which pages `within` a space on demand have memory: those of `data`, in any order (lseek(2) with
    /// `SEEK_DATA` and `SEEK_HOLE` finds them), and no others. May be done piece by piece.
    ///
    /// To be done for the whole space after an attach, before anything is served: the process before may have died between
    /// recording a step and taking it. Nobody may populate or punch `within` meanwhile, other than for what is on its way, which is
    /// left alone. What was a hole and is one stays `Outstanding`, `Ballooned` or `Reported`, as it was.
    ///
    /// Memory found may bring the guest above its target. The limit is then what it has ([`crate::Residency::limit`]).
    pub fn correct(&mut self, within: Extent, data: &[Extent]) -> Corrected {
        let mut corrected = Corrected::default();
        let data = self.sorted(data);
        let within = self.sorted(&[within]);
        let mut walk = FrameWalk::new(&data).peekable();
        for (space, frame, mask) in FrameWalk::new(&within) {
            while walk.next_if(|(s, f, _)| (*s, *f) < (space, frame)).is_some() {}
            let same = walk.next_if(|(s, f, _)| (*s, *f) == (space, frame));
            let there = same.map_or(PageMask::EMPTY, |(_, _, there)| there);
            if let Some(place) = self.place(space, frame).filter(|place| place.on_demand) {
                self.correct_frame(&place, mask, there, &mut corrected);
            }
        }
        self.finish(data);
        corrected
    }

    fn correct_frame(&mut self, place: &Place, within: PageMask, there: PageMask, corrected: &mut Corrected) {
        let moves = self.transit.of(place.entry);
        let within = within.minus(moves.arriving).minus(moves.leaving);
        let memory = self.memory(place);
        let (found, lost) = (within.and(there).minus(memory), within.and(memory).minus(there));
        let present = lost.and(self.states(place).1.mask(PageState::Present));
        self.change(place, found, PageState::Present);
        self.change(place, present, PageState::Outstanding);
        self.drop_memory(place, lost);
        add(&mut corrected.found.0, found.count());
        add(&mut corrected.lost.0, lost.count());
    }
}
