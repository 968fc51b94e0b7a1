//! The events, and the ledger's rules without any thought for space, time or crashes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_units::{PAGES_PER_FRAME, PageCount};
use proptest::prelude::*;

use super::key;
use crate::{Counts, Extent, Granule, PageState, Reuse, SpaceId, SpaceKey, Tally};

pub(super) type Page = (SpaceId, u64);

#[derive(Clone, Debug)]
pub(super) enum Op {
    Add(u8, u64, Granule),
    Remove(u8),
    Inflate(Vec<(u8, u64, u64)>, Reuse),
    Report(Vec<(u8, u64, u64)>, Reuse),
    Deflate(Vec<(u8, u64, u64)>),
    Pin(u8, u64, u64),
    Unpin(u8, u64, u64, Reuse),
    Reset,
}

/// Starts and lengths that often hit the edges of frames, and sometimes leave the space.
fn range() -> impl Strategy<Value = (u8, u64, u64)> {
    let start = prop_oneof![
        0u64..1600,
        Just(0),
        Just(512),
        Just(1024),
        Just(511),
        any::<u64>(),
        (0u64..20).prop_map(|n| u64::MAX - n)
    ];
    let count = prop_oneof![0u64..20, Just(1), Just(256), Just(512), Just(1024), 0u64..1200, any::<u64>()];
    (0u8..4, start, count)
}

/// I/O: few places, so that pins meet the unpinning, and large ones, so that they meet the balloon.
fn io() -> impl Strategy<Value = (u8, u64, u64)> {
    (0u8..2, prop::sample::select(vec![0u64, 100, 500]), prop::sample::select(vec![1u64, 30, 512]))
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let ranges = || prop::collection::vec(range(), 0..6);
    let reuse = || prop_oneof![Just(Reuse::TellsFirst), Just(Reuse::TellsFirst), Just(Reuse::AtOnce)];
    let granule = prop_oneof![3 => Just(Granule::Page), 2 => Just(Granule::Frame), 1 => Just(Granule::Never)];
    let pages = prop_oneof![0u64..1400, Just(512), Just(1024), Just(1536)];
    prop_oneof![
        3 => (0u8..4, pages, granule).prop_map(|(n, pages, granule)| Op::Add(n, pages, granule)),
        1 => (0u8..4).prop_map(Op::Remove),
        8 => (ranges(), reuse()).prop_map(|(named, reuse)| Op::Inflate(named, reuse)),
        4 => (ranges(), reuse()).prop_map(|(named, reuse)| Op::Report(named, reuse)),
        4 => ranges().prop_map(Op::Deflate),
        3 => io().prop_map(|(space, first, count)| Op::Pin(space, first, count)),
        4 => (io(), reuse()).prop_map(|((space, first, count), reuse)| Op::Unpin(space, first, count, reuse)),
        1 => Just(Op::Reset),
    ]
}

/// The ledger's rules once more, page by page and without any thought for space, time or crashes.
#[derive(Default)]
pub(super) struct Model {
    pub(super) spaces: BTreeMap<SpaceId, (SpaceKey, u64, Granule)>,
    pub(super) states: BTreeMap<Page, PageState>,
    pub(super) pins: BTreeMap<Page, u32>,
}

impl Model {
    pub(super) fn find(&self, n: u8) -> Option<SpaceId> {
        self.spaces.iter().find(|(_, (k, ..))| *k == key(n)).map(|(id, _)| *id)
    }

    pub(super) fn named(&self, extents: &[Extent]) -> BTreeSet<Page> {
        let mut all = BTreeSet::new();
        for extent in extents {
            let pages = self.spaces.get(&extent.space).map_or(0, |(_, pages, _)| *pages);
            for page in extent.first.min(pages)..extent.first.saturating_add(extent.count).min(pages) {
                all.insert((extent.space, page));
            }
        }
        all
    }

    fn pinned(&self, page: Page) -> bool {
        self.pins.get(&page).is_some_and(|&count| count > 0)
    }

    fn ballooned(&self, page: Page) -> bool {
        self.states[&page] == PageState::Ballooned
    }

    /// Which pages go when `wanted` are to be discarded and `allowed` may be.
    fn discards(&self, wanted: &BTreeSet<Page>, allowed: impl Fn(Page) -> bool) -> BTreeSet<Page> {
        let mut all = BTreeSet::new();
        for &(space, page) in wanted {
            let (_, pages, granule) = self.spaces[&space];
            let start = page - page % PAGES_PER_FRAME;
            let frame = start..(start + PAGES_PER_FRAME).min(pages);
            let whole = frame.clone().all(|p| allowed((space, p)) && !self.pinned((space, p)));
            let full = frame.end - frame.start == PAGES_PER_FRAME;
            match granule {
                Granule::Page if whole => all.extend(frame.map(|p| (space, p))),
                Granule::Page if !self.pinned((space, page)) => all.extend([(space, page)]),
                Granule::Frame if whole && full => all.extend(frame.map(|p| (space, p))),
                Granule::Page | Granule::Frame | Granule::Never => {}
            }
        }
        all
    }

    pub(super) fn give_up(
        &mut self,
        extents: &[Extent],
        to: PageState,
        reuse: Reuse,
    ) -> (Tally, BTreeSet<Page>) {
        let named = self.named(extents);
        let tells = reuse == Reuse::TellsFirst;
        let out = self.discards(&named, |page| named.contains(&page) || (tells && self.ballooned(page)));
        (self.put(&named, to, true), out)
    }

    pub(super) fn put(&mut self, named: &BTreeSet<Page>, to: PageState, discards: bool) -> Tally {
        let changed = named.iter().filter(|page| self.states[page] != to).count();
        let pinned = named.iter().filter(|page| discards && self.pinned(**page)).count();
        for page in named {
            self.states.insert(*page, to);
        }
        let count = |n: usize| PageCount(u64::try_from(n).unwrap());
        Tally {
            named: count(named.len()),
            changed: count(changed),
            pinned: count(pinned),
            ..Tally::default()
        }
    }

    pub(super) fn unpin(&mut self, extent: Extent, reuse: Reuse) -> BTreeSet<Page> {
        let mut released = BTreeSet::new();
        for page in self.named(&[extent]) {
            if let Some(count) = self.pins.get_mut(&page).filter(|count| **count > 0) {
                *count -= 1;
                if *count == 0 && reuse == Reuse::TellsFirst && self.states[&page] == PageState::Ballooned {
                    released.insert(page);
                }
            }
        }
        self.discards(&released, |page| self.ballooned(page))
    }

    pub(super) fn counts(&self) -> Counts {
        let of = |state| {
            let n = self.states.values().filter(|s| **s == state).count();
            PageCount(u64::try_from(n).unwrap())
        };
        Counts {
            present: of(PageState::Present),
            outstanding: of(PageState::Outstanding),
            ballooned: of(PageState::Ballooned),
            reported: of(PageState::Reported),
        }
    }
}
