//! The ledger against a plain model, cut short after every single store.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use plimsoll_units::{Bytes, FRAME_SIZE, PAGES_PER_FRAME, PageCount};
use proptest::prelude::*;

use super::*;
use crate::bits::PageStates;
use crate::ledger::Place;

const FRAMES: u32 = 10;

type Words = Vec<AtomicU64>;
type Page = (SpaceId, u64);

fn words(len: usize) -> Words {
    (0..len).map(|_| AtomicU64::new(0)).collect()
}

fn fresh(frames: u32, maps: u32) -> Ledger<Words> {
    Ledger::format(words(Ledger::words_needed(frames, maps).unwrap()), frames, maps).unwrap()
}

fn image(ledger: &Ledger<Words>) -> Vec<u64> {
    ledger.words.as_slice().iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

fn from_image(image: &[u64]) -> Words {
    image.iter().map(|&word| AtomicU64::new(word)).collect()
}

fn key(n: u8) -> SpaceKey {
    SpaceKey { device: 5, inode: u64::from(n) }
}

/// What the ledger says of every frame, by the file's key and the frame's number in it.
fn snapshot(ledger: &Ledger<Words>) -> BTreeMap<(SpaceKey, u64), PageStates> {
    let mut all = BTreeMap::new();
    for (id, space) in &ledger.spaces {
        for frame in 0..space.frames() {
            all.insert((space.key, frame), ledger.states(&Place::of(*id, *space, frame)).1);
        }
    }
    all
}

#[derive(Clone, Debug)]
enum Op {
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

fn op() -> impl Strategy<Value = Op> {
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
struct Model {
    spaces: BTreeMap<SpaceId, (SpaceKey, u64, Granule)>,
    states: BTreeMap<Page, PageState>,
    pins: BTreeMap<Page, u32>,
}

impl Model {
    fn find(&self, n: u8) -> Option<SpaceId> {
        self.spaces.iter().find(|(_, (k, ..))| *k == key(n)).map(|(id, _)| *id)
    }

    fn named(&self, extents: &[Extent]) -> BTreeSet<Page> {
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

    fn give_up(&mut self, extents: &[Extent], to: PageState, reuse: Reuse) -> (Tally, BTreeSet<Page>) {
        let named = self.named(extents);
        let tells = reuse == Reuse::TellsFirst;
        let out = self.discards(&named, |page| named.contains(&page) || (tells && self.ballooned(page)));
        (self.put(&named, to, true), out)
    }

    fn put(&mut self, named: &BTreeSet<Page>, to: PageState, discards: bool) -> Tally {
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

    fn unpin(&mut self, extent: Extent, reuse: Reuse) -> BTreeSet<Page> {
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

    fn counts(&self) -> Counts {
        let of = |state| {
            let n = self.states.values().filter(|s| **s == state).count();
            PageCount(u64::try_from(n).unwrap())
        };
        Counts {
            present: of(PageState::Present),
            ballooned: of(PageState::Ballooned),
            reported: of(PageState::Reported),
        }
    }
}

/// A space the model does not know is one the ledger must ignore.
fn extents(model: &Model, ranges: &[(u8, u64, u64)]) -> Vec<Extent> {
    let extent = |&(n, first, count): &(u8, u64, u64)| Extent {
        space: model.find(n).unwrap_or(SpaceId(15)),
        first,
        count,
    };
    ranges.iter().map(extent).collect()
}

/// The event alone, on the ledger.
fn apply(ledger: &mut Ledger<Words>, model: &Model, op: &Op, out: &mut Vec<Discard>) -> Option<Tally> {
    match op {
        Op::Inflate(ranges, reuse) => Some(ledger.inflate(&extents(model, ranges), *reuse, out)),
        Op::Report(ranges, reuse) => Some(ledger.report(&extents(model, ranges), *reuse, out)),
        Op::Deflate(ranges) => Some(ledger.deflate(&extents(model, ranges))),
        Op::Pin(n, first, count) => {
            ledger.pin(extents(model, &[(*n, *first, *count)])[0]);
            None
        }
        Op::Unpin(n, first, count, reuse) => {
            ledger.unpin(extents(model, &[(*n, *first, *count)])[0], *reuse, out);
            None
        }
        Op::Reset => {
            ledger.reset();
            None
        }
        Op::Add(n, pages, granule) => {
            // It may well be refused: no room, or known with another length.
            let _ = ledger.add_space(key(*n), PageCount(*pages), *granule);
            None
        }
        Op::Remove(n) => {
            if let Some(id) = model.find(*n) {
                ledger.remove_space(id);
            }
            None
        }
    }
}

/// The same on the model: what tally and which discards are due. `id` is the place a new space got.
fn expect(model: &mut Model, op: &Op, ledger: &Ledger<Words>) -> (Option<Tally>, BTreeSet<Page>) {
    let none = BTreeSet::new();
    match op {
        Op::Inflate(ranges, reuse) => {
            let (tally, out) = model.give_up(&extents(model, ranges), PageState::Ballooned, *reuse);
            (Some(tally), out)
        }
        Op::Report(ranges, reuse) => {
            let (tally, out) = model.give_up(&extents(model, ranges), PageState::Reported, *reuse);
            (Some(tally), out)
        }
        Op::Deflate(ranges) => {
            let named = model.named(&extents(model, ranges));
            (Some(model.put(&named, PageState::Present, false)), none)
        }
        Op::Pin(n, first, count) => {
            for page in model.named(&extents(model, &[(*n, *first, *count)])) {
                *model.pins.entry(page).or_default() += 1;
            }
            (None, none)
        }
        Op::Unpin(n, first, count, reuse) => {
            (None, model.unpin(extents(model, &[(*n, *first, *count)])[0], *reuse))
        }
        Op::Reset => {
            model.states.values_mut().for_each(|state| *state = PageState::Present);
            (None, none)
        }
        Op::Add(n, pages, granule) => {
            // Whether there was room is the ledger's to say; that an old space stays what it was is checked here.
            let added = ledger.spaces.iter().find(|(_, space)| space.key == key(*n));
            if let (Some((id, _)), None) = (added, model.find(*n)) {
                model.spaces.insert(*id, (key(*n), *pages, *granule));
                model.states.extend((0..*pages).map(|page| ((*id, page), PageState::Present)));
            }
            (None, none)
        }
        Op::Remove(n) => {
            if let Some(id) = model.find(*n) {
                model.spaces.remove(&id);
                model.states.retain(|(space, _), _| *space != id);
                model.pins.retain(|(space, _), _| *space != id);
            }
            (None, none)
        }
    }
}

fn check_discards(model: &Model, out: &[Discard]) -> BTreeSet<Page> {
    let mut pages = BTreeSet::new();
    for pair in out.windows(2) {
        let apart = pair[0].space < pair[1].space
            || (pair[0].space == pair[1].space && pair[0].offset.plus(pair[0].len) < pair[1].offset);
        assert!(apart, "{pair:?} are not sorted and merged");
    }
    for discard in out {
        let (_, len, granule) = model.spaces[&discard.space];
        assert!(
            discard.len > Bytes::ZERO && discard.offset.is_page_multiple() && discard.len.is_page_multiple()
        );
        assert!(discard.offset.plus(discard.len) <= PageCount(len).bytes(), "{discard:?} leaves its space");
        if granule == Granule::Frame {
            assert!(discard.offset.0.is_multiple_of(FRAME_SIZE) && discard.len.0.is_multiple_of(FRAME_SIZE));
        }
        let first = discard.offset.pages_floor().0;
        pages.extend((first..first + discard.len.pages_floor().0).map(|page| (discard.space, page)));
    }
    pages
}

/// A frame has a map only while its pages differ.
fn check_maps(ledger: &Ledger<Words>) {
    for (id, space) in &ledger.spaces {
        for frame in 0..space.frames() {
            let place = Place::of(*id, *space, frame);
            let (entry, states) = ledger.states(&place);
            let mixed = matches!(entry, layout::Entry::Mixed(_));
            assert_eq!(mixed, states.shared(place.valid).is_none());
        }
    }
}

fn check_states(ledger: &Ledger<Words>, model: &Model, exact: bool) {
    assert_eq!(ledger.audit(), Ok(ledger.counts()));
    assert_eq!(peek_counts(ledger.words.as_slice()), Ok(ledger.counts()));
    assert_eq!(ledger.counts().total(), PageCount(u64::try_from(model.states.len()).unwrap()));
    if exact {
        assert_eq!(ledger.counts(), model.counts());
    }
    check_maps(ledger);
    for (&(space, page), &state) in &model.states {
        let kept = ledger.state(space, page).unwrap();
        // Short of maps, a page may count as present that was given up; never the other way round.
        assert!(
            kept == state || (!exact && kept == PageState::Present),
            "page {page}: {kept:?}, not {state:?}"
        );
    }
    for (id, (_, pages, _)) in &model.spaces {
        assert_eq!(ledger.state(*id, *pages), None);
    }
}

/// Attaches to what a kill after each store of the last event would have left.
fn check_cuts(start: &[u64], ledger: &Ledger<Words>, model_before: &Model, op: &Op, exact: bool) {
    let attach = |image: &[u64]| Ledger::attach(from_image(image)).unwrap().0;
    let before = snapshot(&attach(start));
    let after = snapshot(ledger);
    let mut image = start.to_vec();
    for (at, value) in ledger.words.log.borrow().iter() {
        image[*at] = *value;
        let mut survivor = attach(&image);
        assert_eq!(survivor.audit(), Ok(survivor.counts()));
        check_maps(&survivor);
        let found = snapshot(&survivor);
        match op {
            // One store decides these; none of them may be half there.
            Op::Reset | Op::Remove(_) => assert_eq!(found, after),
            Op::Add(..) => assert!(found == before || found == after),
            Op::Inflate(..) | Op::Report(..) | Op::Deflate(_) | Op::Pin(..) | Op::Unpin(..) => {
                assert_eq!(found.len(), after.len());
                for (frame, states) in &found {
                    for state in PageState::ALL {
                        let either = before[frame].mask(state).or(after[frame].mask(state));
                        assert!(states.mask(state).minus(either).is_empty(), "{frame:?} has a third state");
                    }
                }
            }
        }
        if exact && !matches!(op, Op::Add(..) | Op::Remove(_)) {
            // The event was never acknowledged, so it is run again.
            apply(&mut survivor, model_before, op, &mut Vec::new());
            assert_eq!(snapshot(&survivor), after);
            assert_eq!(survivor.counts(), ledger.counts());
        }
    }
    assert_eq!(image, self::image(ledger), "a store went past the log");
}

fn run(ops: &[Op], maps: u32) {
    let exact = maps == FRAMES;
    let mut ledger = fresh(FRAMES, maps);
    let mut model = Model::default();
    for op in ops {
        let start = image(&ledger);
        ledger.words.log.borrow_mut().clear();
        let mut out = Vec::new();
        let tally = apply(&mut ledger, &model, op, &mut out);
        let before = Model { spaces: model.spaces.clone(), ..Model::default() };
        let (want_tally, want_out) = expect(&mut model, op, &ledger);
        let discarded = check_discards(&before_or(&before, &model), &out);
        if exact {
            assert_eq!(tally, want_tally);
            assert_eq!(discarded, want_out);
        } else {
            assert!(discarded.is_subset(&want_out), "discards more than the rules allow");
        }
        check_states(&ledger, &model, exact);
        check_cuts(&start, &ledger, &before, op, exact);
    }
}

/// Discards name spaces known before the event; only removal makes one unknown after it.
fn before_or(before: &Model, after: &Model) -> Model {
    let mut spaces = before.spaces.clone();
    spaces.extend(after.spaces.iter().map(|(id, space)| (*id, *space)));
    Model { spaces, ..Model::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_ledger_is_the_model_after_every_event_and_every_kill(ops in prop::collection::vec(op(), 1..30)) {
        run(&ops, FRAMES);
    }

    #[test]
    fn short_of_maps_it_claims_and_discards_less_never_more(ops in prop::collection::vec(op(), 1..30), maps in 0u32..3) {
        run(&ops, maps);
    }

    #[test]
    fn damage_is_an_error_or_harmless(
        ops in prop::collection::vec(op(), 0..12),
        damage in prop::collection::vec((0usize..300, prop_oneof![any::<u64>(), 0u64..20, (0u64..20).prop_map(|n| n << 32 | 4), Just(1 << 63)]), 0..4),
        more in prop::collection::vec(op(), 0..6),
    ) {
        let mut ledger = fresh(FRAMES, FRAMES);
        let mut model = Model::default();
        for op in &ops {
            apply(&mut ledger, &model, op, &mut Vec::new());
            expect(&mut model, op, &ledger);
        }
        let mut image = image(&ledger);
        for (at, value) in damage {
            let len = image.len();
            image[at % len] = value;
        }
        let untouched = from_image(&image);
        match Ledger::attach(untouched) {
            Ok((mut ledger, _)) => {
                prop_assert!(ledger.audit().is_ok());
                for op in &more {
                    apply(&mut ledger, &model, op, &mut Vec::new());
                    prop_assert!(ledger.audit().is_ok());
                }
            }
            Err(error) => drop(alloc::format!("{error}")),
        }
    }

    #[test]
    fn any_words_at_all_can_be_offered(image in prop::collection::vec(any::<u64>(), 0..200)) {
        prop_assert!(Ledger::attach(from_image(&image)).is_err());
    }
}

#[test]
fn cut_short_formatting_leaves_no_ledger() {
    let need = Ledger::words_needed(3, 2).unwrap();
    let old: Vec<u64> = (0..need).map(|n| u64::try_from(n).unwrap() * 77).collect();
    let ledger = Ledger::format(from_image(&old), 3, 2).unwrap();
    let mut image = old;
    let log = ledger.words.log.borrow().clone();
    for (n, (at, value)) in log.iter().enumerate() {
        image[*at] = *value;
        let attached = Ledger::attach(from_image(&image)).map(|(ledger, _)| ledger.counts());
        if n + 1 < log.len() {
            assert!(matches!(attached, Err(LedgerError::Magic(_))), "store {n}");
        } else {
            assert_eq!(attached, Ok(Counts::default()));
        }
    }
}

#[test]
fn a_ledger_that_does_not_fit_is_refused() {
    let too_small = LedgerError::TooSmall { have: 50, need: Ledger::words_needed(1, 1).unwrap() };
    assert_eq!(Ledger::format(words(50), 1, 1).err(), Some(too_small));
    let mut ledger = fresh(2, 2);
    let add =
        |ledger: &mut Ledger<Words>, n, pages| ledger.add_space(key(n), PageCount(pages), Granule::Page);
    assert_eq!(add(&mut ledger, 0, 0), Err(SpaceError::Empty(key(0))));
    let no_room = |frames, pages| Err(SpaceError::NoRoom { frames, pages: PageCount(pages) });
    assert_eq!(add(&mut ledger, 0, 1025), no_room(3, 1025));
    assert_eq!(add(&mut ledger, 0, u64::MAX), no_room(1 << 55, u64::MAX));
    let id = add(&mut ledger, 0, 1024).unwrap();
    assert_eq!(add(&mut ledger, 0, 1024), Ok(id));
    let changed = SpaceError::Changed { key: key(0), before: PageCount(1024), now: PageCount(7) };
    assert_eq!(add(&mut ledger, 0, 7), Err(changed));
    assert_eq!(add(&mut ledger, 1, 1), no_room(1, 1));
    ledger.remove_space(id);
    assert_eq!(add(&mut ledger, 1, 1024), Ok(id));
}

#[test]
fn the_table_of_spaces_is_bounded_and_gaps_are_used_again() {
    let mut ledger = fresh(40, 40);
    for n in 0..MAX_SPACES {
        ledger.add_space(key(n), PageCount(600), Granule::Page).unwrap();
    }
    assert_eq!(ledger.add_space(key(99), PageCount(1), Granule::Page), Err(SpaceError::TooMany));
    let third = ledger.spaces().nth(2).unwrap().0;
    ledger.remove_space(third);
    assert_eq!(ledger.add_space(key(99), PageCount(1024), Granule::Page), Ok(third));
    assert_eq!(ledger.counts().present, PageCount(15 * 600 + 1024));
    assert_eq!(ledger.audit(), Ok(ledger.counts()));
}

/// One frame of 2 MiB pages, given up in two halves.
fn halves(granule: Granule, reuse: Reuse, first: fn(&mut Ledger<Words>, Extent, Reuse)) -> Vec<Discard> {
    let mut ledger = fresh(4, 4);
    let space = ledger.add_space(key(0), PageCount(2048), granule).unwrap();
    first(&mut ledger, Extent { space, first: 512, count: 256 }, reuse);
    let mut out = vec![];
    ledger.inflate(&[Extent { space, first: 768, count: 256 }], reuse, &mut out);
    out
}

fn ballooned(ledger: &mut Ledger<Words>, extent: Extent, reuse: Reuse) {
    ledger.inflate(&[extent], reuse, &mut vec![]);
}

fn reported(ledger: &mut Ledger<Words>, extent: Extent, reuse: Reuse) {
    ledger.report(&[extent], reuse, &mut vec![]);
}

fn pieces(discards: &[Discard]) -> Vec<(u64, u64)> {
    discards.iter().map(|d| (d.offset.pages_floor().0, d.len.pages_floor().0)).collect()
}

#[test]
fn buffers_are_joined_to_frames_only_under_the_promise() {
    let (tells, at_once) = (Reuse::TellsFirst, Reuse::AtOnce);
    assert_eq!(pieces(&halves(Granule::Page, tells, ballooned)), [(512, 512)]);
    assert_eq!(pieces(&halves(Granule::Page, at_once, ballooned)), [(768, 256)]);
    assert_eq!(pieces(&halves(Granule::Frame, tells, ballooned)), [(512, 512)]);
    assert_eq!(pieces(&halves(Granule::Frame, at_once, ballooned)), []);
    assert_eq!(pieces(&halves(Granule::Never, tells, ballooned)), []);
}

#[test]
fn pages_reported_earlier_never_count_towards_a_frame() {
    assert_eq!(pieces(&halves(Granule::Page, Reuse::TellsFirst, reported)), [(768, 256)]);
    assert_eq!(pieces(&halves(Granule::Frame, Reuse::TellsFirst, reported)), []);
}

#[test]
fn a_page_under_io_is_discarded_when_the_io_ends_and_only_if_it_is_still_given_up() {
    let mut ledger = fresh(4, 4);
    let space = ledger.add_space(key(0), PageCount(2048), Granule::Page).unwrap();
    let (io, frame) = (Extent { space, first: 3, count: 2 }, Extent { space, first: 0, count: 512 });
    ledger.pin(io);
    ledger.pin(io);
    let mut out = vec![];
    let tally = ledger.inflate(&[frame], Reuse::TellsFirst, &mut out);
    assert_eq!((pieces(&out), tally.pinned), (vec![(0, 3), (5, 507)], PageCount(2)));
    out.clear();
    ledger.unpin(io, Reuse::TellsFirst, &mut out);
    assert_eq!(pieces(&out), []);
    ledger.unpin(io, Reuse::TellsFirst, &mut out);
    assert_eq!(pieces(&out), [(0, 512)]);
    out.clear();

    ledger.pin(io);
    ledger.deflate(&[frame]);
    ledger.inflate(&[frame], Reuse::TellsFirst, &mut vec![]);
    ledger.deflate(&[Extent { space, first: 4, count: 1 }]);
    ledger.unpin(io, Reuse::TellsFirst, &mut out);
    assert_eq!(pieces(&out), [(3, 1)]);
}

#[test]
fn without_the_promise_the_end_of_io_discards_nothing() {
    let mut ledger = fresh(4, 4);
    let space = ledger.add_space(key(0), PageCount(2048), Granule::Page).unwrap();
    let page = Extent { space, first: 3, count: 1 };
    for event in [ballooned, reported] {
        ledger.pin(page);
        event(&mut ledger, page, Reuse::AtOnce);
        let mut out = vec![];
        ledger.unpin(page, Reuse::AtOnce, &mut out);
        assert_eq!(out, []);
    }
    ledger.pin(page);
    reported(&mut ledger, page, Reuse::TellsFirst);
    let mut out = vec![];
    ledger.unpin(page, Reuse::TellsFirst, &mut out);
    assert_eq!(out, [], "the guest may use a reported page since it was answered");
}
