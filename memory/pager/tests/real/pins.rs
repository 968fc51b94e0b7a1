//! Pages that are kept for I/O.

use std::time::Duration;

use plimsoll_frames::{Extent, Reuse};
use plimsoll_pager::{Pager, PinError};
use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::fixture::{DOUBT, Guest, PATIENCE, goes_on, target};

#[test]
fn a_pin_puts_memory_where_there_is_none() {
    let Some(guest) = Guest::new("a_pin_puts_memory_where_there_is_none", 4) else { return };
    let served = guest.served(4);
    goes_on(&guest.writes(600, 1));
    let pinned = served.pin(500, 1100, PATIENCE).unwrap();
    assert_eq!(pinned.pages(), 500..1100);
    assert_eq!(guest.allocated(), 3 * PAGES_PER_FRAME);
    // Zero as they are, they are not swept.
    let report = served.sweep(PATIENCE).expect("it ends");
    assert_eq!(report.pages, 3 * PAGES_PER_FRAME - 600);
    drop(pinned);
    let report = served.sweep(PATIENCE).expect("it ends");
    assert_eq!(report.pages, 600 - 1);
    guest.verify_writes(600, 1);
    served.agree();
}

#[test]
fn a_pin_finds_holes_nobody_told_of() {
    let Some(guest) = Guest::new("a_pin_finds_holes_nobody_told_of", 2) else { return };
    let served = guest.served(2);
    goes_on(&guest.writes(0, 300));
    guest.punch(100, 30);
    let pinned = served.pin(90, 140, PATIENCE).unwrap();
    served.agree();
    assert_eq!(guest.allocated(), PAGES_PER_FRAME);
    drop(pinned);
}

#[test]
fn a_pin_waits_for_room_and_not_for_ever() {
    let Some(guest) = Guest::new("a_pin_waits_for_room_and_not_for_ever", 4) else { return };
    let served = guest.served(1);
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    let error = served.pin(PAGES_PER_FRAME, PAGES_PER_FRAME + 3, DOUBT).unwrap_err();
    let PinError::NoRoom { page, waited_ms } = error else { panic!("{error}") };
    assert!(page == PAGES_PER_FRAME && Duration::from_millis(waited_ms) >= DOUBT, "{error}");
    let none = served.pin(PAGES_PER_FRAME, PAGES_PER_FRAME + 3, Duration::ZERO).unwrap_err();
    assert!(matches!(none, PinError::NoRoom { .. }));
    let pager: &Pager<_> = &served;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pager.pin(PAGES_PER_FRAME, PAGES_PER_FRAME + 3, Duration::MAX));
        std::thread::sleep(DOUBT);
        assert!(!waiting.is_finished());
        served.set_target(target(PAGES_PER_FRAME + 3));
        drop(waiting.join().unwrap().unwrap());
    });
    served.agree();
}

#[test]
fn a_pin_makes_the_sweeper_look_for_room() {
    let Some(guest) = Guest::new("a_pin_makes_the_sweeper_look_for_room", 4) else { return };
    let served = guest.served(2);
    goes_on(&guest.reads(0, 2 * PAGES_PER_FRAME));
    let pinned = served.pin(2 * PAGES_PER_FRAME, 3 * PAGES_PER_FRAME, PATIENCE).unwrap();
    assert!(served.status().totals.swept_pages >= PAGES_PER_FRAME);
    drop(pinned);
    served.agree();
}

#[test]
fn pages_that_do_not_exist_are_not_pinned() {
    let Some(guest) = Guest::new("pages_that_do_not_exist_are_not_pinned", 2) else { return };
    let served = guest.served(2);
    for (first, end) in [(guest.pages() - 1, guest.pages() + 1), (u64::MAX - 1, u64::MAX), (5, 4)] {
        let error = served.pin(first, end, PATIENCE).unwrap_err();
        assert_eq!(error, PinError::Outside { first, end, pages: guest.pages() });
    }
    drop(served.pin(7, 7, Duration::ZERO).unwrap());
    assert_eq!(guest.allocated(), 0);
}

#[test]
fn what_goes_into_the_balloon_under_io_is_given_back_afterwards() {
    let test = "what_goes_into_the_balloon_under_io_is_given_back_afterwards";
    let Some(guest) = Guest::new(test, 2) else { return };
    let served = guest.served(2);
    served.set_reuse(Reuse::TellsFirst);
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    let pinned = served.pin(0, 10, PATIENCE).unwrap();
    let mut discards = Vec::new();
    let tally = served.with_ledger(|ledger, space| {
        ledger.inflate(&[Extent { space, first: 0, count: 20 }], Reuse::TellsFirst, &mut discards)
    });
    assert_eq!(tally.pinned, PageCount(10));
    served.carry_out(&discards);
    assert_eq!(guest.allocated(), PAGES_PER_FRAME - 10);
    assert_eq!(served.resident(), PAGES_PER_FRAME - 10);
    drop(pinned);
    assert_eq!(guest.allocated(), PAGES_PER_FRAME - 20);
    served.agree();
}
