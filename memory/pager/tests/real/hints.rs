//! What a VMM tells of holes, and what it tells that is not so.

use std::os::fd::OwnedFd;

use plimsoll_frames::RemovedBy;
use plimsoll_pager::{Config, PagerEvent};
use plimsoll_uffd::HugePages;
use plimsoll_uffd::handover::{Extent, ToPager, VmmSocket};
use plimsoll_units::{PAGE_SIZE, PAGES_PER_FRAME, PageCount};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::fixture::{Dice, Guest, Served, goes_on, target, until, waits};

/// A pager that listens to a VMM, and the VMM's end.
fn listening(guest: &Guest, frames: u64) -> (Served, OwnedFd) {
    listening_with(guest, frames, &Config::new(HugePages::Never))
}

pub(crate) fn listening_with(guest: &Guest, frames: u64, config: &Config) -> (Served, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (vmm, ours) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let mut parts = guest.parts();
    parts.hints = Some(VmmSocket::from(ours));
    let served = Served::start(parts, config);
    served.set_target(target(frames * PAGES_PER_FRAME));
    (served, vmm)
}

pub(crate) fn says(vmm: &OwnedFd, message: &[u8]) {
    rustix::net::send(vmm, message, SendFlags::NOSIGNAL).unwrap();
}

pub(crate) fn punched(first: u64, pages: u64, lost: u64) -> ToPager {
    ToPager::Punched { extent: Extent { offset: first * PAGE_SIZE, length: pages * PAGE_SIZE }, lost }
}

#[test]
fn holes_the_vmm_tells_of_are_in_the_ledger_soon() {
    let Some(guest) = Guest::new("holes_the_vmm_tells_of_are_in_the_ledger_soon", 4) else { return };
    let (served, vmm) = listening(&guest, 4);
    goes_on(&guest.writes(0, 2 * PAGES_PER_FRAME));
    guest.punch(10, 20);
    says(&vmm, &punched(10, 20, 0).encode());
    until(|| served.status().counts.ballooned == PageCount(20));
    // A page that was never touched goes into the balloon as well.
    says(&vmm, &punched(3 * PAGES_PER_FRAME, 5, 0).encode());
    until(|| served.status().counts.ballooned == PageCount(25));
    served.agree();
    assert_eq!(served.status().hints.gone, 20);
    // The guest takes some of them back without a word.
    goes_on(&guest.writes(12, 1));
    assert!(served.status().counts.ballooned.0 < 25);
    guest.verify_writes(30, 2 * PAGES_PER_FRAME - 30);
    served.agree();
}

#[test]
fn a_hint_that_lies_ready_is_read_before_anybody_waits() {
    let Some(guest) = Guest::new("a_hint_that_lies_ready_is_read_before_anybody_waits", 4) else { return };
    let (served, vmm) = listening(&guest, 2);
    for round in 0..20 {
        goes_on(&guest.writes(round % 2 * PAGES_PER_FRAME, PAGES_PER_FRAME));
        let other = (round + 1) % 2 * PAGES_PER_FRAME;
        goes_on(&guest.writes(other, PAGES_PER_FRAME));
        guest.punch(other, PAGES_PER_FRAME);
        says(&vmm, &punched(other, PAGES_PER_FRAME, 0).encode());
        goes_on(&guest.writes(2 * PAGES_PER_FRAME, PAGES_PER_FRAME));
        guest.punch(2 * PAGES_PER_FRAME, PAGES_PER_FRAME);
        says(&vmm, &punched(2 * PAGES_PER_FRAME, PAGES_PER_FRAME, 0).encode());
    }
    served.no_event();
    assert_eq!(served.status().faults.exhausted, 0);
    served.agree();
}

#[test]
fn lost_hints_are_made_up_for() {
    let Some(guest) = Guest::new("lost_hints_are_made_up_for", 4) else { return };
    let (served, vmm) = listening(&guest, 4);
    goes_on(&guest.writes(0, guest.pages()));
    guest.punch(100, 1000);
    guest.punch(3 * PAGES_PER_FRAME, 1);
    says(&vmm, &punched(3 * PAGES_PER_FRAME, 1, 17).encode());
    until(|| served.audit().unwrap() == PageCount(0));
    let status = served.status();
    assert_eq!((status.hints.lost, status.counts.ballooned.0, status.counts.outstanding.0), (17, 1, 1000));
}

#[test]
fn lies_change_nothing_that_is_there() {
    let Some(guest) = Guest::new("lies_change_nothing_that_is_there", 4) else { return };
    let (served, vmm) = listening(&guest, 4);
    goes_on(&guest.writes(0, 3 * PAGES_PER_FRAME));
    let mut dice = Dice(7);
    for _ in 0..2000 {
        let (mut offset, mut length) = (dice.next() >> dice.below(64), dice.next() >> dice.below(64));
        if dice.below(3) == 0 {
            (offset, length) = (offset % (guest.pages() * PAGE_SIZE), length % (64 * PAGE_SIZE));
        }
        served.hint(Extent { offset, length }, dice.below(50) / 49);
    }
    served.hint(Extent { offset: 0, length: u64::MAX }, u64::MAX);
    served.hint(Extent { offset: u64::MAX, length: u64::MAX }, 0);
    for _ in 0..50 {
        let extent = Extent { offset: dice.next() >> 1, length: dice.next() >> 1 };
        says(&vmm, &ToPager::Punched { extent, lost: dice.next() }.encode());
    }
    until(|| served.status().hints.heard >= 2052);
    assert_eq!(served.resident(), 3 * PAGES_PER_FRAME);
    guest.verify_writes(0, 3 * PAGES_PER_FRAME);
    goes_on(&guest.writes(3 * PAGES_PER_FRAME, PAGES_PER_FRAME));
    served.agree();
}

#[test]
fn a_vmm_that_breaks_the_protocol_is_not_listened_to_and_still_served() {
    let test = "a_vmm_that_breaks_the_protocol_is_not_listened_to_and_still_served";
    let Some(guest) = Guest::new(test, 2) else { return };
    let (served, vmm) = listening(&guest, 2);
    says(&vmm, b"nonsense");
    let PagerEvent::HintsEnded { reason: Some(reason) } = served.event() else { panic!("it was noticed") };
    assert!(reason.contains("a message of 8 bytes"), "{reason}");
    goes_on(&guest.writes(0, guest.pages()));
    served.no_event();
    // What it would say now is not believed, and does not have to be.
    guest.punch(0, 1);
    let _ = rustix::net::send(&vmm, &punched(0, 1, 0).encode(), SendFlags::NOSIGNAL);
    assert_eq!(goes_on(&guest.thread(|map| map.read(0, 5))), 0);
    served.agree();
}

#[test]
fn the_end_of_a_connection_is_told_once() {
    let Some(guest) = Guest::new("the_end_of_a_connection_is_told_once", 2) else { return };
    let (served, vmm) = listening(&guest, 1);
    says(&vmm, &ToPager::Unmapped(Extent { offset: 0, length: PAGE_SIZE }).encode());
    assert_eq!(served.event(), PagerEvent::Unmapped);
    drop(vmm);
    assert_eq!(served.event(), PagerEvent::HintsEnded { reason: None });
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    let writer = guest.writes(PAGES_PER_FRAME, 1);
    assert!(matches!(served.event(), PagerEvent::Exhausted { .. }));
    waits(&writer);
    served.set_target(target(2 * PAGES_PER_FRAME));
    goes_on(&writer);
}

#[test]
fn holes_count_as_what_was_configured() {
    let Some(guest) = Guest::new("holes_count_as_what_was_configured", 2) else { return };
    let config = Config { holes_are: RemovedBy::Report, ..Config::new(HugePages::Never) };
    let served = guest.served_by(2, &config);
    goes_on(&guest.writes(0, guest.pages()));
    guest.punch(0, 7);
    served.hint(Extent { offset: 0, length: 7 * PAGE_SIZE }, 0);
    assert_eq!(served.status().counts.reported, PageCount(7));
}
