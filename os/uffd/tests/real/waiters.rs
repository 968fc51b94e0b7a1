//! Those who wait: what becomes of them when who serves them dies or goes away.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use plimsoll_uffd::{Uffd, Woken};
use plimsoll_units::PAGE_SIZE;

use crate::fixture::{DOUBT, PATIENCE, Watched, goes_on, next, readable, waits};

#[test]
fn a_fault_that_a_dead_handler_had_read_comes_again_when_the_range_is_woken() {
    let test = "a_fault_that_a_dead_handler_had_read_comes_again_when_the_range_is_woken";
    let Some(watched) = Watched::new(test) else { return };
    let reader = watched.reader(9);
    // Read, and nothing done about it.
    watched.fault_on(9);
    waits(&reader);
    assert!(!readable(watched.uffd(), DOUBT), "it came again by itself");
    watched.uffd().wake(watched.all()).unwrap();
    watched.fault_on(9);
    let filled = watched.uffd().zeropage(watched.page(9), Woken::Yes).unwrap();
    assert_eq!(filled.bytes, PAGE_SIZE);
    assert_eq!(goes_on(&reader), 0);
}

#[test]
fn a_copy_passed_over_a_socket_serves_and_closing_the_last_lets_all_go_on() {
    let test = "a_copy_passed_over_a_socket_serves_and_closing_the_last_lets_all_go_on";
    let Some(mut watched) = Watched::new(test) else { return };
    let (left, right) = UnixStream::pair().unwrap();
    plimsoll_shm::send(&left, b"u", &[watched.uffd().as_fd()]).unwrap();
    let fd = plimsoll_shm::receive(&right, &mut [0]).unwrap().fds.pop().unwrap();
    let copy = Uffd::adopt(fd).unwrap();
    let served = watched.reader(0);
    next(&copy, PATIENCE).unwrap();
    assert_eq!(copy.zeropage(watched.page(0), Woken::Yes).unwrap().bytes, PAGE_SIZE);
    assert_eq!(goes_on(&served), 0);
    let (one, two) = (watched.reader(1), watched.writer(2, 3));
    drop(watched.uffd.take());
    waits(&one);
    waits(&two);
    drop(OwnedFd::from(copy));
    assert_eq!(goes_on(&one), 0);
    goes_on(&two);
    // Without any limit from here on.
    assert_eq!(goes_on(&watched.reader(3)), 0);
    assert_eq!(watched.resident(), 4 * PAGE_SIZE);
}

#[test]
fn a_kept_copy_keeps_them_waiting() {
    let Some(mut watched) = Watched::new("a_kept_copy_keeps_them_waiting") else { return };
    let kept = watched.uffd().copy().unwrap();
    let reader = watched.reader(0);
    watched.fault_on(0);
    drop(watched.uffd.take());
    waits(&reader);
    kept.wake(watched.all()).unwrap();
    assert!(next(&kept, PATIENCE).is_some());
    drop(kept);
    assert_eq!(goes_on(&reader), 0);
}

#[test]
fn watching_no_longer_lets_them_go_on() {
    let Some(watched) = Watched::new("watching_no_longer_lets_them_go_on") else { return };
    let reader = watched.reader(0);
    watched.fault_on(0);
    watched.uffd().unregister(watched.all()).unwrap();
    assert_eq!(goes_on(&reader), 0);
    assert_eq!(goes_on(&watched.reader(1)), 0);
}
