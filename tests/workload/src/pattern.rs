//! What is written into a page, so that every byte of it can be checked later.
//!
//! A page's words follow from (seed, page number, generation) alone, hence nothing has to be remembered of them.
//! Blocks of 32 words alternate between mixed words and one repeated word: a compressor gains about a factor of
//! two, as it does on the memory of common programs. With wholly random pages a comparison with compressed swap
//! would be unfair to it, with constant ones to everybody else.

/// Words of 8 bytes in a page of 4 KiB.
pub(crate) const WORDS: usize = 512;
/// Bytes in a page.
pub(crate) const PAGE: usize = WORDS * 8;
/// Words in a block of one kind.
const BLOCK: usize = 32;
/// The odd constant of splitmix64 (2^64 divided by the golden ratio).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finishing step of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(crate) const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What identifies a page's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Chosen by whoever asked for the memory.
    pub(crate) seed: u64,
    /// Number of the page since the worker began; no two held pages share one.
    pub(crate) page: u64,
    /// How often the page was rewritten.
    pub(crate) generation: u32,
}

impl Tag {
    fn base(self) -> u64 {
        let page = mix(self.seed.wrapping_add(GOLDEN)) ^ self.page.wrapping_mul(GOLDEN);
        mix(page ^ (u64::from(self.generation) << 40))
    }
}

/// The words of a page in order.
fn words(tag: Tag) -> impl Iterator<Item = u64> {
    let base = tag.base();
    let mut state = base;
    (0..WORDS).map(move |index| {
        if (index / BLOCK) % 2 == 1 {
            return base;
        }
        state = state.wrapping_add(GOLDEN);
        mix(state)
    })
}

/// Writes a page.
pub(crate) fn write(page: &mut [u8], tag: Tag) {
    for (place, word) in page.chunks_exact_mut(8).zip(words(tag)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// The number of bytes of the page that differ from what was written, and the offset of the first.
pub(crate) fn check(page: &[u8], tag: Tag) -> Option<(u64, usize)> {
    let mut wrong = 0_u64;
    let mut first = None;
    for (index, (place, word)) in page.chunks_exact(8).zip(words(tag)).enumerate() {
        let expected = word.to_le_bytes();
        if place == expected {
            continue;
        }
        for (byte, (a, b)) in place.iter().zip(expected).enumerate() {
            if *a != b {
                wrong += 1;
                first = first.or(Some(index * 8 + byte));
            }
        }
    }
    first.map(|offset| (wrong, offset))
}

#[cfg(test)]
mod test {
    use proptest::prelude::{any, proptest};

    use super::{PAGE, Tag, check, write};

    fn page(tag: Tag) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        write(&mut bytes, tag);
        bytes
    }

    #[test]
    fn neighbours_seeds_and_generations_differ() {
        let tag = Tag { seed: 1, page: 7, generation: 0 };
        let all = [
            tag,
            Tag { page: 8, ..tag },
            Tag { seed: 2, ..tag },
            Tag { generation: 1, ..tag },
            Tag { seed: 0, page: 0, generation: 0 },
        ];
        for (i, a) in all.iter().enumerate() {
            for b in all.iter().skip(i + 1) {
                assert!(check(&page(*a), *b).is_some(), "{a:?} reads as {b:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_found(seed in any::<u64>(), number in any::<u64>(), generation in any::<u32>(),
                                     place in 0..PAGE, flip in 1_u8..=255) {
            let tag = Tag { seed, page: number, generation };
            let mut bytes = page(tag);
            assert_eq!(check(&bytes, tag), None);
            bytes[place] ^= flip;
            assert_eq!(check(&bytes, tag), Some((1, place)));
        }
    }

    #[test]
    fn a_zeroed_page_is_wrong_nearly_everywhere() {
        let (wrong, first) = check(&vec![0; PAGE], Tag { seed: 3, page: 9, generation: 2 }).expect("differs");
        assert!(wrong > 4000, "{wrong}");
        assert!(first < 8, "{first}");
    }
}
