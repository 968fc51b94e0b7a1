//! Wakes that hardly ever matter: the moments in which they do are made here, by holding the ledger.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use plimsoll_frames::{Extent, Fault, Reuse};
use plimsoll_pager::Config;
use plimsoll_uffd::HugePages;
use plimsoll_units::{PAGE_SIZE, PAGES_PER_FRAME};

use crate::fixture::{DOUBT, Guest, PATIENCE, Served, goes_on, waits};
use crate::hints::{listening_with, punched, says};

/// Time for a fault to be read, while the ledger is held and it cannot be answered.
fn a_fault_is_read() {
    let end = Instant::now() + DOUBT;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has the guest touch a page while the ledger is held, and lets something be done then.
fn touched_while_held(
    guest: &Guest,
    served: &Served,
    page: u64,
    then: impl FnOnce(&mut plimsoll_frames::Ledger<plimsoll_shm::SharedWords>, plimsoll_frames::SpaceId),
) -> Receiver<()> {
    served.with_ledger(|ledger, space| {
        let writer = guest.writes(page, 1);
        a_fault_is_read();
        then(ledger, space);
        writer
    })
}

#[test]
fn who_finds_its_page_there_when_it_is_asked_for_goes_on() {
    let Some(guest) = Guest::new("who_finds_its_page_there_when_it_is_asked_for_goes_on", 2) else { return };
    let served = guest.served(2);
    let writer = touched_while_held(&guest, &served, 7, |ledger, space| {
        // Another fault on the frame is answered, and its wake comes too early for this one.
        let Fault::Populate(extent) = ledger.fault(space, 9) else { panic!("there is room") };
        let zeros = vec![0; usize::try_from(extent.count * PAGE_SIZE).unwrap()];
        rustix::io::pwrite(&guest.memory, &zeros, 0).unwrap();
        ledger.populated(extent, Reuse::AtOnce, &mut Vec::new());
    });
    goes_on(&writer);
    assert_eq!(served.status().faults.present, 1);
    guest.verify_writes(7, 1);
    served.agree();
}

#[test]
fn who_comes_to_a_page_on_its_way_out_goes_on_when_it_is_gone() {
    let test = "who_comes_to_a_page_on_its_way_out_goes_on_when_it_is_gone";
    let Some(guest) = Guest::new(test, 2) else { return };
    let served = guest.served(2);
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    served.settled(0, PAGES_PER_FRAME);
    let mut discards = Vec::new();
    served.with_ledger(|ledger, space| {
        ledger.inflate(&[Extent { space, first: 0, count: 20 }], Reuse::AtOnce, &mut discards)
    });
    // Punched, and not yet answered.
    guest.punch(0, 20);
    let writer = guest.writes(4, 1);
    waits(&writer);
    served.carry_out(&discards);
    goes_on(&writer);
    guest.verify_writes(20, PAGES_PER_FRAME - 20);
    guest.verify_writes(4, 1);
    served.agree();
}

#[test]
fn what_the_process_before_left_protected_is_free_before_anybody_writes() {
    let test = "what_the_process_before_left_protected_is_free_before_anybody_writes";
    let Some(guest) = Guest::new(test, 3) else { return };
    let served = guest.served(3);
    goes_on(&guest.reads(0, guest.pages()));
    served.settled(0, guest.pages());
    // A batch is open and protected; then the process dies.
    served.with_ledger(|ledger, _| {
        ledger.begin_sweep();
        ledger.next_batch(64, &mut Vec::new())
    });
    let _ = guest.uffd.write_protect(guest.range()).unwrap();
    served.stop();
    let served = guest.served(3);
    goes_on(&guest.writes(0, guest.pages()));
    assert_eq!(served.status().faults.protected, 0);
    assert!(served.sweep(PATIENCE).is_some(), "no batch is open any more");
    guest.verify_writes(0, guest.pages());
    served.agree();
}

#[test]
fn a_hint_that_came_with_the_fault_makes_room_for_it() {
    let Some(guest) = Guest::new("a_hint_that_came_with_the_fault_makes_room_for_it", 2) else { return };
    // One thread, which cannot read the hint before it asks.
    let config = Config { fault_threads: 1, ..Config::new(HugePages::Never) };
    let (served, vmm) = listening_with(&guest, 1, &config);
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    served.settled(0, PAGES_PER_FRAME);
    let writer = touched_while_held(&guest, &served, PAGES_PER_FRAME, |_, _| {
        guest.punch(0, 1);
        says(&vmm, &punched(0, 1, 0).encode());
    });
    goes_on(&writer);
    assert_eq!(served.status().faults.exhausted, 0);
    served.agree();
}
