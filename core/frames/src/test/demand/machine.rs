//! Random stories. After each event everything is compared with the model; then what a kill after each store of the event leaves
//! is taken over, told where memory is, and checked.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::RefCell;

use plimsoll_units::{MemTarget, PAGES_PER_FRAME, PageCount};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::model::{FRAME, Page, Space, number};
use super::ops::{Op, story};
use super::steps::step;
use super::world::World;
use crate::bits::{PageMask, PageStates};
use crate::ledger::{Ledger, Place};
use crate::test::{Words, from_image, image, key, snapshot};
use crate::{Counts, Extent, Fault, PageState, Reboot, Residency, Reuse, SpaceKey, peek_residency};

fn mask(pages: &[Page], holds: impl Fn(&Page) -> bool) -> PageMask {
    PageMask::of_pages(pages.iter().map(holds))
}

fn check_frame(ledger: &Ledger<Words>, space: &Space, frame: usize) {
    let place = ledger.place(space.id, number(frame)).unwrap();
    let pages = &space.pages[space.frame(frame * FRAME)];
    let states = ledger.states(&place).1;
    for state in PageState::ALL {
        let want = mask(pages, |page| page.state == state);
        assert_eq!(states.mask(state).and(place.valid), want, "frame {frame}: {state:?}");
    }
    let moves = ledger.transit.of(place.entry);
    assert_eq!(moves.held, mask(pages, |page| page.held), "frame {frame}: held");
    assert_eq!(moves.arriving, mask(pages, |page| page.arriving), "frame {frame}: arriving");
    assert_eq!(moves.leaving, mask(pages, |page| page.leaving), "frame {frame}: leaving");
    assert_eq!(ledger.sweep.takeable(place.entry), mask(pages, |page| page.takeable), "frame {frame}: sweep");
}

fn check(world: &mut World) {
    let ledger = &world.ledger;
    assert_eq!(ledger.audit(), Ok(ledger.counts()));
    let mut counts = Counts::default();
    counts.present.0 = 700; // The space that is not on demand.
    let (mut moving, mut resident) = (0, 0);
    for space in &world.spaces {
        (0..space.pages.len().div_ceil(FRAME)).for_each(|frame| check_frame(ledger, space, frame));
        for page in &space.pages {
            counts.of_mut(page.state).0 += 1;
            moving += u64::from(page.arriving || (page.leaving && page.held));
            resident += u64::from(page.resident());
        }
    }
    assert_eq!(ledger.counts(), counts);
    let target = MemTarget(PageCount(world.target).bytes());
    let residency = Residency { target, resident: PageCount(resident) };
    assert_eq!(ledger.residency(), residency);
    assert_eq!(peek_residency(ledger.words.as_slice()), Ok(residency));

    let kernel = world.memory();
    let lag = resident.saturating_sub(moving).saturating_sub(kernel);
    assert_eq!(ledger.audit_resident(PageCount(kernel)), Ok(PageCount(lag)));

    assert!(resident <= world.limit, "{resident} pages resident, {} allowed", world.limit);
    world.limit = world.limit.min(resident).max(world.target);
    assert_eq!(residency.limit().0, world.limit);
    assert_eq!(residency.room().0, world.target.saturating_sub(resident));
}

/// A process takes over what is left, and is told where memory is.
fn survive(image: &[u64], kernel: &[Extent], protects: bool) -> Ledger<Words> {
    let (mut survivor, repairs) = Ledger::attach(from_image(image)).unwrap();
    assert_eq!(survivor.audit(), Ok(survivor.counts()));
    assert_eq!(repairs.protected.is_some(), protects);
    let spaces: Vec<_> = survivor.spaces().map(|(id, ..)| id).collect();
    for space in spaces {
        survivor.correct(Extent { space, first: 0, count: u64::MAX }, kernel);
    }
    assert_eq!(survivor.audit(), Ok(survivor.counts()));
    let pages: u64 = kernel.iter().map(|extent| extent.count).sum();
    assert_eq!(survivor.audit_resident(PageCount(pages)), Ok(PageCount(0)));
    assert_eq!(survivor.residency().resident, PageCount(pages));
    for extent in kernel {
        for page in [extent.first, extent.end() - 1] {
            assert_eq!(survivor.state(extent.space, page), Some(PageState::Present));
        }
    }
    survivor
}

/// Every page is as it was before or as it is after, if one event is all that happened.
fn check_either(found: &Ledger<Words>, before: &Before, after: &Ledger<Words>) {
    let after = snapshot(after);
    for (id, space) in &found.spaces {
        for frame in 0..space.frames() {
            let place = Place::of(*id, *space, frame);
            let at = (space.key, frame);
            let mut odd = PageMask::EMPTY;
            for state in PageState::ALL {
                let either = before.states[&at].mask(state).or(after[&at].mask(state));
                odd = odd.or(found.states(&place).1.mask(state).minus(either));
            }
            // That memory stayed behind a page that was given up is not remembered: without its kernel's word it has none.
            let forgotten = found.states(&place).1.mask(PageState::Outstanding).and(before.held(&at));
            assert!(odd.minus(forgotten).and(place.valid).is_empty(), "frame {at:?} has a third state");
        }
    }
}

struct Before {
    image: Vec<u64>,
    states: BTreeMap<(SpaceKey, u64), PageStates>,
    held: BTreeMap<(SpaceKey, u64), PageMask>,
    target: MemTarget,
}

impl Before {
    fn of(world: &World) -> Self {
        let ledger = &world.ledger;
        let mut held = BTreeMap::new();
        for (id, space) in &ledger.spaces {
            for frame in 0..space.frames() {
                let place = Place::of(*id, *space, frame);
                held.insert((space.key, frame), ledger.transit.of(place.entry).held);
            }
        }
        Self { image: image(ledger), states: snapshot(ledger), held, target: ledger.target() }
    }

    fn held(&self, at: &(SpaceKey, u64)) -> PageMask {
        self.held[at]
    }
}

/// Takes over what a kill after each store of the last event would have left.
fn check_cuts(before: &Before, world: &World, op: &Op) {
    let single = matches!(
        op,
        Op::Inflate(_) | Op::Report(_) | Op::Deflate(_) | Op::Reset | Op::Removed(..) | Op::SetTarget(_)
    );
    let mut image = before.image.clone();
    let log = world.ledger.words.log.borrow();
    for (n, (at, value)) in log.iter().enumerate() {
        image[*at] = *value;
        // Long stories of many events are cut here and there.
        if n > 20 && n + 8 < log.len() && n % 16 != 0 {
            continue;
        }
        let kernel = world.notes.iter().rev().find(|(stores, _)| *stores <= n + 1).map(|(_, data)| data);
        if single {
            check_either(&Ledger::attach(from_image(&image)).unwrap().0, before, &world.ledger);
        }
        let protects = image[crate::layout::AT_SWEEP] != 0;
        let survivor = survive(&image, kernel.unwrap(), protects);
        assert!([before.target, world.ledger.target()].contains(&survivor.target()));
        go_on(survivor, world.reuse);
    }
    drop(log);
    assert_eq!(image, crate::test::image(&world.ledger), "a store went past the log");
}

/// A reboot that was under way is brought to its end.
fn end_reboot(survivor: &mut Ledger<Words>) {
    let mut out = Vec::new();
    for step in 0.. {
        assert!(step < 20, "the reboot comes to no end");
        if survivor.continue_reboot(2, &mut out) == Reboot::Done {
            break;
        }
        out.drain(..).for_each(|discard| survivor.discarded(discard));
    }
    assert_eq!(survivor.counts().outstanding, PageCount(1224 + 1024));
}

/// The survivor serves on: a fault is answered by what room there is.
fn go_on(mut survivor: Ledger<Words>, reuse: Reuse) {
    if survivor.is_rebooting() {
        end_reboot(&mut survivor);
    }
    let space = survivor.spaces().find(|(_, at, _)| *at == key(0)).unwrap().0;
    let (room, before) = (survivor.residency().room(), survivor.residency().resident);
    for page in [0, 700, PAGES_PER_FRAME * 2] {
        match survivor.fault(space, page) {
            Fault::Populate(extent) => {
                assert!(room.0 > 0 && (extent.first..extent.end()).contains(&page));
                survivor.populated(extent, reuse, &mut Vec::new());
            }
            Fault::Present => {}
            Fault::Exhausted(numbers) => assert_eq!(numbers.room(), PageCount(0)),
            other @ (Fault::Arriving | Fault::Leaving | Fault::Unknown) => {
                panic!("{other:?} in a ledger where nothing is under way")
            }
        }
    }
    assert!(survivor.residency().resident.0 <= before.0 + room.0);
    assert_eq!(survivor.audit(), Ok(survivor.counts()));
}

fn run((target, reuse, ops): &(u64, Reuse, Vec<Op>)) -> World {
    let mut world = World::new(*target, *reuse);
    for op in ops {
        world.ledger.words.log.borrow_mut().clear();
        world.notes.clear();
        world.note();
        let before = Before::of(&world);
        step(&mut world, op);
        check(&mut world);
        check_cuts(&before, &world, op);
    }
    world
}

/// What a fair number of stories must come across, or they are about nothing.
const SEEN: [&str; 28] = [
    "answered in pieces",
    "corrected a hole",
    "corrected data",
    "device wrote",
    "discard failed",
    "discard of a sweep failed",
    "discarded",
    "exhausted",
    "fault on a hole punched unseen",
    "fault on a page that is arriving",
    "fault on a page that is leaving",
    "fault read late",
    "given up while arriving",
    "given up while pinned",
    "killed during a reboot",
    "killed during a sweep",
    "left zero pages alone",
    "populated a frame",
    "populated a run",
    "populated one page",
    "populating failed",
    "reboot met I/O",
    "reboot waited for discards",
    "removed while arriving",
    "swept a frame",
    "swept a part of a frame",
    "write to a page that is being swept",
    "write to a protected page",
];

#[test]
fn the_same_stories_every_time() {
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let seen = RefCell::new(BTreeSet::new());
    let result = runner.run(&story(), |story| {
        seen.borrow_mut().extend(run(&story).seen);
        Ok(())
    });
    result.unwrap();
    let unseen: Vec<_> = SEEN.iter().filter(|what| !seen.borrow().contains(*what)).collect();
    assert!(unseen.is_empty(), "no story had {unseen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn new_stories_every_time(story in story()) {
        run(&story);
    }
}
