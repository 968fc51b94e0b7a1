//! What lies where in the memory that a keeper and its back ends share.
//!
//! The keeper makes and formats it, and writes the header; everything else is written
//! by the one back end that lives. Positions are fixed by the header, there are no pointers, and every part
//! is published by a single store, so that a back end may be killed between any two.
//!
//! | words | what | lives until |
//! | --- | --- | --- |
//! | 64 | header: what this is, sizes, epoch; for each device its generation, how often it was to be cleared, and whether a front end is there | the keeper ends |
//! | 64 for each device | the device's own: its configuration space, which clearing it has carried out | the keeper ends |
//! | 8 × 264 for each device | its rings, see [`crate::Ring`] | the front end's next connection |
//! | the rest | the ledger | the front end's next connection |

use std::sync::atomic::Ordering::SeqCst;

use plimsoll_shm::SharedWords;

/// The most rings a device has: a balloon has at most 5.
pub const MAX_RINGS: usize = 8;

/// The most descriptors a ring has: what User Mode Linux asks for; QEMU asks for no more than it is told.
pub const MAX_RING_SIZE: u16 = 256;

/// Words of a ring: 8, and one for each descriptor.
pub const RING_WORDS: usize = 8 + 256;

/// Words of a device's own.
pub const PRIVATE_WORDS: usize = 64;

/// The most devices of one VM: the header has room for their generations, and one message for their sockets.
pub const MAX_DEVICES: usize = 4;

const HEADER_WORDS: usize = 64;

/// "PLIMSOLL" in ASCII.
const MAGIC: u64 = 0x504c_494d_534f_4c4c;

/// The layout's version: changes with the meaning of any word.
const VERSION: u64 = 1;

/// Positions in the header.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 1;
    pub(super) const DEVICES: usize = 2;
    pub(super) const LEDGER_WORDS: usize = 3;
    pub(super) const EPOCH: usize = 4;
    pub(super) const GENERATION: usize = 16;
    pub(super) const CLEARINGS: usize = 24;
    pub(super) const CONNECTED: usize = 32;
}

/// Why memory is not laid out as expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More devices or a larger ledger than there is a layout for.
    #[error("there is no layout for {devices} devices and a ledger of {ledger_words} words")]
    Impossible {
        /// How many devices.
        devices: usize,
        /// The ledger's words.
        ledger_words: usize,
    },
    /// The memory was never formatted, or by another version of this program.
    #[error("shared memory has the mark {magic:#x} and version {version}, not those of this program")]
    Foreign {
        /// Where the magic should be.
        magic: u64,
        /// Where the version should be.
        version: u64,
    },
    /// The header speaks of more, or less, than there is.
    #[error("shared memory has {found} words where its header needs {wanted}")]
    Size {
        /// What the header needs.
        wanted: usize,
        /// What there is.
        found: usize,
    },
}

/// The memory's parts.
#[derive(Clone, Debug)]
pub struct Layout {
    words: SharedWords,
    devices: usize,
    ledger_words: usize,
}

impl Layout {
    /// How many words are needed for so many devices and a ledger of so many words.
    ///
    /// # Errors
    /// When there is no such layout.
    pub fn words_needed(devices: usize, ledger_words: usize) -> Result<usize, LayoutError> {
        let impossible = LayoutError::Impossible { devices, ledger_words };
        if devices == 0 || devices > MAX_DEVICES {
            return Err(impossible);
        }
        let fixed = HEADER_WORDS + devices * (PRIVATE_WORDS + MAX_RINGS * RING_WORDS);
        fixed.checked_add(ledger_words).ok_or(impossible)
    }

    /// Lays out fresh memory of exactly the size needed, all words zero.
    ///
    /// # Errors
    /// When it has another size.
    pub fn format(words: SharedWords, devices: usize, ledger_words: usize) -> Result<Self, LayoutError> {
        let layout = Self::of(words, devices, ledger_words)?;
        layout.put(at::DEVICES, devices);
        layout.put(at::LEDGER_WORDS, ledger_words);
        layout.store(at::VERSION, VERSION);
        layout.store(at::MAGIC, MAGIC);
        Ok(layout)
    }

    /// Finds the parts of memory that a keeper has laid out.
    ///
    /// # Errors
    /// When it is not laid out, or not as this program does it.
    pub fn attach(words: SharedWords) -> Result<Self, LayoutError> {
        let read = |index: usize| words.get(index).map_or(0, |word| word.load(SeqCst));
        let (magic, version) = (read(at::MAGIC), read(at::VERSION));
        if (magic, version) != (MAGIC, VERSION) {
            return Err(LayoutError::Foreign { magic, version });
        }
        let size = |index: usize| usize::try_from(read(index)).unwrap_or(usize::MAX);
        let (devices, ledger_words) = (size(at::DEVICES), size(at::LEDGER_WORDS));
        Self::of(words, devices, ledger_words)
    }

    fn of(words: SharedWords, devices: usize, ledger_words: usize) -> Result<Self, LayoutError> {
        let wanted = Self::words_needed(devices, ledger_words)?;
        let found = words.len();
        if found != wanted {
            return Err(LayoutError::Size { wanted, found });
        }
        Ok(Self { words, devices, ledger_words })
    }

    /// How many devices there are.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices
    }

    /// How often a back end was started: 1 for the first.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.load(at::EPOCH)
    }

    /// Counts a start. The keeper does, before it starts a back end.
    pub fn begin_epoch(&self) {
        self.store(at::EPOCH, self.epoch().saturating_add(1));
    }

    /// How often a front end connected to a device: 0 before the first.
    #[must_use]
    pub fn generation(&self, device: usize) -> u64 {
        self.load(at::GENERATION + device)
    }

    /// Whether a front end is connected to a device.
    #[must_use]
    pub fn is_connected(&self, device: usize) -> bool {
        self.load(at::CONNECTED + device) != 0
    }

    /// How often a device was to be cleared.
    #[must_use]
    pub fn clearings(&self, device: usize) -> u64 {
        self.load(at::CLEARINGS + device)
    }

    /// A front end has connected to a device. The keeper says so.
    pub fn connected(&self, device: usize) {
        self.store(at::GENERATION + device, self.generation(device).saturating_add(1));
        self.store(at::CONNECTED + device, 1);
    }

    /// A front end is gone, and with it the guest that had these rings and this memory. The keeper says so while no back end
    /// lives; the next one clears what belonged to that guest before it does anything else.
    pub fn disconnected(&self, device: usize) {
        self.store(at::CONNECTED + device, 0);
        self.store(at::CLEARINGS + device, self.clearings(device).saturating_add(1));
    }

    /// A device's own words. None if there is no such device.
    #[must_use]
    pub fn private(&self, device: usize) -> Option<SharedWords> {
        let start = HEADER_WORDS + device.checked_mul(PRIVATE_WORDS)?;
        (device < self.devices).then(|| self.words.piece(start, PRIVATE_WORDS))?
    }

    /// The words of a device's ring. None if there is no such device or ring.
    #[must_use]
    pub fn ring(&self, device: usize, ring: usize) -> Option<SharedWords> {
        if device >= self.devices || ring >= MAX_RINGS {
            return None;
        }
        let rings = HEADER_WORDS + self.devices * PRIVATE_WORDS;
        self.words.piece(rings + (device * MAX_RINGS + ring) * RING_WORDS, RING_WORDS)
    }

    /// The ledger's words.
    #[must_use]
    pub fn ledger(&self) -> Option<SharedWords> {
        self.words.piece(self.words.len().checked_sub(self.ledger_words)?, self.ledger_words)
    }

    fn load(&self, index: usize) -> u64 {
        self.words.get(index).filter(|_| index < HEADER_WORDS).map_or(0, |word| word.load(SeqCst))
    }

    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.words.get(index).filter(|_| index < HEADER_WORDS) {
            word.store(value, SeqCst);
        }
    }

    fn put(&self, index: usize, value: usize) {
        self.store(index, u64::try_from(value).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn fresh(devices: usize, ledger_words: usize) -> SharedWords {
        let words = Layout::words_needed(devices, ledger_words).unwrap();
        SharedWords::create("plimsoll-test", words).unwrap().0
    }

    #[test]
    fn parts_do_not_overlap_and_fill_the_memory() {
        let words = fresh(3, 1000);
        let layout = Layout::format(words.clone(), 3, 1000).unwrap();
        let mut parts = vec![layout.ledger().unwrap()];
        for device in 0..3 {
            parts.push(layout.private(device).unwrap());
            parts.extend((0..MAX_RINGS).map(|ring| layout.ring(device, ring).unwrap()));
        }
        assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>() + HEADER_WORDS, words.len());
        for part in &parts {
            part.iter().for_each(|word| assert_eq!(word.fetch_add(1, SeqCst), 0, "used by two parts"));
        }
        assert_eq!(Layout::attach(words).unwrap().devices(), 3, "the header is not part of any");
        assert!(layout.private(3).is_none() && layout.ring(3, 0).is_none() && layout.ring(0, 8).is_none());
    }

    #[test]
    fn epochs_and_generations_are_counted_and_seen_by_others() {
        let words = fresh(2, 0);
        let keeper = Layout::format(words.clone(), 2, 0).unwrap();
        keeper.begin_epoch();
        keeper.begin_epoch();
        keeper.connected(1);
        let back_end = Layout::attach(words).unwrap();
        assert_eq!((back_end.epoch(), back_end.generation(0), back_end.generation(1)), (2, 0, 1));
        assert!(!back_end.is_connected(0) && back_end.is_connected(1));
        keeper.disconnected(1);
        keeper.connected(1);
        assert_eq!((back_end.clearings(0), back_end.clearings(1), back_end.generation(1)), (0, 1, 2));
    }

    #[test]
    fn what_was_not_laid_out_is_refused() {
        assert!(matches!(Layout::attach(fresh(1, 10)), Err(LayoutError::Foreign { magic: 0, .. })));
        let words = fresh(1, 10);
        Layout::format(words.clone(), 1, 10).unwrap();
        words[at::LEDGER_WORDS].store(11, SeqCst);
        assert!(matches!(Layout::attach(words.clone()), Err(LayoutError::Size { .. })));
        words[at::LEDGER_WORDS].store(u64::MAX, SeqCst);
        assert!(matches!(Layout::attach(words.clone()), Err(LayoutError::Impossible { .. })));
        words[at::DEVICES].store(9, SeqCst);
        assert!(matches!(Layout::attach(words), Err(LayoutError::Impossible { devices: 9, .. })));
        assert!(matches!(Layout::format(fresh(1, 9), 1, 10), Err(LayoutError::Size { .. })));
    }
}
