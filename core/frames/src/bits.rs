//! Sets of pages within one frame, and the states of a frame's pages.

use core::ops::Range;

use plimsoll_units::PageCount;

use crate::state::{Counts, PageState};

/// Words of a map: 512 pages of two bits.
pub(crate) const MAP_WORDS: usize = 16;

/// Every second bit: the low bits of 32 two-bit codes.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// A set of pages of one frame; bit `n` of word `w` is page `64 * w + n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageMask([u64; 8]);

impl PageMask {
    /// No page.
    pub(crate) const EMPTY: Self = Self([0; 8]);

    /// Pages `0..n`; all 512 for anything larger.
    pub(crate) fn first(n: u64) -> Self {
        let mut left = n;
        let mut mask = Self::EMPTY;
        for word in &mut mask.0 {
            let here = u32::try_from(left.min(64)).unwrap_or(64);
            *word = u64::MAX.checked_shr(64u32.saturating_sub(here)).unwrap_or(0);
            left = left.saturating_sub(64);
        }
        mask
    }

    /// The pages of a range.
    pub(crate) fn range(pages: &Range<u64>) -> Self {
        Self::first(pages.end).minus(Self::first(pages.start))
    }

    /// One page.
    pub(crate) fn single(page: u64) -> Self {
        Self::range(&(page..page.saturating_add(1)))
    }

    /// The pages for which `holds` is true, asked in order.
    pub(crate) fn of_pages(holds: impl Iterator<Item = bool>) -> Self {
        let mut mask = Self::EMPTY;
        let mut holds = holds;
        for word in &mut mask.0 {
            for bit in 0..64u32 {
                if holds.next() == Some(true) {
                    *word |= 1u64.rotate_left(bit);
                }
            }
        }
        mask
    }

    /// For each of the 512 pages whether it is in the set.
    pub(crate) fn pages(self) -> impl Iterator<Item = bool> {
        self.0.into_iter().flat_map(|word| (0..64u32).map(move |bit| word.rotate_right(bit) & 1 == 1))
    }

    fn zip(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let mut mask = self;
        for (word, with) in mask.0.iter_mut().zip(other.0) {
            *word = join(*word, with);
        }
        mask
    }

    pub(crate) fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// Whether every page of `other` is in this set.
    pub(crate) fn covers(self, other: Self) -> bool {
        other.minus(self).is_empty()
    }

    /// Whether the sets have a page in common.
    pub(crate) fn meets(self, other: Self) -> bool {
        !self.and(other).is_empty()
    }

    pub(crate) fn count(self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first page at or after `from` that is in the set.
    fn next(self, from: u64) -> Option<u64> {
        let after = self.minus(Self::first(from));
        let mut base = 0u64;
        for word in after.0 {
            if word != 0 {
                return Some(base.saturating_add(u64::from(word.trailing_zeros())));
            }
            base = base.saturating_add(64);
        }
        None
    }

    /// From the first page of the set to its last.
    pub(crate) fn hull(self) -> Range<u64> {
        let mut runs = self.runs();
        let first = runs.next().unwrap_or(0..0);
        first.start..runs.last().map_or(first.end, |last| last.end)
    }

    /// The run of neighbours that `page` is part of, cut to `most` pages: those from `page` on first, because
    /// memory is mostly touched upwards, then those below. `None` if the page is not in the set.
    pub(crate) fn run_at(self, page: u64, most: u64) -> Option<Range<u64>> {
        let run = self.runs().find(|run| run.contains(&page))?;
        let end = run.end.min(page.saturating_add(most.max(1)));
        let below = most.saturating_sub(end.saturating_sub(page));
        Some(run.start.max(page.saturating_sub(below))..end)
    }

    /// The set as runs of neighbours, ascending.
    pub(crate) fn runs(self) -> impl Iterator<Item = Range<u64>> {
        let gaps = Self::first(512).minus(self);
        let mut from = 0;
        core::iter::from_fn(move || {
            let start = self.next(from)?;
            let end = gaps.next(start).unwrap_or(512);
            from = end;
            Some(start..end)
        })
    }
}

/// The states of a frame's 512 pages, two bits each, page 0 in the lowest bits of the first word: the form
/// in which a map is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageStates(pub(crate) [u64; MAP_WORDS]);

impl PageStates {
    /// The pages in `valid` in one state; the rest, beyond the end of the space, is zero.
    pub(crate) fn uniform(state: PageState, valid: PageMask) -> Self {
        let mut states = Self([0; MAP_WORDS]);
        states.set(valid, state);
        states
    }

    /// The pages in a state.
    pub(crate) fn mask(&self, state: PageState) -> PageMask {
        let pattern = LOW_BITS.wrapping_mul(state.code());
        let matching = |word: u64| {
            let same = !(word ^ pattern);
            gather(same & (same >> 1))
        };
        let mut mask = PageMask::EMPTY;
        for (out, [low, high]) in mask.0.iter_mut().zip(self.0.as_chunks::<2>().0) {
            *out = matching(*low) | (matching(*high) << 32);
        }
        mask
    }

    /// The pages of `valid` that are `Present`; beyond the end of a space the stored form has that code too.
    pub(crate) fn present(&self, valid: PageMask) -> PageMask {
        self.mask(PageState::Present).and(valid)
    }

    /// Puts the pages of `mask` into `state`.
    pub(crate) fn set(&mut self, mask: PageMask, state: PageState) {
        let put = |word: &mut u64, half: u64| {
            let low = spread(half);
            *word =
                (*word & !(low | (low << 1))) | (LOW_BITS.wrapping_mul(state.code()) & (low | (low << 1)));
        };
        for (bits, [low, high]) in mask.0.iter().zip(self.0.as_chunks_mut::<2>().0) {
            put(low, bits & 0xffff_ffff);
            put(high, bits >> 32);
        }
    }

    /// The pages of `valid` by state.
    pub(crate) fn counts(&self, valid: PageMask) -> Counts {
        let mut counts = Counts::default();
        for state in PageState::ALL {
            *counts.of_mut(state) = PageCount(self.mask(state).and(valid).count());
        }
        counts
    }

    /// The state all pages of `valid` share, if they do.
    pub(crate) fn shared(&self, valid: PageMask) -> Option<PageState> {
        PageState::ALL.into_iter().find(|&state| valid.minus(self.mask(state)).is_empty())
    }
}

/// Moves the low 32 bits to the even places.
const fn spread(bits: u64) -> u64 {
    let bits = bits & 0xffff_ffff;
    let bits = (bits | (bits << 16)) & 0x0000_ffff_0000_ffff;
    let bits = (bits | (bits << 8)) & 0x00ff_00ff_00ff_00ff;
    let bits = (bits | (bits << 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    let bits = (bits | (bits << 2)) & 0x3333_3333_3333_3333;
    (bits | (bits << 1)) & LOW_BITS
}

/// Moves the even bits to the low 32 places.
const fn gather(bits: u64) -> u64 {
    let bits = bits & LOW_BITS;
    let bits = (bits | (bits >> 1)) & 0x3333_3333_3333_3333;
    let bits = (bits | (bits >> 2)) & 0x0f0f_0f0f_0f0f_0f0f;
    let bits = (bits | (bits >> 4)) & 0x00ff_00ff_00ff_00ff;
    let bits = (bits | (bits >> 8)) & 0x0000_ffff_0000_ffff;
    (bits | (bits >> 16)) & 0xffff_ffff
}

#[cfg(test)]
mod test {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn state() -> impl Strategy<Value = PageState> {
        prop::sample::select(&PageState::ALL[..])
    }

    proptest! {
        #[test]
        fn runs_are_the_set_again(bits in any::<[u64; 8]>()) {
            let mask = PageMask(bits);
            let mut again = PageMask::EMPTY;
            let mut end = None;
            for run in mask.runs() {
                prop_assert!(run.start < run.end && end.is_none_or(|end| end < run.start));
                end = Some(run.end);
                again = again.or(PageMask::range(&run));
            }
            prop_assert_eq!(again, mask);
        }

        #[test]
        fn a_run_around_a_page_is_as_long_as_it_may_be(bits in any::<[u64; 8]>(), page in 0u64..512, most in 0u64..600) {
            let mask = PageMask(bits);
            let Some(run) = mask.run_at(page, most) else {
                prop_assert!(!mask.meets(PageMask::single(page)));
                return Ok(());
            };
            prop_assert!(run.contains(&page) && mask.covers(PageMask::range(&run)));
            let full = mask.runs().find(|full| full.contains(&page)).unwrap();
            let len = run.end - run.start;
            prop_assert_eq!(len, most.max(1).min(full.end - full.start));
            prop_assert!(run.start == page || run.end == full.end);
        }

        #[test]
        fn a_page_has_the_state_it_was_put_in(steps in prop::collection::vec((0u64..512, 0u64..=512, state()), 0..20)) {
            let all = PageMask::first(512);
            let mut model = [PageState::Present; 512];
            let mut states = PageStates::uniform(PageState::Present, all);
            for (start, end, to) in steps {
                states.set(PageMask::range(&(start..end)), to);
                for page in start..end {
                    model[usize::try_from(page).unwrap()] = to;
                }
            }
            for s in PageState::ALL {
                let want = PageMask::of_pages(model.iter().map(|&m| m == s));
                prop_assert_eq!(states.mask(s), want);
                prop_assert_eq!(states.counts(all).of(s).0, want.count());
            }
            let uniform = PageState::ALL.into_iter().find(|s| model.iter().all(|m| m == s));
            prop_assert_eq!(states.shared(all), uniform);
        }
    }

    #[test]
    fn ranges_at_the_edges() {
        assert!(PageMask::first(0).is_empty());
        assert_eq!(PageMask::first(512).count(), 512);
        assert_eq!(PageMask::first(1000), PageMask::first(512));
        let across: Vec<_> = PageMask::range(&(63..65)).runs().map(|run| (run.start, run.end)).collect();
        assert_eq!(across, [(63, 65)]);
        assert!(PageMask::range(&(9..9)).is_empty());
    }
}
