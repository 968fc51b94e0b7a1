//! Sweeps by hand.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_units::PageCount;

use super::cases::{TELLS, guest, populate, resident};
use crate::test::{Words, key};
use crate::{Batch, Extent, Fault, Granule, Ledger, RemovedBy, WriteFault};

fn scanned(ledger: &mut Ledger<Words>, most: usize) -> Vec<Extent> {
    let mut out = vec![];
    assert_eq!(ledger.next_batch(most, &mut out), Batch::Scan);
    out
}

#[test]
fn a_sweep_starts_with_what_was_populated_last_and_sees_every_frame() {
    let (mut ledger, space) = guest(5, 5);
    for frame in [3, 0, 4] {
        populate(&mut ledger, space, frame * 512);
    }
    ledger.begin_sweep();
    let first = |batch: Vec<Extent>| batch.iter().map(|extent| extent.first / 512).collect::<Vec<_>>();
    assert_eq!(first(scanned(&mut ledger, 2)), [0, 4], "ascending, the last two populated");
    assert_eq!(ledger.protected(), Some(Extent { space, first: 0, count: 2560 }));
    assert_eq!(ledger.next_batch(1, &mut vec![]), Batch::Open);
    ledger.end_batch();
    assert_eq!(first(scanned(&mut ledger, 1)), [3]);
    ledger.end_batch();
    assert_eq!(first(scanned(&mut ledger, 9)), [0, 3, 4], "now in turn");
    ledger.end_batch();
    assert_eq!(ledger.next_batch(9, &mut vec![]), Batch::Over);
    assert_eq!(ledger.protected(), None);
}

#[test]
fn a_sweep_takes_whole_frames_and_splits_only_in_need() {
    let sweep = |need: u64| {
        let (mut ledger, space) = guest(3, 3);
        for frame in 0..3 {
            populate(&mut ledger, space, frame * 512);
        }
        scanned(&mut ledger, 3);
        let zero = |first, count| Extent { space, first, count };
        let mut out = vec![];
        let tally = ledger.swept(&[zero(0, 10), zero(512, 512), zero(1030, 1)], PageCount(need), &mut out);
        out.drain(..).for_each(|discard| ledger.discarded(discard));
        ledger.end_batch();
        assert_eq!(ledger.audit(), Ok(ledger.counts()));
        (tally.pages.0, tally.frames, tally.left.0, ledger.totals().split_frames)
    };
    assert_eq!(sweep(512), (512, 1, 11, 0));
    assert_eq!(sweep(513), (522, 1, 1, 1));
    assert_eq!(sweep(u64::MAX), (523, 1, 0, 2));
}

#[test]
fn what_changed_since_it_was_read_is_not_swept() {
    let (mut ledger, space) = guest(2, 2);
    populate(&mut ledger, space, 0);
    let batch = scanned(&mut ledger, 2);
    let page = |first| Extent { space, first, count: 1 };
    assert_eq!(ledger.write_fault(page(1)), WriteFault::Lift);
    ledger.pin(page(2));
    ledger.unpin(page(2), TELLS, &mut vec![]);
    ledger.removed(&[page(3)], RemovedBy::Other);
    populate(&mut ledger, space, 3);
    assert_eq!(ledger.fault(space, 4), Fault::Present);
    let mut out = vec![];
    let tally = ledger.swept(&batch, PageCount(u64::MAX), &mut out);
    assert_eq!((tally.pages.0, tally.left.0), (508, 4));
    assert_eq!(ledger.write_fault(page(0)), WriteFault::Leaving);
    out.drain(..).for_each(|discard| ledger.discarded(discard));
    assert_eq!(ledger.write_fault(page(0)), WriteFault::Lift);
    assert_eq!(resident(&ledger), 4);
    let mut none = vec![];
    ledger.end_batch();
    assert_eq!(ledger.swept(&batch, PageCount(u64::MAX), &mut none).pages.0, 0, "the batch is closed");
}

#[test]
fn looking_for_something_to_sweep_is_bounded() {
    let (mut ledger, space) = guest(1000, 1000);
    ledger.begin_sweep();
    let mut calls = 0;
    while ledger.next_batch(1, &mut vec![]) == Batch::Nothing {
        calls += 1;
    }
    assert_eq!(calls, 1000 / 64);
    populate(&mut ledger, space, 0);
    assert_eq!(scanned(&mut ledger, 1), [Extent { space, first: 0, count: 512 }]);
}

#[test]
fn what_moves_in_a_space_goes_with_it() {
    let (mut ledger, space) = guest(3, 3);
    populate(&mut ledger, space, 0);
    assert!(matches!(ledger.fault(space, 512), Fault::Populate(_)));
    ledger.inflate(&[Extent { space, first: 0, count: 9 }], TELLS, &mut vec![]);
    scanned(&mut ledger, 3);
    ledger.remove_space(space);
    assert_eq!((resident(&ledger), ledger.protected(), ledger.audit()), (0, None, Ok(ledger.counts())));
    let space = ledger.add_space_on_demand(key(1), PageCount(1536), Granule::Page).unwrap();
    ledger.begin_sweep();
    assert_eq!(ledger.next_batch(3, &mut vec![]), Batch::Over);
    assert_eq!(populate(&mut ledger, space, 0), (0, 512), "nothing there is on its way");
    assert_eq!(populate(&mut ledger, space, 512), (512, 512));
}
