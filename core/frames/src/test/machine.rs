//! Random events on the ledger and on the model side by side.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use plimsoll_units::{Bytes, FRAME_SIZE, PageCount};
use proptest::prelude::*;

use super::model::{Model, Op, Page, op};
use super::{FRAMES, Words, fresh, from_image, image, key, snapshot};
use crate::layout::Entry;
use crate::ledger::Place;
use crate::{Discard, Extent, Granule, Ledger, PageState, SpaceId, Tally, peek_counts};

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
            let mixed = matches!(entry, Entry::Mixed(_));
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
    assert_eq!(image, super::image(ledger), "a store went past the log");
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
