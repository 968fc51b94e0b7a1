//! A balloon of the same process, reboots, and pagers that follow one another.

use std::time::Duration;

use plimsoll_frames::{Extent, Reuse};
use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::fixture::{Dice, Guest, PATIENCE, Served, goes_on, target, waits};

fn inflate(served: &Served, first: u64, count: u64) {
    let mut discards = Vec::new();
    served.with_ledger(|ledger, space| {
        ledger.inflate(&[Extent { space, first, count }], Reuse::TellsFirst, &mut discards)
    });
    served.carry_out(&discards);
}

fn deflate(served: &Served, first: u64, count: u64) {
    served.with_ledger(|ledger, space| ledger.deflate(&[Extent { space, first, count }]));
}

#[test]
fn a_balloon_makes_room_and_its_pages_come_back() {
    let Some(guest) = Guest::new("a_balloon_makes_room_and_its_pages_come_back", 4) else { return };
    let served = guest.served(2);
    served.set_reuse(Reuse::TellsFirst);
    goes_on(&guest.writes(0, 2 * PAGES_PER_FRAME));
    let writer = guest.writes(3 * PAGES_PER_FRAME, PAGES_PER_FRAME);
    waits(&writer);
    inflate(&served, 0, PAGES_PER_FRAME);
    goes_on(&writer);
    assert_eq!(served.status().counts.ballooned, PageCount(PAGES_PER_FRAME));
    inflate(&served, PAGES_PER_FRAME, PAGES_PER_FRAME);
    deflate(&served, 0, 2 * PAGES_PER_FRAME);
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    guest.verify_writes(0, PAGES_PER_FRAME);
    guest.verify_writes(3 * PAGES_PER_FRAME, PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn ballooning_and_faulting_at_once_keep_ledger_and_kernel_in_step() {
    let test = "ballooning_and_faulting_at_once_keep_ledger_and_kernel_in_step";
    let Some(guest) = Guest::new(test, 12) else { return };
    let served = guest.served(6);
    served.set_reuse(Reuse::TellsFirst);
    let watcher = guest.watched(6 * PAGES_PER_FRAME);
    let touch = |seed: u64| {
        guest.thread(move |map| {
            let mut dice = Dice(seed);
            // The upper half is never ballooned; within the target it may be kept.
            (0..20_000).for_each(|_| {
                let page = 6 * PAGES_PER_FRAME + dice.below(6 * PAGES_PER_FRAME);
                map.read(page, 0);
            });
        })
    };
    let threads: Vec<_> = (0..3).map(touch).collect();
    let mut dice = Dice(99);
    for _ in 0..300 {
        let first = dice.below(5 * PAGES_PER_FRAME);
        inflate(&served, first, 1 + dice.below(700));
        deflate(&served, dice.below(5 * PAGES_PER_FRAME), 1 + dice.below(700));
        let page = dice.below(6 * PAGES_PER_FRAME);
        drop(served.pin(page, page + 1, PATIENCE).unwrap());
    }
    threads.iter().for_each(goes_on);
    assert!(watcher.end() <= 6 * PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn a_reboot_gives_everything_back() {
    let Some(guest) = Guest::new("a_reboot_gives_everything_back", 4) else { return };
    let served = guest.served(4);
    goes_on(&guest.writes(0, 3 * PAGES_PER_FRAME));
    inflate(&served, 0, 100);
    served.reset(PATIENCE).unwrap();
    assert_eq!(guest.allocated(), 0);
    let status = served.status();
    assert_eq!(status.counts.outstanding, PageCount(guest.pages()));
    assert_eq!(status.residency.resident, PageCount(0));
    served.agree();
    assert_eq!(goes_on(&guest.reads(0, guest.pages())), 0);
}

#[test]
fn a_reboot_waits_for_io_and_goes_on_in_the_next_pager() {
    let Some(guest) = Guest::new("a_reboot_waits_for_io_and_goes_on_in_the_next_pager", 4) else { return };
    let served = guest.served(4);
    goes_on(&guest.writes(0, 3 * PAGES_PER_FRAME));
    let pinned = served.pin(5, 7, PATIENCE).unwrap();
    let error = served.reset(Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.left, 2);
    assert_eq!(guest.allocated(), 2);
    // The process dies with its I/O.
    drop(pinned);
    served.stop();
    let served = Served::start(guest.parts(), &plimsoll_pager::Config::new(plimsoll_uffd::HugePages::Never));
    assert_eq!(guest.allocated(), 0);
    assert_eq!(served.status().counts.outstanding, PageCount(guest.pages()));
    // The target was kept.
    goes_on(&guest.writes(0, guest.pages()));
    served.agree();
}

#[test]
fn the_next_pager_wakes_who_waited_and_knows_what_there_is() {
    let Some(guest) = Guest::new("the_next_pager_wakes_who_waited_and_knows_what_there_is", 4) else {
        return;
    };
    let served = guest.served(1);
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    let writer = guest.writes(PAGES_PER_FRAME, 10);
    waits(&writer);
    served.stop();
    waits(&writer);
    // Holes and memory that nobody recorded, as a crash leaves them.
    guest.punch(3, 4);
    rustix::io::pwrite(&guest.memory, &[1], 3 * PAGES_PER_FRAME * 4096).unwrap();
    let served = guest.served(1);
    assert_eq!(served.audit().unwrap(), PageCount(0));
    // Who waited may have what room there was by now.
    assert!((PAGES_PER_FRAME - 4 + 1..=PAGES_PER_FRAME).contains(&served.resident()));
    served.set_target(target(2 * PAGES_PER_FRAME));
    goes_on(&writer);
    guest.verify_writes(7, PAGES_PER_FRAME - 7);
    assert_eq!(goes_on(&guest.thread(|map| map.read(3 * PAGES_PER_FRAME, 0))), 1);
    served.agree();
}
