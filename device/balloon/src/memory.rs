//! Where a guest's addresses lie in its backing files.

use plimsoll_frames::{Extent, SpaceId};
use plimsoll_units::{Bytes, Gpa, PAGE_SIZE};

/// A piece of guest memory: addresses from `gpa` on, found in a space from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first guest physical address.
    pub gpa: Gpa,
    /// How much.
    pub len: Bytes,
    /// The backing file.
    pub space: SpaceId,
    /// Where in the file it begins.
    pub offset: Bytes,
}

impl Region {
    /// One past the last address; [`MemoryMap::new`] has checked that it exists.
    const fn end(&self) -> u64 {
        self.gpa.0.saturating_add(self.len.0)
    }

    /// The pages of the file wholly within addresses `start..end`, which lie in this region. `None` if there are none,
    /// or if guest pages and file pages do not coincide.
    fn pages(&self, start: u64, end: u64) -> Option<Extent> {
        let offset_of = |gpa: u64| gpa.checked_sub(self.gpa.0)?.checked_add(self.offset.0);
        let start = start.checked_next_multiple_of(PAGE_SIZE)?;
        let end = end.checked_sub(end % PAGE_SIZE)?;
        let first = offset_of(start)?;
        let count = end.checked_sub(start)? / PAGE_SIZE;
        (count > 0 && first.is_multiple_of(PAGE_SIZE)).then_some(Extent {
            space: self.space,
            first: first / PAGE_SIZE,
            count,
        })
    }
}

/// Why regions are no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Nothing in it.
    #[error("the memory region at guest address {:#x} is empty", .0.gpa.0)]
    Empty(Region),
    /// It leaves 64 bits.
    #[error("the memory region at guest address {:#x} with {} bytes at file offset {} leaves 64 bits", .0.gpa.0, .0.len.0, .0.offset.0)]
    Overflow(Region),
    /// Two regions share addresses.
    #[error("the memory regions at guest addresses {:#x} and {:#x} overlap", .0.gpa.0, .1.gpa.0)]
    Overlap(Region, Region),
}

/// What a page number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// This page of this space.
    Page(SpaceId, u64),
    /// No memory there.
    Outside,
    /// Memory, but no whole page of one file.
    Straddles,
}

/// All memory of a guest. Regions need not be aligned: pages that do not lie wholly in one region are no pages for a balloon.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    /// Ascending by address, without overlap.
    regions: Vec<Region>,
}

impl MemoryMap {
    /// A map of these regions, in any order. Several may lie in one space.
    ///
    /// # Errors
    /// [`MapError`] if a region is empty, leaves 64 bits, or overlaps another.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MapError> {
        regions.sort_by_key(|region| region.gpa);
        for region in &regions {
            if region.len == Bytes::ZERO {
                return Err(MapError::Empty(*region));
            }
            let fits = |start: u64| start.checked_add(region.len.0).is_some();
            if !fits(region.gpa.0) || !fits(region.offset.0) {
                return Err(MapError::Overflow(*region));
            }
        }
        for pair in regions.array_windows::<2>() {
            let [lower, upper] = pair;
            if lower.end() > upper.gpa.0 {
                return Err(MapError::Overlap(*lower, *upper));
            }
        }
        Ok(Self { regions })
    }

    /// The regions, ascending by address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Pages of 4 KiB in all regions.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.regions.iter().map(|region| region.len).sum::<Bytes>().pages_floor().0
    }

    /// The regions that end above `gpa`, ascending.
    fn from(&self, gpa: u64) -> impl Iterator<Item = &Region> {
        self.regions.iter().skip(self.regions.partition_point(|region| region.end() <= gpa))
    }

    /// The page at a guest physical address that is a multiple of 4 KiB.
    #[must_use]
    pub fn page(&self, gpa: Gpa) -> Lookup {
        let end = gpa.0.saturating_add(PAGE_SIZE);
        match self.from(gpa.0).next() {
            Some(region) if region.gpa.0 <= gpa.0 && end <= region.end() => region
                .pages(gpa.0, end)
                .map_or(Lookup::Straddles, |extent| Lookup::Page(extent.space, extent.first)),
            Some(region) if region.gpa.0 < end => Lookup::Straddles,
            Some(_) | None => Lookup::Outside,
        }
    }

    /// Hands out the whole pages in `len` bytes from `gpa` on, region by region, ascending. Returns how many bytes they
    /// cover; fewer than `len` when the range leaves the memory or begins or ends within a page.
    pub fn range(&self, gpa: Gpa, len: Bytes, mut each: impl FnMut(Extent)) -> Bytes {
        let end = gpa.0.saturating_add(len.0);
        let mut covered = 0u64;
        for region in self.from(gpa.0).take_while(|region| region.gpa.0 < end) {
            if let Some(extent) = region.pages(gpa.0.max(region.gpa.0), end.min(region.end())) {
                covered = covered.saturating_add(extent.count.saturating_mul(PAGE_SIZE));
                each(extent);
            }
        }
        Bytes(covered)
    }
}

#[cfg(test)]
mod test {
    use std::sync::atomic::AtomicU64;

    use plimsoll_frames::{Granule, Ledger, SpaceKey};
    use plimsoll_units::PageCount;
    use proptest::prelude::*;

    use super::*;

    fn spaces() -> Vec<SpaceId> {
        let words: Vec<_> = (0..Ledger::words_needed(4, 4).unwrap()).map(|_| AtomicU64::new(0)).collect();
        let mut ledger = Ledger::format(words, 4, 4).unwrap();
        let mut add =
            |inode| ledger.add_space(SpaceKey { device: 0, inode }, PageCount(1), Granule::Page).unwrap();
        vec![add(0), add(1)]
    }

    /// Regions one after the other, with gaps or none, mostly aligned to 1 KiB so that halves of pages occur.
    fn regions() -> impl Strategy<Value = Vec<Region>> {
        let part = (prop_oneof![Just(0u64), 0u64..12], 1u64..40, 0usize..2, 0u64..40);
        prop::collection::vec(part, 0..6).prop_map(|parts| {
            let spaces = spaces();
            let mut at = 1 << 20;
            let mut regions = Vec::new();
            for (gap, len, space, offset) in parts {
                let gpa = at + (gap << 10);
                at = gpa + (len << 10);
                let (len, offset) = (Bytes::kib(len), Bytes::kib(offset));
                regions.push(Region { gpa: Gpa(gpa), len, space: spaces[space], offset });
            }
            regions
        })
    }

    /// What the byte at an address is: its file and its place there.
    fn byte(regions: &[Region], gpa: u64) -> Option<(usize, SpaceId, u64)> {
        let at = regions.iter().position(|r| (r.gpa.0..r.gpa.0 + r.len.0).contains(&gpa))?;
        let region = regions[at];
        Some((at, region.space, gpa - region.gpa.0 + region.offset.0))
    }

    /// The page at an address, by looking at each KiB of it.
    fn page(regions: &[Region], gpa: u64) -> Lookup {
        let pieces: Vec<_> = (0..4).map(|n| byte(regions, gpa + n * 1024)).collect();
        match pieces[0] {
            _ if pieces.iter().all(Option::is_none) => Lookup::Outside,
            Some((at, space, offset))
                if offset.is_multiple_of(PAGE_SIZE)
                    && pieces.iter().all(|piece| piece.is_some_and(|piece| piece.0 == at)) =>
            {
                Lookup::Page(space, offset / PAGE_SIZE)
            }
            Some(_) | None => Lookup::Straddles,
        }
    }

    proptest! {
        #[test]
        fn a_page_is_what_its_bytes_are(mut regions in regions(), numbers in prop::collection::vec(250u64..330, 0..60)) {
            let expected: Vec<_> = numbers.iter().map(|n| page(&regions, n * PAGE_SIZE)).collect();
            regions.reverse();
            let map = MemoryMap::new(regions).unwrap();
            let found: Vec<_> = numbers.iter().map(|n| map.page(Gpa(n * PAGE_SIZE))).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_range_is_its_whole_pages(regions in regions(), start in 0u64..400, len in 0u64..400, odd in 0u64..1024) {
            let (start, len) = ((1 << 20) + (start << 10) - 16384 + odd, len << 10);
            let mut expected = Vec::new();
            for gpa in (start.next_multiple_of(PAGE_SIZE)..(start + len) / PAGE_SIZE * PAGE_SIZE).step_by(4096) {
                if let Lookup::Page(space, page) = page(&regions, gpa) {
                    expected.push((space, page));
                }
            }
            let map = MemoryMap::new(regions).unwrap();
            let mut found = Vec::new();
            let covered = map.range(Gpa(start), Bytes(len), |extent| {
                found.extend((extent.first..extent.end()).map(|page| (extent.space, page)));
            });
            prop_assert_eq!(covered.pages_floor().0, u64::try_from(found.len()).unwrap());
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn regions_that_overlap_are_refused(mut regions in regions(), which in any::<prop::sample::Index>()) {
            prop_assume!(!regions.is_empty());
            let twice = regions[which.index(regions.len())];
            regions.push(Region { gpa: Gpa(twice.gpa.0 + twice.len.0 - 1), ..twice });
            prop_assert!(matches!(MemoryMap::new(regions), Err(MapError::Overlap(..))));
        }
    }
}
