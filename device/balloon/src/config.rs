//! The device's configuration space, kept in words that outlive this process.

use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll_units::{BalloonSize, PageCount};

/// Length of the configuration space in bytes: `struct virtio_balloon_config` of Linux'
/// `include/uapi/linux/virtio_balloon.h`; virtio 1.3, 5.5.4.
const SPACE: usize = 16;
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;
const POISON_VAL: usize = 12;

/// The words, in order.
const WORD_NUM_PAGES: usize = 0;
const WORD_ACTUAL: usize = 1;
const WORD_POISON: usize = 2;
const WORD_GENERATION: usize = 3;

/// Why words cannot be a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few.
    #[error("the balloon's configuration takes 4 words of shared memory, there are {0}")]
    TooSmall(usize),
    /// A 32-bit field holds more than 32 bits.
    #[error("field {field} of the balloon's configuration in shared memory is damaged: {value:#x}")]
    Damaged {
        /// Which word.
        field: usize,
        /// What stands there.
        value: u64,
    },
}

/// Which fields of a guest's write were taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// `actual`, the balloon's size as the guest counts it.
    pub actual: bool,
    /// `poison_val`.
    pub poison_val: bool,
}

impl Accepted {
    /// Whether anything was.
    #[must_use]
    pub const fn any(self) -> bool {
        self.actual || self.poison_val
    }
}

/// The configuration fields: `num_pages` (the device's wish), `actual` and `poison_val` (the guest's word), and a generation that
/// rises whenever `num_pages` changes. One word each, so each changes with one store; zeroed words are a fresh device's.
pub struct SharedConfig<W> {
    words: W,
}

impl SharedConfig<()> {
    /// Words it takes.
    pub const WORDS: usize = 4;
}

impl<W: AsRef<[AtomicU64]>> SharedConfig<W> {
    /// Takes over what is in the words.
    ///
    /// # Errors
    /// [`ConfigError`] if there are too few, or values that no balloon has.
    pub fn new(words: W) -> Result<Self, ConfigError> {
        let slice = words.as_ref();
        if slice.len() < SharedConfig::WORDS {
            return Err(ConfigError::TooSmall(slice.len()));
        }
        for (field, word) in slice.iter().enumerate().take(WORD_GENERATION) {
            let value = word.load(Ordering::Acquire);
            if value > u64::from(u32::MAX) {
                return Err(ConfigError::Damaged { field, value });
            }
        }
        Ok(Self { words })
    }

    fn load(&self, at: usize) -> u64 {
        self.words.as_ref().get(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, at: usize, value: u64) {
        if let Some(word) = self.words.as_ref().get(at) {
            word.store(value, Ordering::Release);
        }
    }

    /// A 32-bit field; all ones should somebody have written more.
    fn field(&self, at: usize) -> u32 {
        u32::try_from(self.load(at)).unwrap_or(u32::MAX)
    }

    /// Pages the guest is asked to give up.
    #[must_use]
    pub fn num_pages(&self) -> BalloonSize {
        BalloonSize(PageCount(u64::from(self.field(WORD_NUM_PAGES))))
    }

    /// Asks for a balloon of this size; more than 2^32 - 1 pages is cut to that. True if it is another one than before: then the driver
    /// must be told that the configuration changed.
    pub fn set_num_pages(&self, size: BalloonSize) -> bool {
        let value = u64::from(size.config_field());
        if self.load(WORD_NUM_PAGES) == value {
            return false;
        }
        self.store(WORD_NUM_PAGES, value);
        self.store(WORD_GENERATION, self.generation().wrapping_add(1));
        true
    }

    /// Pages in the balloon, by the guest's own count: a claim, not a measurement.
    #[must_use]
    pub fn actual(&self) -> BalloonSize {
        BalloonSize(PageCount(u64::from(self.field(WORD_ACTUAL))))
    }

    /// What the guest's free pages hold, in each 32 bits. Means something only if `PAGE_POISON` was negotiated.
    #[must_use]
    pub fn poison_val(&self) -> u32 {
        self.field(WORD_POISON)
    }

    /// Rises by one whenever `num_pages` changes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.load(WORD_GENERATION)
    }

    /// The guest has begun anew: its balloon is empty. The wish stays, and so does `poison_val`: a transport may reset the device
    /// after the driver has written it, a driver that negotiates `PAGE_POISON` writes it anew before it starts the device (virtio
    /// 1.3, 5.5.6, Page Poison), and a stale value only keeps reports from being discarded.
    pub(crate) fn reset_actual(&self) {
        self.store(WORD_ACTUAL, 0);
    }

    /// Fills `buf` from the configuration space, beginning at `offset`; zeros past its end. `free_page_hint_cmd_id` (offset 8)
    /// reads 0, which is "stop".
    pub fn read(&self, offset: u32, buf: &mut [u8]) {
        let mut space = [0u8; SPACE];
        for (at, field) in [(NUM_PAGES, WORD_NUM_PAGES), (ACTUAL, WORD_ACTUAL), (POISON_VAL, WORD_POISON)] {
            for (byte, value) in space.iter_mut().skip(at).zip(self.field(field).to_le_bytes()) {
                *byte = value;
            }
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = space.iter().skip(from).copied().chain(std::iter::repeat(0));
        for (byte, value) in buf.iter_mut().zip(source) {
            *byte = value;
        }
    }

    /// Takes over what a guest may write: `actual` and `poison_val`, each only when the write covers it whole. User Mode Linux writes the
    /// four bytes of a field; QEMU passes the whole space from its cache, whose `num_pages` may be an old one: that
    /// and the rest is never taken from a guest.
    pub fn write(&self, offset: u32, bytes: &[u8]) -> Accepted {
        let actual = covered(offset, bytes, ACTUAL);
        let poison_val = covered(offset, bytes, POISON_VAL);
        if let Some(value) = actual {
            self.store(WORD_ACTUAL, u64::from(value));
        }
        if let Some(value) = poison_val {
            self.store(WORD_POISON, u64::from(value));
        }
        Accepted { actual: actual.is_some(), poison_val: poison_val.is_some() }
    }
}

/// The field at `at`, if a write of `bytes` at `offset` covers all four bytes of it.
fn covered(offset: u32, bytes: &[u8], at: usize) -> Option<u32> {
    let start = at.checked_sub(usize::try_from(offset).ok()?)?;
    let field = bytes.get(start..start.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn config() -> SharedConfig<Vec<AtomicU64>> {
        SharedConfig::new((0..SharedConfig::WORDS).map(|_| AtomicU64::new(0)).collect()).unwrap()
    }

    fn size(pages: u64) -> BalloonSize {
        BalloonSize(PageCount(pages))
    }

    #[test]
    fn num_pages_is_the_devices_alone() {
        let config = config();
        assert!(config.set_num_pages(size(77)));
        assert!(!config.set_num_pages(size(77)));
        assert_eq!(config.generation(), 1);
        let mut whole = [0xee; 16];
        whole[4..8].copy_from_slice(&5u32.to_le_bytes());
        assert_eq!(config.write(0, &whole), Accepted { actual: true, poison_val: true });
        assert_eq!(
            (config.num_pages(), config.actual(), config.poison_val()),
            (size(77), size(5), 0xeeee_eeee)
        );
        assert!(!config.write(0, &[1, 2, 3, 4]).any());
        assert!(!config.write(8, &[1, 2, 3, 4]).any());
        assert!(!config.write(5, &[1, 2, 3]).any());
        assert!(!config.write(u32::MAX, &[1, 2, 3, 4]).any());
        assert_eq!(config.write(4, &9u32.to_le_bytes()), Accepted { actual: true, poison_val: false });
        assert_eq!((config.num_pages(), config.actual(), config.generation()), (size(77), size(9), 1));
    }

    #[test]
    fn a_wish_too_large_for_the_field_is_cut() {
        let config = config();
        config.set_num_pages(size(1 << 40));
        assert_eq!(config.num_pages(), size(u64::from(u32::MAX)));
    }

    #[test]
    fn damaged_words_are_refused() {
        assert!(matches!(SharedConfig::new(Vec::new()), Err(ConfigError::TooSmall(0))));
        let words: Vec<_> = [0, 1 << 40, 0, u64::MAX].into_iter().map(AtomicU64::new).collect();
        assert!(matches!(SharedConfig::new(words), Err(ConfigError::Damaged { field: 1, .. })));
    }

    proptest! {
        #[test]
        fn any_read_is_a_part_of_the_space_and_then_zeros(
            fields in any::<[u32; 3]>(), offset in 0u32..40, len in 0usize..300,
        ) {
            let config = config();
            config.set_num_pages(size(u64::from(fields[0])));
            config.write(4, &fields[1].to_le_bytes());
            config.write(12, &fields[2].to_le_bytes());
            let mut want = Vec::new();
            for field in [fields[0], fields[1], 0, fields[2]] {
                want.extend(field.to_le_bytes());
            }
            want.resize(400, 0);
            let mut got = vec![0xaa; len];
            config.read(offset, &mut got);
            let from = usize::try_from(offset).unwrap();
            prop_assert_eq!(&got[..], &want[from..from + len]);
        }

        #[test]
        fn any_write_changes_at_most_the_guests_fields(
            offset in any::<u32>(), small in 0u32..20, near in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let config = config();
            config.set_num_pages(size(3));
            let accepted = config.write(if near { small } else { offset }, &bytes);
            prop_assert_eq!((config.num_pages(), config.generation()), (size(3), 1));
            prop_assert!(accepted.actual || config.actual() == size(0));
            prop_assert!(accepted.poison_val || config.poison_val() == 0);
        }
    }
}
