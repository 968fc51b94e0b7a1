//! Sweeps that are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use plimsoll_pager::{Config, Scrub};
use plimsoll_uffd::HugePages;
use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::fixture::{Guest, PATIENCE, goes_on};
use crate::memory::WORDS;

#[test]
fn zero_frames_are_taken_whole_and_the_rest_is_left() {
    let Some(guest) = Guest::new("zero_frames_are_taken_whole_and_the_rest_is_left", 8) else { return };
    let served = guest.served(8);
    goes_on(&guest.reads(0, guest.pages()));
    served.settled(0, guest.pages());
    goes_on(&guest.writes(2 * PAGES_PER_FRAME, 2 * PAGES_PER_FRAME));
    goes_on(&guest.thread(|map| map.write(7 * PAGES_PER_FRAME + 511, WORDS - 1, 1)));
    let report = served.sweep(PATIENCE).expect("it ends");
    assert_eq!(report.frames, 5);
    assert_eq!(report.pages, 6 * PAGES_PER_FRAME - 1);
    assert_eq!(report.looked, 8 * PAGES_PER_FRAME);
    assert!(report.whole);
    assert_eq!(guest.allocated(), 2 * PAGES_PER_FRAME + 1);
    let status = served.status();
    assert_eq!(status.residency.resident, PageCount(2 * PAGES_PER_FRAME + 1));
    assert_eq!(status.sweeps.last, Some(report));
    served.agree();
    // It comes back as it was taken.
    assert_eq!(goes_on(&guest.reads(4 * PAGES_PER_FRAME, 2 * PAGES_PER_FRAME)), 0);
    assert_eq!(goes_on(&guest.thread(|map| map.read(7 * PAGES_PER_FRAME + 511, WORDS - 1))), 1);
    guest.verify_writes(2 * PAGES_PER_FRAME, 2 * PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn a_quick_sweep_takes_frames_and_splits_none() {
    let Some(guest) = Guest::new("a_quick_sweep_takes_frames_and_splits_none", 8) else { return };
    let served = guest.served(8);
    goes_on(&guest.reads(0, guest.pages()));
    served.settled(0, guest.pages());
    // Something in the first, the last and another page of three frames, and one that is half there.
    for page in [PAGES_PER_FRAME, 3 * PAGES_PER_FRAME - 1, 4 * PAGES_PER_FRAME + 99] {
        goes_on(&guest.writes(page, 1));
    }
    guest.punch(6 * PAGES_PER_FRAME, 256);
    served.correct();
    let report = served.sweep_frames(PATIENCE).expect("it ends");
    assert_eq!((report.pages, report.frames), (5 * PAGES_PER_FRAME - 256, 4));
    let status = served.status();
    assert_eq!(status.counts.present, PageCount(3 * PAGES_PER_FRAME));
    assert_eq!(guest.allocated(), 3 * PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn a_sweep_ends_although_memory_is_populated_all_the_time() {
    let Some(guest) = Guest::new("a_sweep_ends_although_memory_is_populated_all_the_time", 80) else {
        return;
    };
    let served = guest.served(80);
    let end = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&end);
    let reader = guest.thread(move |map| {
        while !ends.load(Ordering::SeqCst) {
            for frame in 0..80 {
                map.read(frame * PAGES_PER_FRAME, 0);
            }
        }
    });
    for _ in 0..3 {
        let report = served.sweep(PATIENCE).expect("it ends");
        assert!(report.looked <= 3 * guest.pages(), "{report:?}");
    }
    end.store(true, Ordering::SeqCst);
    goes_on(&reader);
    served.agree();
}

#[test]
fn nothing_is_left_protected() {
    let Some(guest) = Guest::new("nothing_is_left_protected", 4) else { return };
    let served = guest.served(4);
    goes_on(&guest.reads(0, guest.pages()));
    served.settled(0, guest.pages());
    goes_on(
        &guest
            .thread(|map| (0..4 * PAGES_PER_FRAME).step_by(2).for_each(|page| map.write(page, 5, page + 1))),
    );
    served.sweep(PATIENCE).expect("it ends");
    let before = served.status().faults.protected;
    goes_on(&guest.writes(0, guest.pages()));
    assert_eq!(served.status().faults.protected, before);
    assert_eq!(served.with_ledger(|ledger, _| ledger.protected()), None);
    guest.verify_writes(0, guest.pages());
}

#[test]
fn what_devices_write_unseen_is_kept_away_while_pages_are_taken() {
    let test = "what_devices_write_unseen_is_kept_away_while_pages_are_taken";
    let Some(guest) = Guest::new(test, 8) else { return };
    let calls = Arc::new(AtomicU64::new(0));
    let (memory, called) = (guest.memory.try_clone().unwrap(), Arc::clone(&calls));
    let config = Config {
        around_discard: Some(Arc::new(move |work| {
            // The device's last write, after the first look; then it is stopped.
            rustix::io::pwrite(&memory, &[9], (PAGES_PER_FRAME + 3) * 4096).unwrap();
            called.fetch_add(1, Ordering::SeqCst);
            work();
        })),
        ..Config::new(HugePages::Never)
    };
    let served = guest.served_by(8, &config);
    goes_on(&guest.reads(0, 4 * PAGES_PER_FRAME));
    served.settled(0, 4 * PAGES_PER_FRAME);
    let report = served.sweep(PATIENCE).expect("it ends");
    assert_eq!(report.pages, 4 * PAGES_PER_FRAME - 1);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(goes_on(&guest.thread(|map| map.read(PAGES_PER_FRAME + 3, 0))), 9);
    // Where nothing is empty nobody is stopped.
    goes_on(&guest.writes(0, guest.pages()));
    assert_eq!(served.sweep(PATIENCE).expect("it ends").pages, 0);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    served.agree();
}

#[test]
fn nothing_is_taken_where_devices_cannot_be_stopped() {
    let Some(guest) = Guest::new("nothing_is_taken_where_devices_cannot_be_stopped", 4) else { return };
    let config = Config { around_discard: Some(Arc::new(|_| {})), ..Config::new(HugePages::Never) };
    let served = guest.served_by(4, &config);
    goes_on(&guest.reads(0, guest.pages()));
    served.settled(0, guest.pages());
    let report = served.sweep(PATIENCE).expect("it ends");
    assert_eq!((report.pages, report.looked), (0, guest.pages()));
    assert_eq!(guest.allocated(), guest.pages());
    assert_eq!(served.with_ledger(|ledger, _| ledger.protected()), None);
    served.agree();
}

#[test]
fn pages_with_the_scrub_pattern_come_back_with_it() {
    let Some(guest) = Guest::new("pages_with_the_scrub_pattern_come_back_with_it", 6) else { return };
    let pattern = Scrub::pattern(*b"scrubbed");
    let config = Config { scrub: pattern, ..Config::new(HugePages::Never) };
    let served = guest.served_by(3, &config);
    let watcher = guest.watched(3 * PAGES_PER_FRAME);
    let word = pattern.word();
    // A guest that scrubs all of its memory, and has more of it than it may have.
    let scrubber = guest.thread(move |map| {
        for page in 0..6 * PAGES_PER_FRAME {
            (0..WORDS).for_each(|at| map.write(page, at, word));
        }
    });
    goes_on(&scrubber);
    assert!(served.status().totals.swept_pages >= 3 * PAGES_PER_FRAME);
    goes_on(&guest.thread(|map| map.write(PAGES_PER_FRAME, 7, 1)));
    let other = guest.thread(move |map| {
        let other = |page: &u64| (0..WORDS).any(|at| map.read(*page, at) != word);
        (0..6 * PAGES_PER_FRAME).filter(other).collect::<Vec<_>>()
    });
    assert_eq!(goes_on(&other), [PAGES_PER_FRAME]);
    // Zeros are nothing special here.
    goes_on(&guest.thread(|map| (0..WORDS).for_each(|at| map.write(2, at, 0))));
    served.sweep(PATIENCE).expect("it ends");
    let zeros = guest.thread(|map| (0..WORDS).all(|at| map.read(2, at) == 0));
    assert!(goes_on(&zeros));
    watcher.end();
    served.agree();
}
