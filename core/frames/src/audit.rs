//! Checking the ledger against itself and against the kernel.

use core::sync::atomic::AtomicU64;

use plimsoll_units::PageCount;

use crate::error::{AuditError, LedgerError};
use crate::layout;
use crate::ledger::{Ledger, Place};
use crate::recover::used_maps;
use crate::state::{Counts, PageState};

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// Counts everything anew and compares it with what is kept.
    ///
    /// # Errors
    /// [`AuditError`] says what differs: a fault of this crate, or somebody else wrote to the words.
    pub fn audit(&self) -> Result<Counts, AuditError> {
        let mut found = Counts::default();
        let mut resident = 0u64;
        for (id, space) in &self.spaces {
            for frame in 0..space.frames() {
                let place = Place::of(*id, *space, frame);
                found.add(self.states(&place).1.counts(place.valid));
                if place.on_demand {
                    self.audit_moves(&place)?;
                    resident = resident.saturating_add(self.memory(&place).count());
                }
            }
        }
        self.check_states()?;
        if let Some(&frame) = self.strays().first() {
            let word = self.words.load(self.layout.entry(u64::from(frame)));
            return Err(LedgerError::Entry { frame, word }.into());
        }
        if found != self.counts || layout::peek_counts(self.words.as_slice())? != self.counts {
            return Err(AuditError::Counts { kept: self.counts, found });
        }
        let kept = self.words.load(layout::AT_RESIDENT);
        if resident != self.resident_pages() || resident != kept {
            return Err(AuditError::Resident { kept: PageCount(kept), found: PageCount(resident) });
        }
        self.audit_maps()?;
        Ok(found)
    }

    /// Compares what the ledger holds to be resident with what the kernel counts for all files on demand together (`st_blocks` of
    /// stat(2), in pages; swapped-out pages of a memfd are counted there too).
    ///
    /// Returns how many pages the kernel counts *less*, beyond what is on its way just now. That is lag: somebody punched
    /// and it has not been told here yet. If it does not go away within the time a message takes, it is never told, and
    /// [`Ledger::correct`] is to put it right. The limit is kept meanwhile, for the guest has less than it may.
    ///
    /// # Errors
    /// [`AuditError::Unseen`] if the kernel counts *more*: memory came unseen and the limit may be exceeded. That is a fault of whoever
    /// touches the files, unless removals are told of before they are done.
    pub fn audit_resident(&self, kernel: PageCount) -> Result<PageCount, AuditError> {
        let resident = self.resident_pages();
        if kernel.0 > resident {
            return Err(AuditError::Unseen { resident: PageCount(resident), kernel });
        }
        let moving = self.transit.arriving().saturating_add(self.transit.going());
        Ok(PageCount(resident.saturating_sub(moving).saturating_sub(kernel.0)))
    }

    /// What is on its way must agree with the states.
    fn audit_moves(&self, place: &Place) -> Result<(), AuditError> {
        let moves = self.transit.of(place.entry);
        let states = self.states(place).1;
        let present = states.present(place.valid);
        // Only what waits for an answer can be outstanding and have memory.
        let odd = moves.held.and(states.mask(PageState::Outstanding)).minus(moves.leaving);
        let sound = !moves.held.meets(present)
            && !moves.leaving.meets(present)
            && !moves.leaving.meets(moves.arriving)
            && self.memory(place).covers(moves.arriving)
            && present.minus(moves.arriving).covers(self.sweep.takeable(place.entry))
            && odd.is_empty();
        if sound { Ok(()) } else { Err(AuditError::Moves { frame: place.entry }) }
    }

    fn audit_maps(&self) -> Result<(), AuditError> {
        let used = used_maps(&self.words, self.layout)?;
        let (free, used) = (self.maps.free(), used.iter().map(|&used| u64::from(used)).sum::<u64>());
        if free.saturating_add(used) != u64::from(self.layout.maps) {
            return Err(AuditError::Maps { maps: self.layout.maps, free, used });
        }
        Ok(())
    }
}
