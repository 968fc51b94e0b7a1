//! The ledger itself: its parts, its spaces, one frame's pages.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use plimsoll_units::{Bytes, FRAME_SIZE, PAGES_PER_FRAME, PageCount};

use crate::bits::{PageMask, PageStates};
use crate::discard::Extent;
use crate::error::{LedgerError, SpaceError};
use crate::layout::{self, Entry, Layout, MAX_SPACES, Words};
use crate::pins::Pins;
use crate::space::{Granule, Space, SpaceId, SpaceKey};
use crate::state::{Counts, PageState};

/// The state of every page of a guest's memory, kept in words that outlive this process.
///
/// There must be one `Ledger` at a time over given words. See the crate's documentation for the rules.
pub struct Ledger<W> {
    pub(crate) words: Words<W>,
    pub(crate) layout: Layout,
    pub(crate) spaces: Vec<(SpaceId, Space)>,
    pub(crate) counts: Counts,
    pub(crate) maps: MapPool,
    pub(crate) pins: Pins,
    /// Sorted extents of the event under way; kept for its memory.
    pub(crate) scratch: Vec<Extent>,
}

impl Ledger<()> {
    /// How many words a ledger for `frames` frames and `maps` maps takes. With a map for every frame
    /// (128 bytes a frame) no page's state is ever lost; with fewer, see [`Ledger::inflate`].
    ///
    /// # Errors
    /// [`LedgerError::TooLarge`] if that is more than can be addressed.
    pub fn words_needed(frames: u32, maps: u32) -> Result<usize, LedgerError> {
        Layout { frames, maps }.words()
    }

    /// Frames for a guest with this much memory, in as many files as a ledger can hold, each of which may end
    /// within a frame.
    #[must_use]
    pub fn frames_for(memory: Bytes) -> u32 {
        let frames = memory.0.div_ceil(FRAME_SIZE).saturating_add(u64::from(MAX_SPACES));
        u32::try_from(frames).unwrap_or(u32::MAX)
    }
}

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// Makes an empty ledger in `words`, whatever stood there.
    ///
    /// # Errors
    /// [`LedgerError::TooSmall`] or [`LedgerError::TooLarge`]; the words are then as they were.
    pub fn format(words: W, frames: u32, maps: u32) -> Result<Self, LedgerError> {
        let layout = Layout { frames, maps };
        let need = layout.words()?;
        let words = Words::new(words);
        if words.len() < need {
            return Err(LedgerError::TooSmall { have: words.len(), need });
        }
        // Without the magic nobody attaches to what is half done.
        words.store(layout::AT_MAGIC, 0);
        for at in 1..need {
            words.store_changed(at, 0);
        }
        words.store(layout::AT_VERSION, layout::VERSION);
        words.store(layout::AT_FRAMES, u64::from(frames));
        words.store(layout::AT_MAPS, u64::from(maps));
        words.store(layout::AT_MAGIC, layout::MAGIC);
        Ok(Self::over(words, layout))
    }

    /// A ledger that knows nothing yet of what is in its words.
    pub(crate) fn over(words: Words<W>, layout: Layout) -> Self {
        Self {
            words,
            layout,
            spaces: Vec::new(),
            counts: Counts::default(),
            maps: MapPool { freed: Vec::new(), fresh: 0, total: layout.maps },
            pins: Pins::default(),
            scratch: Vec::new(),
        }
    }

    /// Pages by state, kept up to date by every event.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many frames the ledger has room for.
    #[must_use]
    pub fn frame_capacity(&self) -> u32 {
        self.layout.frames
    }

    /// The state of one page; `None` beyond the space.
    #[must_use]
    pub fn state(&self, space: SpaceId, page: u64) -> Option<PageState> {
        let place = self.place(space, page / PAGES_PER_FRAME)?;
        let offset = page.checked_rem(PAGES_PER_FRAME)?;
        let one = PageMask::range(&(offset..offset.saturating_add(1))).and(place.valid);
        let states = self.states(&place).1;
        (!one.is_empty()).then(|| states.shared(one)).flatten()
    }

    /// Makes a backing file known, or finds it again: after an attach, or when another region lies in it.
    /// All pages of a new space are `Present`.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing has changed then.
    pub fn add_space(
        &mut self,
        key: SpaceKey,
        pages: PageCount,
        granule: Granule,
    ) -> Result<SpaceId, SpaceError> {
        if let Some((id, known)) = self.spaces.iter().find(|(_, space)| space.key == key) {
            if known.pages != pages.0 || known.granule != granule {
                return Err(SpaceError::Changed { key, before: PageCount(known.pages), now: pages });
            }
            return Ok(*id);
        }
        if pages.0 == 0 {
            return Err(SpaceError::Empty(key));
        }
        let taken = |index: &u8| self.spaces.iter().any(|(id, _)| id.0 == *index);
        let id = (0..MAX_SPACES).find(|index| !taken(index)).map(SpaceId).ok_or(SpaceError::TooMany)?;
        let first_frame = self.find_gap(pages)?;
        let space = Space { key, first_frame, pages: pages.0, granule };
        // No frame outside a space is anything but `Present`, so the entries are in order already; the
        // last of the four words puts the space in force.
        self.words.store_array(layout::space_at(id.0), &space.encode());
        self.spaces.push((id, space));
        self.counts.present.0 = self.counts.present.0.saturating_add(pages.0);
        self.words.store_counts(self.counts);
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

    /// Forgets a backing file that is no longer the guest's memory, with the pins on it: I/O on it must be over.
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
            self.put_uniform(&place, entry, PageState::Present);
        }
        self.pins.forget(u64::from(space.first_frame)..space.end_frame());
        self.words.store_counts(self.counts);
    }

    /// The spaces in force, with their keys and lengths.
    pub fn spaces(&self) -> impl Iterator<Item = (SpaceId, SpaceKey, PageCount)> {
        self.spaces.iter().map(|(id, space)| (*id, space.key, PageCount(space.pages)))
    }

    pub(crate) fn space(&self, id: SpaceId) -> Option<Space> {
        self.spaces.iter().find(|(known, _)| *known == id).map(|(_, space)| *space)
    }

    /// A frame of a space, if the space has so many.
    pub(crate) fn place(&self, id: SpaceId, frame: u64) -> Option<Place> {
        let space = self.space(id)?;
        (frame < space.frames()).then(|| Place::of(id, space, frame))
    }

    /// What a frame's word and map say. A word that makes no sense, which attach refuses and nobody but a second writer
    /// can put there, counts as `Present`: nothing is discarded on its account.
    pub(crate) fn states(&self, place: &Place) -> (Entry, PageStates) {
        let word = self.words.load(self.layout.entry(place.entry));
        let entry = Entry::decode(word).unwrap_or(Entry::Uniform(PageState::Present));
        let states = match entry {
            Entry::Uniform(state) => PageStates::uniform(state, place.valid),
            Entry::Mixed(map) => self.words.load_map(self.layout, map),
        };
        (entry, states)
    }

    /// Puts pages of a frame into a state. Returns the pages that were in another one, or `None` if there was no
    /// map to record it in and the whole frame counts as `Present` now.
    pub(crate) fn change(&mut self, place: &Place, mask: PageMask, to: PageState) -> Option<u64> {
        let (entry, before) = self.states(place);
        let changed = mask.minus(before.mask(to)).count();
        if changed == 0 {
            return Some(0);
        }
        let mut after = before;
        after.set(mask, to);
        let recorded = if let Some(state) = after.shared(place.valid) {
            self.put_uniform(place, entry, state);
            true
        } else {
            self.put_mixed(place, entry, &after)
        };
        if !recorded {
            self.put_uniform(place, entry, PageState::Present);
            after = PageStates::uniform(PageState::Present, place.valid);
        }
        self.counts.remove(before.counts(place.valid));
        self.counts.add(after.counts(place.valid));
        recorded.then_some(changed)
    }

    pub(crate) fn put_uniform(&mut self, place: &Place, old: Entry, state: PageState) {
        self.words.store_changed(self.layout.entry(place.entry), Entry::Uniform(state).encode());
        if let Entry::Mixed(map) = old {
            self.maps.give(map);
        }
    }

    fn put_mixed(&mut self, place: &Place, old: Entry, states: &PageStates) -> bool {
        if let Entry::Mixed(map) = old {
            self.words.store_array(self.layout.map(map), &states.0);
            return true;
        }
        let Some(map) = self.maps.take() else { return false };
        // The map is complete before the entry points to it.
        self.words.store_array(self.layout.map(map), &states.0);
        self.words.store(self.layout.entry(place.entry), Entry::Mixed(map).encode());
        true
    }
}

/// One frame of a space.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) space: SpaceId,
    pub(crate) granule: Granule,
    /// Its number within the space.
    pub(crate) frame: u64,
    /// Its number within the ledger.
    pub(crate) entry: u64,
    /// Its pages that lie within the space.
    pub(crate) valid: PageMask,
}

impl Place {
    pub(crate) fn of(id: SpaceId, space: Space, frame: u64) -> Self {
        Self {
            space: id,
            granule: space.granule,
            frame,
            entry: u64::from(space.first_frame).saturating_add(frame),
            valid: space.valid(frame),
        }
    }
}

/// Which maps are free: known to this process only, and found anew by attach.
pub(crate) struct MapPool {
    pub(crate) freed: Vec<u32>,
    /// Maps from here on were never in use.
    pub(crate) fresh: u32,
    pub(crate) total: u32,
}

impl MapPool {
    fn take(&mut self) -> Option<u32> {
        if let Some(map) = self.freed.pop() {
            return Some(map);
        }
        let map = (self.fresh < self.total).then_some(self.fresh)?;
        self.fresh = self.fresh.saturating_add(1);
        Some(map)
    }

    pub(crate) fn give(&mut self, map: u32) {
        self.freed.push(map);
    }

    pub(crate) fn free(&self) -> u64 {
        let fresh = u64::from(self.total.saturating_sub(self.fresh));
        u64::try_from(self.freed.len()).unwrap_or(u64::MAX).saturating_add(fresh)
    }
}
