//! Memory that the VMM gives back.

use std::collections::BTreeSet;

use plimsoll_uffd::handover::{Extent, Heard, PodListener};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};

use crate::bed::{Bed, DOUBT, SIZE, Vmm, page};
use crate::pager::{Server, Taken, accept, hear, readable};

/// A VMM all of whose memory is there.
fn filled(test: &str) -> Option<(Bed, Vmm, Taken)> {
    let bed = Bed::new(test)?;
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let taken = accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    let _server = Server::start(&taken.uffd, taken.range, FRAME_SIZE);
    let pages = SIZE / PAGE_SIZE;
    assert_eq!(vmm.ask(&format!("touch 0 {pages}")), format!("ok {pages}"));
    assert_eq!(bed.resident(), SIZE);
    Some((bed, vmm, taken))
}

#[track_caller]
fn told_of(taken: &Taken, first: u64, pages: u64) {
    let wanted = Extent { offset: first * PAGE_SIZE, length: pages * PAGE_SIZE };
    let heard = hear(&taken.socket);
    assert!(matches!(heard, Heard::Punched { extent, lost: 0 } if extent == wanted), "{heard:?}");
}

#[test]
fn holes_are_told_of_when_they_are_there() {
    let Some((bed, mut vmm, taken)) = filled("holes_are_told_of_when_they_are_there") else { return };
    vmm.begin(&format!("punch {} {}", page(5), page(2)));
    told_of(&taken, 5, 2);
    assert_eq!(bed.resident(), SIZE - 2 * PAGE_SIZE);
    assert_eq!(vmm.reply(), "ok");
    vmm.begin(&format!("remove {} {}", page(600), page(3)));
    told_of(&taken, 600, 3);
    assert_eq!(bed.resident(), SIZE - 5 * PAGE_SIZE);
    assert_eq!(vmm.reply(), "ok");
    // And they are touched again as memory that never was.
    vmm.begin(&format!("touch {}", page(601)));
    assert_eq!(taken.fault(), 601 * PAGE_SIZE);
    taken.fill(601 * PAGE_SIZE);
    assert_eq!(vmm.reply(), "ok 1");
}

#[test]
fn what_gives_nothing_back_is_not_told_of() {
    let Some((bed, mut vmm, taken)) = filled("what_gives_nothing_back_is_not_told_of") else { return };
    assert_eq!(vmm.ask(&format!("drop 0 {SIZE}")), "ok");
    assert_eq!(vmm.ask(&format!("punch 0 {}", 0)), format!("error {}", einval()));
    assert!(!readable(&taken.socket, DOUBT), "it was told of");
    assert_eq!(bed.resident(), SIZE);
}

/// EINVAL.
fn einval() -> i32 {
    rustix::io::Errno::INVAL.raw_os_error()
}

#[test]
fn what_would_break_the_promise_is_refused() {
    let Some((bed, mut vmm, taken)) = filled("what_would_break_the_promise_is_refused") else { return };
    let refused = format!("error {}", rustix::io::Errno::OPNOTSUPP.raw_os_error());
    assert_eq!(vmm.ask(&format!("allocate 0 {SIZE}")), refused);
    assert_eq!(vmm.said(), "");
    assert_eq!(vmm.ask("move"), format!("error {}", einval()));
    assert!(vmm.said().contains("mremap"), "{}", vmm.said());
    assert!(!readable(&taken.socket, DOUBT), "something else was told of");
    assert_eq!(bed.resident(), SIZE);
}

#[test]
fn a_pager_that_does_not_read_delays_nobody_for_long_and_learns_what_it_missed() {
    let test = "a_pager_that_does_not_read_delays_nobody_for_long_and_learns_what_it_missed";
    let Some((bed, mut vmm, taken)) = filled(test) else { return };
    let pages = SIZE / PAGE_SIZE;
    // Nothing is read meanwhile, and a socket holds less.
    assert_eq!(vmm.ask(&format!("flood {pages} 4")), format!("ok {pages}"));
    assert_eq!(bed.resident(), 0);
    let mut seen = BTreeSet::new();
    while readable(&taken.socket, DOUBT) {
        let Heard::Punched { extent, lost: 0 } = hear(&taken.socket) else { panic!("another message") };
        assert!(extent.length == PAGE_SIZE && seen.insert(extent.offset), "{extent:?} is told of twice");
    }
    let heard = u64::try_from(seen.len()).unwrap();
    assert!(heard > 0 && heard < pages, "{heard} of {pages}: this was to be more than a socket holds");
    // The next hint says how many there should have been.
    assert_eq!(vmm.ask(&format!("punch 0 {PAGE_SIZE}")), "ok");
    let Heard::Punched { lost, .. } = hear(&taken.socket) else { panic!("another message") };
    assert_eq!(heard + lost, pages);
}

#[test]
fn hints_of_many_threads_arrive_whole() {
    let Some((_bed, mut vmm, taken)) = filled("hints_of_many_threads_arrive_whole") else { return };
    let pages = SIZE / PAGE_SIZE;
    vmm.begin(&format!("flood {pages} 8"));
    let mut seen: Vec<u64> = (0..pages)
        .map(|_| {
            let Heard::Punched { extent, lost: 0 } = hear(&taken.socket) else { panic!("another message") };
            extent.offset / PAGE_SIZE
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..pages).collect::<Vec<_>>());
    assert_eq!(vmm.reply(), format!("ok {pages}"));
}
