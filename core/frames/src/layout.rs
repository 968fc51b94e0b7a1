//! Where everything stands in the words, and the one function that changes them.
//!
//! ```text
//! 0                magic, stored last when formatting
//! 1                layout version
//! 2, 3             capacity: frames, maps
//! 4                1 while a reset is under way
//! 5                1 while a reboot is under way
//! 6                the target, in pages
//! 7                frames that a sweep may have write-protected: first << 32 | one past the last; 0: none
//! 8  .. 12         pages by state code (for readers in other processes; recounted on attach)
//! 12               pages with memory behind them, of spaces on demand (likewise)
//! 16 .. 80         16 spaces of 4 words: device, inode, pages, place | granule << 32 | on demand << 62 | in force << 63
//! 80 .. 88         totals
//! 96 ..            one word a frame
//! 96 + frames ..   maps of 16 words
//! ```
//!
//! A frame's word is a state's code when all its pages share the state, or `map << 32 | 4`. A map belongs to the
//! frame that points to it; nothing else records that it is taken, so a map that was taken but not yet
//! linked when the writer was killed is free again by itself.
//!
//! Stores are `Release`, loads `Acquire`: who sees a frame point to a map sees the map filled.

#[cfg(test)]
use core::cell::RefCell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::bits::{MAP_WORDS, PageStates};
use crate::error::LedgerError;
use crate::residency::Residency;
use crate::state::{Counts, PageState};

/// Most spaces a ledger can hold.
pub const MAX_SPACES: u8 = 16;

/// "PLIMLEDG" in ASCII, read as a big-endian number.
pub(crate) const MAGIC: u64 = 0x504c_494d_4c45_4447;
/// Changes whenever the meaning of any word does.
pub(crate) const VERSION: u64 = 2;

pub(crate) const AT_MAGIC: usize = 0;
pub(crate) const AT_VERSION: usize = 1;
pub(crate) const AT_FRAMES: usize = 2;
pub(crate) const AT_MAPS: usize = 3;
pub(crate) const AT_RESETTING: usize = 4;
pub(crate) const AT_REBOOTING: usize = 5;
pub(crate) const AT_TARGET: usize = 6;
pub(crate) const AT_SWEEP: usize = 7;
const AT_COUNTS: usize = 8;
pub(crate) const AT_RESIDENT: usize = 12;
const AT_SPACES: usize = 16;
const SPACE_WORDS: usize = 4;
pub(crate) const AT_TOTALS: usize = 80;
const AT_ENTRIES: usize = 96;

/// Low bits of a frame's word that points to a map.
const MIXED: u64 = 4;

/// What a frame's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// All pages are in this state.
    Uniform(PageState),
    /// The pages' states stand in this map.
    Mixed(u32),
}

impl Entry {
    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Uniform(state) => state.code(),
            Self::Mixed(map) => (u64::from(map) << 32) | MIXED,
        }
    }

    pub(crate) fn decode(word: u64) -> Option<Self> {
        if word & 0xffff_ffff == MIXED {
            return u32::try_from(word >> 32).ok().map(Self::Mixed);
        }
        PageState::from_code(word).map(Self::Uniform)
    }
}

/// The sizes a ledger was formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) frames: u32,
    pub(crate) maps: u32,
}

impl Layout {
    /// Words in all.
    pub(crate) fn words(self) -> Result<usize, LedgerError> {
        let too_large = LedgerError::TooLarge { frames: u64::from(self.frames), maps: u64::from(self.maps) };
        let (frames, maps) = (usize::try_from(self.frames), usize::try_from(self.maps));
        let (Ok(frames), Ok(maps)) = (frames, maps) else { return Err(too_large) };
        let maps = maps.checked_mul(MAP_WORDS).ok_or(too_large)?;
        AT_ENTRIES.checked_add(frames).and_then(|sum| sum.checked_add(maps)).ok_or(too_large)
    }

    /// Whether there is a map for every frame, so that no state is ever lost.
    pub(crate) const fn is_exact(self) -> bool {
        self.maps >= self.frames
    }

    /// The word of a frame; past the end of everything for a frame that is none.
    pub(crate) fn entry(self, frame: u64) -> usize {
        if frame >= u64::from(self.frames) {
            return usize::MAX;
        }
        usize::try_from(frame).map_or(usize::MAX, |frame| AT_ENTRIES.saturating_add(frame))
    }

    /// The first word of a map; past the end of everything for a map that is none.
    pub(crate) fn map(self, map: u32) -> usize {
        if map >= self.maps {
            return usize::MAX;
        }
        let before = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        AT_ENTRIES.saturating_add(before(self.frames)).saturating_add(before(map).saturating_mul(MAP_WORDS))
    }
}

/// The first word of a space's table entry.
pub(crate) fn space_at(space: u8) -> usize {
    AT_SPACES.saturating_add(usize::from(space).saturating_mul(SPACE_WORDS))
}

fn count_at(state: PageState) -> usize {
    AT_COUNTS.saturating_add(usize::try_from(state.code()).unwrap_or(0))
}

/// The caller's memory.
pub(crate) struct Words<W> {
    words: W,
    /// Every store in order, for the tests that cut a run short after each of them.
    #[cfg(test)]
    pub(crate) log: RefCell<alloc::vec::Vec<(usize, u64)>>,
}

impl<W: AsRef<[AtomicU64]>> Words<W> {
    pub(crate) fn new(words: W) -> Self {
        Self {
            words,
            #[cfg(test)]
            log: RefCell::default(),
        }
    }

    pub(crate) fn as_slice(&self) -> &[AtomicU64] {
        self.words.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// A word; 0, which is always harmless, past the end.
    pub(crate) fn load(&self, at: usize) -> u64 {
        load(self.as_slice(), at)
    }

    /// The only place that changes the ledger's memory.
    pub(crate) fn store(&self, at: usize, value: u64) {
        if let Some(word) = self.as_slice().get(at) {
            word.store(value, Ordering::Release);
            #[cfg(test)]
            self.log.borrow_mut().push((at, value));
        }
    }

    /// Stores unless the word already says so.
    pub(crate) fn store_changed(&self, at: usize, value: u64) {
        if self.load(at) != value {
            self.store(at, value);
        }
    }

    /// Words in a row, or zeros past the end.
    pub(crate) fn load_array<const N: usize>(&self, at: usize) -> [u64; N] {
        let mut out = [0; N];
        for (offset, word) in out.iter_mut().enumerate() {
            *word = self.load(at.saturating_add(offset));
        }
        out
    }

    /// Words in a row, ascending, each only if it changes.
    pub(crate) fn store_array(&self, at: usize, values: &[u64]) {
        for (offset, value) in values.iter().enumerate() {
            self.store_changed(at.saturating_add(offset), *value);
        }
    }

    pub(crate) fn load_map(&self, layout: Layout, map: u32) -> PageStates {
        PageStates(self.load_array(layout.map(map)))
    }

    pub(crate) fn store_counts(&self, counts: Counts) {
        for state in PageState::ALL {
            self.store_changed(count_at(state), counts.of(state).0);
        }
    }
}

fn load(words: &[AtomicU64], at: usize) -> u64 {
    words.get(at).map_or(0, |word| word.load(Ordering::Acquire))
}

/// Checks the header and gives the sizes in it.
pub(crate) fn read_header(words: &[AtomicU64]) -> Result<Layout, LedgerError> {
    let magic = load(words, AT_MAGIC);
    if magic != MAGIC {
        return Err(LedgerError::Magic(magic));
    }
    let found = load(words, AT_VERSION);
    if found != VERSION {
        return Err(LedgerError::Version { found, known: VERSION });
    }
    let (frames, maps) = (load(words, AT_FRAMES), load(words, AT_MAPS));
    let (Ok(frames), Ok(maps)) = (u32::try_from(frames), u32::try_from(maps)) else {
        return Err(LedgerError::TooLarge { frames, maps });
    };
    let layout = Layout { frames, maps };
    let need = layout.words()?;
    if words.len() < need {
        return Err(LedgerError::TooSmall { have: words.len(), need });
    }
    Ok(layout)
}

/// The counters of a ledger that another process writes, without attaching to it: for a reader that only shows them.
/// While an event is under way they may be one event old, or half of one.
///
/// # Errors
/// [`LedgerError`] if there is no ledger of this version here.
pub fn peek_counts(words: &[AtomicU64]) -> Result<Counts, LedgerError> {
    read_header(words)?;
    let mut counts = Counts::default();
    for state in PageState::ALL {
        counts.of_mut(state).0 = load(words, count_at(state));
    }
    Ok(counts)
}

/// How much memory the guest has by a ledger that another process writes, and how much it may have; like [`peek_counts`].
///
/// # Errors
/// [`LedgerError`] if there is no ledger of this version here.
pub fn peek_residency(words: &[AtomicU64]) -> Result<Residency, LedgerError> {
    read_header(words)?;
    Ok(Residency::new(load(words, AT_TARGET), load(words, AT_RESIDENT)))
}
