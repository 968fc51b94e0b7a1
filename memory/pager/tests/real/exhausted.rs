//! No room: who waits, and what helps.

use std::time::{Duration, Instant};

use plimsoll_pager::PagerEvent;
use plimsoll_uffd::handover::Extent;
use plimsoll_units::{PAGE_SIZE, PAGES_PER_FRAME};

use crate::fixture::{Dice, Guest, goes_on, target, until, waits};

/// The next event, which says that the guest waits.
#[track_caller]
fn is_told(event: PagerEvent, pages: u64) {
    let PagerEvent::Exhausted { residency, waiting } = event else { panic!("{event:?}") };
    assert_eq!((residency.resident.0, residency.limit().0), (pages, pages));
    assert!(waiting > 0);
}

#[test]
fn a_guest_that_dirties_everything_waits_until_it_may_have_more() {
    let Some(guest) = Guest::new("a_guest_that_dirties_everything_waits", 8) else { return };
    let served = guest.served(4);
    let watcher = guest.watched(4 * PAGES_PER_FRAME);
    let writer = guest.writes(0, guest.pages());
    is_told(served.event(), 4 * PAGES_PER_FRAME);
    waits(&writer);
    let stalled = served.status().stalled.expect("it is stalled");
    assert_eq!((stalled.page, stalled.waiting), (Some(4 * PAGES_PER_FRAME), 1));
    served.no_event();
    watcher.limit.store(8 * PAGES_PER_FRAME, std::sync::atomic::Ordering::SeqCst);
    served.set_target(target(8 * PAGES_PER_FRAME));
    goes_on(&writer);
    let PagerEvent::Relieved { after } = served.event() else { panic!("it was relieved") };
    assert!(after >= Duration::from_millis(100));
    assert_eq!(served.status().stalled, None);
    guest.verify_writes(0, guest.pages());
    assert_eq!(watcher.end(), guest.pages());
    served.agree();
}

#[test]
fn more_memory_is_there_within_milliseconds() {
    const ROUNDS: u64 = 15;
    let Some(guest) = Guest::new("more_memory_is_there_within_milliseconds", 2) else { return };
    let served = guest.served(1);
    goes_on(&guest.writes(0, PAGES_PER_FRAME));
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let writer = guest.thread(move |map| {
                map.write(PAGES_PER_FRAME + round, 5, PAGES_PER_FRAME + round + 1);
                Instant::now()
            });
            until(|| served.status().stalled.is_some_and(|stalled| stalled.waiting > 0));
            let raised = Instant::now();
            served.set_target(target(PAGES_PER_FRAME + round + 1));
            goes_on(&writer).saturating_duration_since(raised)
        })
        .collect();
    took.sort_unstable();
    // If it were only tried again once a second, it would take half of one on average.
    let median = took[took.len() / 2];
    assert!(median < Duration::from_millis(200), "{took:?}");
    guest.verify_writes(0, PAGES_PER_FRAME + ROUNDS);
    served.agree();
}

#[test]
fn a_guest_that_only_reads_touches_all_of_its_memory() {
    let Some(guest) = Guest::new("a_guest_that_only_reads_touches_all_of_its_memory", 32) else { return };
    let served = guest.served(8);
    let watcher = guest.watched(8 * PAGES_PER_FRAME);
    assert_eq!(goes_on(&guest.reads(0, guest.pages())), 0);
    until(|| !served.status().sweeps.running);
    let status = served.status();
    assert!(status.totals.swept_pages >= 24 * PAGES_PER_FRAME, "{status:?}");
    assert!(status.totals.swept_frames >= 20, "{status:?}");
    assert!(status.sweeps.runs > 0 && status.sweeps.pages == status.totals.swept_pages);
    assert!(watcher.end() <= 8 * PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn zeros_among_other_pages_are_found_when_it_is_tight() {
    let Some(guest) = Guest::new("zeros_among_other_pages_are_found_when_it_is_tight", 6) else { return };
    let served = guest.served(3);
    // Two of three pages stay zero, spread over all frames.
    let writer = guest.thread(|map| {
        (0..6 * PAGES_PER_FRAME).for_each(|page| {
            if page % 3 == 0 {
                map.write(page, 1, page + 1);
            } else {
                map.read(page, 1);
            }
        });
    });
    let watcher = guest.watched(3 * PAGES_PER_FRAME);
    goes_on(&writer);
    let wrong = guest.thread(|map| {
        (0..6 * PAGES_PER_FRAME).find(|page| map.read(*page, 1) != if page % 3 == 0 { page + 1 } else { 0 })
    });
    assert_eq!(goes_on(&wrong), None);
    assert!(served.status().totals.swept_pages > 0);
    assert!(watcher.end() <= 3 * PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn pages_that_others_give_back_serve_who_waits() {
    let Some(guest) = Guest::new("pages_that_others_give_back_serve_who_waits", 3) else { return };
    let served = guest.served(2);
    goes_on(&guest.writes(0, 2 * PAGES_PER_FRAME));
    let writer = guest.writes(2 * PAGES_PER_FRAME, PAGES_PER_FRAME);
    is_told(served.event(), 2 * PAGES_PER_FRAME);
    waits(&writer);
    // The VMM's balloon takes a frame, and its library says so.
    guest.punch(PAGES_PER_FRAME, PAGES_PER_FRAME);
    let frame = PAGES_PER_FRAME * PAGE_SIZE;
    served.hint(Extent { offset: frame, length: frame }, 0);
    goes_on(&writer);
    assert!(matches!(served.event(), PagerEvent::Relieved { .. }));
    assert_eq!(served.status().counts.ballooned.0, PAGES_PER_FRAME);
    guest.verify_writes(0, PAGES_PER_FRAME);
    guest.verify_writes(2 * PAGES_PER_FRAME, PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn zeros_written_by_a_guest_that_waits_are_found_in_the_end() {
    let Some(guest) = Guest::new("zeros_written_by_a_guest_that_waits_are_found_in_the_end", 3) else {
        return;
    };
    let served = guest.served(2);
    goes_on(&guest.writes(0, 2 * PAGES_PER_FRAME));
    let writer = guest.writes(2 * PAGES_PER_FRAME, 1);
    is_told(served.event(), 2 * PAGES_PER_FRAME);
    waits(&writer);
    // Nobody is told that another thread of the guest cleans up.
    goes_on(&guest.thread(|map| (0..40).for_each(|page| map.write(page, 5, 0))));
    goes_on(&writer);
    guest.verify_writes(40, 2 * PAGES_PER_FRAME - 40);
    guest.verify_writes(2 * PAGES_PER_FRAME, 1);
    served.agree();
}

#[test]
fn a_lowered_target_stops_growth_and_takes_nothing() {
    let Some(guest) = Guest::new("a_lowered_target_stops_growth_and_takes_nothing", 6) else { return };
    let served = guest.served(4);
    goes_on(&guest.writes(0, 4 * PAGES_PER_FRAME));
    let residency = served.set_target(target(2 * PAGES_PER_FRAME));
    assert_eq!((residency.limit().0, residency.room().0), (4 * PAGES_PER_FRAME, 0));
    let watcher = guest.watched(4 * PAGES_PER_FRAME);
    let writer = guest.writes(5 * PAGES_PER_FRAME, 1);
    waits(&writer);
    // Coming down to the target is not enough: there must be room below it.
    for frame in 0..2 {
        guest.punch(frame * PAGES_PER_FRAME, PAGES_PER_FRAME);
    }
    served.hint(Extent { offset: 0, length: 2 * PAGES_PER_FRAME * PAGE_SIZE }, 0);
    waits(&writer);
    assert_eq!(served.status().residency.limit().0, 2 * PAGES_PER_FRAME);
    guest.punch(2 * PAGES_PER_FRAME, 1);
    served.hint(Extent { offset: 2 * PAGES_PER_FRAME * PAGE_SIZE, length: PAGE_SIZE }, 0);
    goes_on(&writer);
    watcher.end();
    served.agree();
}

#[test]
fn many_who_wait_are_all_served() {
    let Some(guest) = Guest::new("many_who_wait_are_all_served", 16) else { return };
    let served = guest.served(2);
    goes_on(&guest.writes(0, 2 * PAGES_PER_FRAME));
    let pages = guest.pages();
    let waiting: Vec<_> = (1..=12_u64)
        .map(|seed| {
            guest.thread(move |map| {
                let mut dice = Dice(seed);
                for _ in 0..200 {
                    let page = 2 * PAGES_PER_FRAME + dice.below(pages - 2 * PAGES_PER_FRAME);
                    map.write(page, 5, page + 1);
                }
            })
        })
        .collect();
    until(|| served.status().stalled.is_some_and(|stalled| stalled.waiting >= 12));
    let watcher = guest.watched(pages);
    for more in 2 * PAGES_PER_FRAME..=pages {
        if more % 64 == 0 {
            watcher.limit.store(more, std::sync::atomic::Ordering::SeqCst);
            served.set_target(target(more));
        }
    }
    waiting.iter().for_each(goes_on);
    watcher.end();
    until(|| served.status().stalled.is_none());
    served.agree();
}
