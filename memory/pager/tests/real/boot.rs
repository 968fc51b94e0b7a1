//! Touching memory for the first time.

use plimsoll_units::{PAGES_PER_FRAME, PageCount, Ppm};

use crate::fixture::{Dice, Guest, goes_on, target};

#[test]
fn a_guest_within_its_target_gets_whole_frames() {
    let Some(guest) = Guest::new("a_guest_within_its_target_gets_whole_frames", 16) else { return };
    let served = guest.served(12);
    let watcher = guest.watched(12 * PAGES_PER_FRAME);
    for frame in [3, 9, 0, 15] {
        goes_on(&guest.writes(frame * PAGES_PER_FRAME + 77, 3));
    }
    goes_on(&guest.reads(4 * PAGES_PER_FRAME, 2 * PAGES_PER_FRAME));
    let status = served.status();
    assert_eq!(status.whole_frame_share(), Some(Ppm::percent(100)));
    assert_eq!(status.totals.populated_frames, 6);
    assert_eq!(served.resident(), 6 * PAGES_PER_FRAME);
    assert_eq!(status.allocated, Some(PageCount(6 * PAGES_PER_FRAME)));
    assert_eq!(status.stalled, None);
    assert_eq!(watcher.end(), 6 * PAGES_PER_FRAME);
    for frame in [3, 9, 0, 15] {
        guest.verify_writes(frame * PAGES_PER_FRAME + 77, 3);
    }
    served.agree();
}

#[test]
fn the_last_room_is_given_in_pieces() {
    let Some(guest) = Guest::new("the_last_room_is_given_in_pieces", 4) else { return };
    let served = guest.served(1);
    served.set_target(target(PAGES_PER_FRAME + 100));
    let watcher = guest.watched(PAGES_PER_FRAME + 100);
    goes_on(&guest.writes(PAGES_PER_FRAME - 10, 110));
    let status = served.status();
    assert_eq!(status.totals.populated_frames, 1);
    assert!((100 - 10..=100).contains(&status.totals.populated_pages), "{status:?}");
    guest.verify_writes(PAGES_PER_FRAME - 10, 110);
    assert!(watcher.end() <= PAGES_PER_FRAME + 100);
    served.agree();
}

#[test]
fn many_threads_at_once_all_go_on() {
    let Some(guest) = Guest::new("many_threads_at_once_all_go_on", 24) else { return };
    let served = guest.served(24);
    let pages = guest.pages();
    let all = |seed| {
        guest.thread(move |map| {
            let mut dice = Dice(seed);
            for _ in 0..3000 {
                let page = dice.below(pages);
                // Each thread has a word of its own in every page.
                map.write(page, seed, page + seed);
                assert_eq!(map.read(page, seed), page + seed);
            }
        })
    };
    let threads: Vec<_> = (1..=6).map(all).collect();
    threads.iter().for_each(goes_on);
    assert_eq!(served.resident(), pages);
    served.agree();
    let status = served.status();
    assert_eq!(status.faults.odd, 0);
    assert!(status.faults.missing >= 24, "{status:?}");
}

#[test]
fn pages_that_the_ledger_thought_were_there_are_found_and_filled() {
    let test = "pages_that_the_ledger_thought_were_there_are_found_and_filled";
    let Some(guest) = Guest::new(test, 4) else { return };
    let served = guest.served(3);
    goes_on(&guest.writes(0, 3 * PAGES_PER_FRAME));
    // Nobody is told of it.
    guest.punch(PAGES_PER_FRAME, PAGES_PER_FRAME);
    assert_eq!(served.audit().unwrap(), PageCount(PAGES_PER_FRAME));
    assert_eq!(goes_on(&guest.thread(|map| map.read(PAGES_PER_FRAME + 1, 5))), 0);
    assert_eq!(served.status().faults.repaired, 1);
    assert_eq!(served.resident(), 3 * PAGES_PER_FRAME);
    served.agree();
    guest.verify_writes(0, PAGES_PER_FRAME);
    guest.verify_writes(2 * PAGES_PER_FRAME, PAGES_PER_FRAME);
}

#[test]
fn asking_how_things_are_puts_no_memory_anywhere() {
    let Some(guest) = Guest::new("asking_how_things_are_puts_no_memory_anywhere", 2) else { return };
    let served = guest.served(2);
    served.correct();
    assert_eq!(served.audit().unwrap(), PageCount(0));
    assert_eq!(served.status().counts.outstanding, PageCount(guest.pages()));
    assert_eq!(guest.allocated(), 0);
    served.no_event();
}
