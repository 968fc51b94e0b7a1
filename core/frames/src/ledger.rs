//! The ledger itself: its parts, its spaces, one frame's pages.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::AtomicU64;

use plimsoll_units::{Bytes, FRAME_SIZE, PAGES_PER_FRAME};

use crate::bits::{PageMask, PageStates};
use crate::discard::Extent;
use crate::error::LedgerError;
use crate::layout::{self, Entry, Layout, MAX_SPACES, Words};
use crate::maps::MapPool;
use crate::pins::Pins;
use crate::residency::Totals;
use crate::space::{Granule, Space, SpaceId};
use crate::state::{Counts, PageState};
use crate::sweep::Sweep;
use crate::transit::Transit;

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
    /// What is on its way in the spaces on demand.
    pub(crate) transit: Transit,
    /// Pages `Present` in spaces on demand.
    pub(crate) present_on_demand: u64,
    pub(crate) sweep: Sweep,
    /// Where a reboot goes on: frames of the ledger before it were looked at.
    pub(crate) reboot_cursor: u64,
    /// Frames at the beginning of each space on demand that a reboot leaves as they are.
    pub(crate) kept_frames: u64,
    pub(crate) totals: Totals,
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
            maps: MapPool::new(layout.maps),
            pins: Pins::default(),
            transit: Transit::default(),
            present_on_demand: 0,
            sweep: Sweep::default(),
            reboot_cursor: 0,
            kept_frames: 0,
            totals: Totals::default(),
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
        let one = PageMask::single(page.checked_rem(PAGES_PER_FRAME)?).and(place.valid);
        let states = self.states(&place).1;
        (!one.is_empty()).then(|| states.shared(one)).flatten()
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
        if place.on_demand {
            self.follow(place, before.present(place.valid), after.present(place.valid));
        }
        recorded.then_some(changed)
    }

    /// Keeps account of the memory of pages that became `Present` or ceased to be. A change of state moves no memory.
    fn follow(&mut self, place: &Place, before: PageMask, after: PageMask) {
        let (left, came) = (before.minus(after), after.minus(before));
        let present = self.present_on_demand.saturating_sub(left.count());
        self.present_on_demand = present.saturating_add(came.count());
        let mut moves = self.transit.of(place.entry);
        moves.held = moves.held.or(left).minus(came);
        self.transit.set(place.entry, moves);
        self.sweep.spare(place.entry, left);
    }

    /// The pages of a frame that have memory behind them, as far as is known.
    pub(crate) fn memory(&self, place: &Place) -> PageMask {
        if place.on_demand {
            self.states(place).1.present(place.valid).or(self.transit.of(place.entry).held)
        } else {
            place.valid
        }
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
    pub(crate) on_demand: bool,
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
            on_demand: space.on_demand,
            frame,
            entry: u64::from(space.first_frame).saturating_add(frame),
            valid: space.valid(frame),
        }
    }

    /// Pages of the frame as pages of the space.
    pub(crate) fn extent(&self, pages: Range<u64>) -> Extent {
        let first = self.frame.saturating_mul(PAGES_PER_FRAME).saturating_add(pages.start);
        Extent { space: self.space, first, count: pages.end.saturating_sub(pages.start) }
    }
}
