//! Cases by hand.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_units::PageCount;

use super::{Words, fresh, from_image, key, words};
use crate::{Counts, Discard, Extent, Granule, Ledger, LedgerError, MAX_SPACES, Reuse, SpaceError};

#[test]
fn cut_short_formatting_leaves_no_ledger() {
    let need = Ledger::words_needed(3, 2).unwrap();
    let old: Vec<u64> = (0..need).map(|n| u64::try_from(n).unwrap() * 77).collect();
    let ledger = Ledger::format(from_image(&old), 3, 2).unwrap();
    let mut image = old;
    let log = ledger.words.log.borrow().clone();
    for (n, (at, value)) in log.iter().enumerate() {
        image[*at] = *value;
        let attached = Ledger::attach(from_image(&image)).map(|(ledger, _)| ledger.counts());
        if n + 1 < log.len() {
            assert!(matches!(attached, Err(LedgerError::Magic(_))), "store {n}");
        } else {
            assert_eq!(attached, Ok(Counts::default()));
        }
    }
}

#[test]
fn a_ledger_that_does_not_fit_is_refused() {
    let too_small = LedgerError::TooSmall { have: 50, need: Ledger::words_needed(1, 1).unwrap() };
    assert_eq!(Ledger::format(words(50), 1, 1).err(), Some(too_small));
    let mut ledger = fresh(2, 2);
    let add =
        |ledger: &mut Ledger<Words>, n, pages| ledger.add_space(key(n), PageCount(pages), Granule::Page);
    assert_eq!(add(&mut ledger, 0, 0), Err(SpaceError::Empty(key(0))));
    let no_room = |frames, pages| Err(SpaceError::NoRoom { frames, pages: PageCount(pages) });
    assert_eq!(add(&mut ledger, 0, 1025), no_room(3, 1025));
    assert_eq!(add(&mut ledger, 0, u64::MAX), no_room(1 << 55, u64::MAX));
    let id = add(&mut ledger, 0, 1024).unwrap();
    assert_eq!(add(&mut ledger, 0, 1024), Ok(id));
    let changed = SpaceError::Changed { key: key(0), before: PageCount(1024), now: PageCount(7) };
    assert_eq!(add(&mut ledger, 0, 7), Err(changed));
    assert_eq!(add(&mut ledger, 1, 1), no_room(1, 1));
    ledger.remove_space(id);
    assert_eq!(add(&mut ledger, 1, 1024), Ok(id));
}

#[test]
fn the_table_of_spaces_is_bounded_and_gaps_are_used_again() {
    let mut ledger = fresh(40, 40);
    for n in 0..MAX_SPACES {
        ledger.add_space(key(n), PageCount(600), Granule::Page).unwrap();
    }
    assert_eq!(ledger.add_space(key(99), PageCount(1), Granule::Page), Err(SpaceError::TooMany));
    let third = ledger.spaces().nth(2).unwrap().0;
    ledger.remove_space(third);
    assert_eq!(ledger.add_space(key(99), PageCount(1024), Granule::Page), Ok(third));
    assert_eq!(ledger.counts().present, PageCount(15 * 600 + 1024));
    assert_eq!(ledger.audit(), Ok(ledger.counts()));
}

/// One frame of 2 MiB pages, given up in two halves.
fn halves(granule: Granule, reuse: Reuse, first: fn(&mut Ledger<Words>, Extent, Reuse)) -> Vec<Discard> {
    let mut ledger = fresh(4, 4);
    let space = ledger.add_space(key(0), PageCount(2048), granule).unwrap();
    first(&mut ledger, Extent { space, first: 512, count: 256 }, reuse);
    let mut out = vec![];
    ledger.inflate(&[Extent { space, first: 768, count: 256 }], reuse, &mut out);
    out
}

fn ballooned(ledger: &mut Ledger<Words>, extent: Extent, reuse: Reuse) {
    ledger.inflate(&[extent], reuse, &mut vec![]);
}

fn reported(ledger: &mut Ledger<Words>, extent: Extent, reuse: Reuse) {
    ledger.report(&[extent], reuse, &mut vec![]);
}

fn pieces(discards: &[Discard]) -> Vec<(u64, u64)> {
    discards.iter().map(|d| (d.offset.pages_floor().0, d.len.pages_floor().0)).collect()
}

#[test]
fn buffers_are_joined_to_frames_only_under_the_promise() {
    let (tells, at_once) = (Reuse::TellsFirst, Reuse::AtOnce);
    assert_eq!(pieces(&halves(Granule::Page, tells, ballooned)), [(512, 512)]);
    assert_eq!(pieces(&halves(Granule::Page, at_once, ballooned)), [(768, 256)]);
    assert_eq!(pieces(&halves(Granule::Frame, tells, ballooned)), [(512, 512)]);
    assert_eq!(pieces(&halves(Granule::Frame, at_once, ballooned)), []);
    assert_eq!(pieces(&halves(Granule::Never, tells, ballooned)), []);
}

#[test]
fn pages_reported_earlier_never_count_towards_a_frame() {
    assert_eq!(pieces(&halves(Granule::Page, Reuse::TellsFirst, reported)), [(768, 256)]);
    assert_eq!(pieces(&halves(Granule::Frame, Reuse::TellsFirst, reported)), []);
}

#[test]
fn a_page_under_io_is_discarded_when_the_io_ends_and_only_if_it_is_still_given_up() {
    let mut ledger = fresh(4, 4);
    let space = ledger.add_space(key(0), PageCount(2048), Granule::Page).unwrap();
    let (io, frame) = (Extent { space, first: 3, count: 2 }, Extent { space, first: 0, count: 512 });
    ledger.pin(io);
    ledger.pin(io);
    let mut out = vec![];
    let tally = ledger.inflate(&[frame], Reuse::TellsFirst, &mut out);
    assert_eq!((pieces(&out), tally.pinned), (vec![(0, 3), (5, 507)], PageCount(2)));
    out.clear();
    ledger.unpin(io, Reuse::TellsFirst, &mut out);
    assert_eq!(pieces(&out), []);
    ledger.unpin(io, Reuse::TellsFirst, &mut out);
    assert_eq!(pieces(&out), [(0, 512)]);
    out.clear();

    ledger.pin(io);
    ledger.deflate(&[frame]);
    ledger.inflate(&[frame], Reuse::TellsFirst, &mut vec![]);
    ledger.deflate(&[Extent { space, first: 4, count: 1 }]);
    ledger.unpin(io, Reuse::TellsFirst, &mut out);
    assert_eq!(pieces(&out), [(3, 1)]);
}

#[test]
fn without_the_promise_the_end_of_io_discards_nothing() {
    let mut ledger = fresh(4, 4);
    let space = ledger.add_space(key(0), PageCount(2048), Granule::Page).unwrap();
    let page = Extent { space, first: 3, count: 1 };
    for event in [ballooned, reported] {
        ledger.pin(page);
        event(&mut ledger, page, Reuse::AtOnce);
        let mut out = vec![];
        ledger.unpin(page, Reuse::AtOnce, &mut out);
        assert_eq!(out, []);
    }
    ledger.pin(page);
    reported(&mut ledger, page, Reuse::TellsFirst);
    let mut out = vec![];
    ledger.unpin(page, Reuse::TellsFirst, &mut out);
    assert_eq!(out, [], "the guest may use a reported page since it was answered");
}
