//! Memory that is given back: what is told of, and what is not.

use plimsoll_uffd::{Event, Features, Woken};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};
use rustix::mm::Advice;

use crate::fixture::{DOUBT, Watched, goes_on, readable, waits};

fn filled(test: &str, features: Features) -> Option<Watched> {
    let watched = Watched::with(test, features)?;
    let filled = watched.uffd().zeropage(watched.range(0, FRAME_SIZE), Woken::Yes).unwrap();
    assert_eq!((filled.stopped, watched.resident()), (None, FRAME_SIZE));
    Some(watched)
}

#[test]
fn removing_is_told_of_and_waits_until_it_was_read() {
    let features = Features::SHARED_GUEST | Features::EVENT_REMOVE;
    let Some(watched) = filled("removing_is_told_of_and_waits_until_it_was_read", features) else { return };
    let remover = watched.remover(PAGE_SIZE, 3 * PAGE_SIZE, Advice::LinuxRemove);
    waits(&remover);
    let removed = watched.range(PAGE_SIZE, 3 * PAGE_SIZE);
    assert_eq!(watched.event(), Event::Remove { start: removed.start(), end: removed.end() });
    goes_on(&remover);
    assert_eq!(watched.resident(), FRAME_SIZE - 3 * PAGE_SIZE);
    let reader = watched.reader(2);
    watched.fault_on(2);
    let filled = watched.uffd().zeropage(watched.page(2), Woken::Yes).unwrap();
    assert_eq!(filled.bytes, PAGE_SIZE);
    assert_eq!(goes_on(&reader), 0);
}

#[test]
fn without_the_feature_nobody_tells_of_removing_nor_of_holes() {
    let test = "without_the_feature_nobody_tells_of_removing_nor_of_holes";
    let Some(watched) = filled(test, Features::SHARED_GUEST) else { return };
    goes_on(&watched.remover(0, PAGE_SIZE, Advice::LinuxRemove));
    watched.punch(PAGE_SIZE, PAGE_SIZE);
    assert_eq!(watched.resident(), FRAME_SIZE - 2 * PAGE_SIZE);
    assert!(!readable(watched.uffd(), DOUBT), "the kernel told of it");
    // But the next touch is a fault again.
    for page in [0, 1] {
        let reader = watched.reader(page);
        watched.fault_on(page);
        let filled = watched.uffd().zeropage(watched.page(page), Woken::Yes).unwrap();
        assert_eq!(filled.bytes, PAGE_SIZE);
        goes_on(&reader);
    }
}

#[test]
fn dropping_a_shared_mappings_pages_gives_nothing_back_and_makes_no_fault() {
    let test = "dropping_a_shared_mappings_pages_gives_nothing_back_and_makes_no_fault";
    let Some(watched) = filled(test, Features::SHARED_GUEST) else { return };
    goes_on(&watched.writer(0, 5));
    goes_on(&watched.remover(0, FRAME_SIZE, Advice::LinuxDontNeed));
    assert_eq!(watched.resident(), FRAME_SIZE);
    assert_eq!(goes_on(&watched.reader(0)), 5);
    assert!(!readable(watched.uffd(), DOUBT), "a fault on a page that is in the file");
}
