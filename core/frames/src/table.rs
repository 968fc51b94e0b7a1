//! The table of spaces: adding, finding and removing backing files.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::error::SpaceError;
use crate::layout::{self, Entry, MAX_SPACES};
use crate::ledger::{Ledger, Place};
use crate::space::{Granule, Space, SpaceId, SpaceKey};
use crate::state::PageState;

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// Makes a backing file known, or finds it again: after an attach, or when another region lies in it.
    /// All pages of a new space are `Present`: which of them have been touched is not known.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing has changed then.
    pub fn add_space(
        &mut self,
        key: SpaceKey,
        pages: PageCount,
        granule: Granule,
    ) -> Result<SpaceId, SpaceError> {
        self.add(Space { key, first_frame: 0, pages: pages.0, granule, on_demand: false })
    }

    /// The same for a file that has no memory yet, and into which none comes but what [`Ledger::fault`] gives out.
    /// All pages of a new space are `Outstanding`, and the ledger is exact for it. If the file has memory already, say so
    /// next ([`Ledger::correct`]).
    ///
    /// # Errors
    /// [`SpaceError`]; nothing has changed then.
    pub fn add_space_on_demand(
        &mut self,
        key: SpaceKey,
        pages: PageCount,
        granule: Granule,
    ) -> Result<SpaceId, SpaceError> {
        let space = Space { key, first_frame: 0, pages: pages.0, granule, on_demand: true };
        if !self.layout.is_exact() {
            return Err(SpaceError::FewMaps { frames: self.layout.frames, maps: self.layout.maps });
        }
        if !space.can_be_on_demand() {
            return Err(SpaceError::HugePages(key));
        }
        self.add(space)
    }

    fn add(&mut self, wanted: Space) -> Result<SpaceId, SpaceError> {
        let (key, pages) = (wanted.key, PageCount(wanted.pages));
        if let Some((id, known)) = self.spaces.iter().find(|(_, space)| space.key == key) {
            if *known != (Space { first_frame: known.first_frame, ..wanted }) {
                return Err(SpaceError::Changed { key, before: PageCount(known.pages), now: pages });
            }
            return Ok(*id);
        }
        if pages.0 == 0 {
            return Err(SpaceError::Empty(key));
        }
        let taken = |index: &u8| self.spaces.iter().any(|(id, _)| id.0 == *index);
        let id = (0..MAX_SPACES).find(|index| !taken(index)).map(SpaceId).ok_or(SpaceError::TooMany)?;
        let space = Space { first_frame: self.find_gap(pages)?, ..wanted };
        let begin = if space.on_demand { PageState::Outstanding } else { PageState::Present };
        // No frame outside a space is anything but `Present`, and an attach makes it so. The entries are in order before
        // the last of the table's four words puts the space in force.
        for entry in u64::from(space.first_frame)..space.end_frame() {
            self.words.store_changed(self.layout.entry(entry), Entry::Uniform(begin).encode());
        }
        self.words.store_array(layout::space_at(id.0), &space.encode());
        self.spaces.push((id, space));
        let count = self.counts.of_mut(begin);
        count.0 = count.0.saturating_add(pages.0);
        self.store_counters();
        Ok(id)
    }

    /// The first frame of a gap long enough.
    fn find_gap(&self, pages: PageCount) -> Result<u32, SpaceError> {
        let frames = pages.0.div_ceil(PAGES_PER_FRAME);
        let mut taken: Vec<(u64, u64)> =
            self.spaces.iter().map(|(_, s)| (u64::from(s.first_frame), s.end_frame())).collect();
        taken.push((u64::from(self.layout.frames), u64::MAX));
        taken.sort_unstable();
        let mut from = 0u64;
        for (start, end) in taken {
            if start.saturating_sub(from) >= frames {
                return u32::try_from(from).map_err(|_| SpaceError::NoRoom { frames, pages });
            }
            from = end;
        }
        Err(SpaceError::NoRoom { frames, pages })
    }

    /// Forgets a backing file that is no longer the guest's memory, with the pins on it, what is on its way there and a
    /// batch of a sweep: I/O on it must be over, and its memory is no longer counted.
    pub fn remove_space(&mut self, id: SpaceId) {
        let Some(at) = self.spaces.iter().position(|(known, _)| *known == id) else { return };
        let (_, space) = self.spaces.remove(at);
        let place = layout::space_at(id.0).saturating_add(3);
        // One store takes it out of force; what its entries then say no longer counts, and an attach clears them.
        self.words.store(place, 0);
        for frame in 0..space.frames() {
            let place = Place::of(id, space, frame);
            let (entry, states) = self.states(&place);
            self.counts.remove(states.counts(place.valid));
            if place.on_demand {
                let present = states.present(place.valid).count();
                self.present_on_demand = self.present_on_demand.saturating_sub(present);
            }
            self.put_uniform(&place, entry, PageState::Present);
        }
        let frames = u64::from(space.first_frame)..space.end_frame();
        self.pins.forget(frames.clone());
        self.transit.forget(frames.clone());
        self.forget_sweep(&frames);
        self.store_counters();
    }

    /// The spaces in force, with their keys and lengths.
    pub fn spaces(&self) -> impl Iterator<Item = (SpaceId, SpaceKey, PageCount)> {
        self.spaces.iter().map(|(id, space)| (*id, space.key, PageCount(space.pages)))
    }
}
