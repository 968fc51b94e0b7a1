//! Write protection, as a sweep uses it.

use plimsoll_uffd::{FaultKind, Protection, Woken};
use plimsoll_units::FRAME_SIZE;

use crate::fixture::{DOUBT, Watched, goes_on, readable, waits};

/// Memory whose first frame is there, with 7 in its first page.
fn filled(test: &str) -> Option<Watched> {
    let watched = Watched::new(test)?;
    let writer = watched.writer(0, 7);
    watched.fault_on(0);
    let filled = watched.uffd().zeropage(watched.range(0, FRAME_SIZE), Woken::Yes).unwrap();
    assert_eq!(filled.stopped, None);
    goes_on(&writer);
    Some(watched)
}

#[test]
fn who_writes_waits_until_protection_is_lifted() {
    let Some(watched) = filled("who_writes_waits_until_protection_is_lifted") else { return };
    assert_eq!(watched.uffd().write_protect(watched.range(0, FRAME_SIZE)).unwrap(), Protection::Changed);
    assert_eq!(goes_on(&watched.reader(0)), 7);
    let writer = watched.writer(0, 8);
    let fault = watched.fault_on(0);
    assert_eq!((fault.kind, fault.write), (FaultKind::WriteProtected, true));
    waits(&writer);
    assert_eq!(goes_on(&watched.reader(0)), 7, "written under protection");
    let lifted = watched.uffd().lift_protection(watched.page(0), Woken::Yes).unwrap();
    assert_eq!(lifted, Protection::Changed);
    goes_on(&writer);
    assert_eq!(goes_on(&watched.reader(0)), 8);
    // The other pages are still protected.
    let writer = watched.writer(1, 1);
    assert_eq!(watched.fault_on(1).kind, FaultKind::WriteProtected);
    assert_eq!(watched.uffd().lift_protection(watched.all(), Woken::Yes).unwrap(), Protection::Changed);
    goes_on(&writer);
}

#[test]
fn protection_lifted_without_waking_leaves_them_waiting() {
    let Some(watched) = filled("protection_lifted_without_waking_leaves_them_waiting") else { return };
    assert_eq!(watched.uffd().write_protect(watched.page(0)).unwrap(), Protection::Changed);
    let writer = watched.writer(0, 8);
    watched.fault_on(0);
    assert_eq!(watched.uffd().lift_protection(watched.page(0), Woken::No).unwrap(), Protection::Changed);
    waits(&writer);
    watched.uffd().wake(watched.page(0)).unwrap();
    goes_on(&writer);
}

#[test]
fn a_page_punched_under_protection_comes_back_as_missing() {
    let Some(watched) = filled("a_page_punched_under_protection_comes_back_as_missing") else { return };
    assert_eq!(watched.uffd().write_protect(watched.range(0, FRAME_SIZE)).unwrap(), Protection::Changed);
    watched.punch(0, FRAME_SIZE);
    assert_eq!(
        watched.uffd().lift_protection(watched.range(0, FRAME_SIZE), Woken::Yes).unwrap(),
        Protection::Changed
    );
    let writer = watched.writer(0, 1);
    assert_eq!(watched.fault_on(0).kind, FaultKind::Missing);
    let filled = watched.uffd().zeropage(watched.page(0), Woken::Yes).unwrap();
    assert_eq!(filled.stopped, None);
    goes_on(&writer);
    assert!(!readable(watched.uffd(), DOUBT), "protected although it was lifted");
}

#[test]
fn a_page_that_is_not_there_is_told_of_as_missing_also_under_protection() {
    let test = "a_page_that_is_not_there_is_told_of_as_missing_also_under_protection";
    let Some(watched) = filled(test) else { return };
    assert_eq!(watched.uffd().write_protect(watched.all()).unwrap(), Protection::Changed);
    let writer = watched.writer(512, 1);
    let first = watched.fault_on(512);
    assert_eq!(first.kind, FaultKind::Missing);
    let filled = watched.uffd().zeropage(watched.page(512), Woken::Yes).unwrap();
    assert_eq!(filled.stopped, None);
    goes_on(&writer);
    assert_eq!(goes_on(&watched.reader(512)), 1);
}
