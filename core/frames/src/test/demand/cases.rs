//! Cases by hand.

use alloc::vec;

use plimsoll_units::{Bytes, MemTarget, PageCount};

use crate::test::{Words, fresh, from_image, image, key};
use crate::{
    AuditError, Batch, Extent, Fault, Granule, Ledger, LedgerError, PageState, Reboot, RemovedBy, Reuse,
    SpaceError, SpaceId, Totals,
};

pub(super) const TELLS: Reuse = Reuse::TellsFirst;

/// A guest of this many frames and such a target, both with 2 MiB as their unit.
pub(super) fn guest(frames: u32, target: u64) -> (Ledger<Words>, SpaceId) {
    let mut ledger = fresh(frames, frames);
    let pages = PageCount(u64::from(frames) * 512);
    let space = ledger.add_space_on_demand(key(0), pages, Granule::Page).unwrap();
    ledger.set_target(MemTarget(Bytes::mib(2 * target)));
    (ledger, space)
}

/// Populates, and says so.
pub(super) fn populate(ledger: &mut Ledger<Words>, space: SpaceId, page: u64) -> (u64, u64) {
    let Fault::Populate(extent) = ledger.fault(space, page) else { panic!("page {page} was not populated") };
    ledger.populated(extent, TELLS, &mut vec![]);
    (extent.first, extent.count)
}

pub(super) fn resident(ledger: &Ledger<Words>) -> u64 {
    ledger.residency().resident.0
}

#[test]
fn what_cannot_be_on_demand_is_refused() {
    let mut ledger = fresh(4, 3);
    let add = |ledger: &mut Ledger<Words>, pages, granule| {
        ledger.add_space_on_demand(key(0), PageCount(pages), granule)
    };
    assert_eq!(add(&mut ledger, 512, Granule::Page), Err(SpaceError::FewMaps { frames: 4, maps: 3 }));
    let mut ledger = fresh(4, 4);
    assert_eq!(add(&mut ledger, 512, Granule::Never), Err(SpaceError::HugePages(key(0))));
    assert_eq!(add(&mut ledger, 700, Granule::Frame), Err(SpaceError::HugePages(key(0))));
    let space = add(&mut ledger, 700, Granule::Page).unwrap();
    assert_eq!(add(&mut ledger, 700, Granule::Page), Ok(space));
    let other_way = ledger.add_space(key(0), PageCount(700), Granule::Page);
    assert!(matches!(other_way, Err(SpaceError::Changed { .. })));
    assert_eq!(ledger.counts().outstanding, PageCount(700));
    ledger.remove_space(space);
    assert_eq!(ledger.counts().total(), PageCount(0));
    assert_eq!(ledger.audit(), Ok(ledger.counts()));
}

#[test]
fn a_ledger_of_the_version_before_is_refused() {
    let mut words = image(&fresh(2, 2));
    words[1] = 1;
    let refused = Ledger::attach(from_image(&words)).err();
    assert_eq!(refused, Some(LedgerError::Version { found: 1, known: 2 }));
}

#[test]
fn adding_a_space_on_demand_is_done_or_not() {
    let mut ledger = fresh(4, 4);
    let mut words = image(&ledger);
    ledger.words.log.take();
    ledger.add_space_on_demand(key(0), PageCount(1500), Granule::Page).unwrap();
    for (at, value) in ledger.words.log.take() {
        words[at] = value;
        let (survivor, _) = Ledger::attach(from_image(&words)).unwrap();
        assert_eq!(survivor.audit(), Ok(survivor.counts()));
        let outstanding = survivor.counts().outstanding.0;
        assert_eq!(outstanding, 1500 * u64::try_from(survivor.spaces().count()).unwrap());
    }
    let mut words = image(&ledger);
    let space = ledger.spaces().next().unwrap().0;
    ledger.set_target(MemTarget(Bytes::mib(4)));
    populate(&mut ledger, space, 1400);
    for (at, value) in ledger.words.log.take() {
        words[at] = value;
    }
    ledger.remove_space(space);
    for (at, value) in ledger.words.log.take() {
        words[at] = value;
        let (survivor, _) = Ledger::attach(from_image(&words)).unwrap();
        assert_eq!((survivor.counts().total(), resident(&survivor)), (PageCount(0), 0));
        assert_eq!(survivor.audit(), Ok(survivor.counts()));
    }
}

#[test]
fn nothing_is_populated_before_there_is_a_target() {
    let (mut ledger, space) = guest(2, 0);
    assert!(matches!(ledger.fault(space, 0), Fault::Exhausted(_)));
    assert_eq!(ledger.fault(space, 1024), Fault::Unknown);
    assert_eq!(ledger.fault(SpaceId(9), 0), Fault::Unknown);
    ledger.set_target(MemTarget(PageCount(1).bytes().plus(Bytes(4095))));
    assert_eq!(populate(&mut ledger, space, 7), (7, 1));
    assert_eq!(ledger.totals(), Totals { populated_pages: 1, exhausted: 1, ..Totals::default() });
}

#[test]
fn frames_are_populated_whole_while_there_is_room_and_in_pieces_after() {
    let (mut ledger, space) = guest(4, 1);
    ledger.set_target(MemTarget(PageCount(512 + 80).bytes()));
    assert_eq!(populate(&mut ledger, space, 600), (512, 512));
    assert_eq!(populate(&mut ledger, space, 5), (5, 10), "an eighth of 80");
    assert_eq!(populate(&mut ledger, space, 4), (0, 5), "what is below, after all there is above");
    let mut faults = 0;
    while let Fault::Populate(extent) = ledger.fault(space, 100 + faults * 9) {
        ledger.populated(extent, TELLS, &mut vec![]);
        faults += 1;
        assert!(faults < 40);
    }
    assert_eq!(ledger.residency().room(), PageCount(0));
    assert_eq!(ledger.totals().populated_frames, 1);
}

#[test]
fn the_balloon_is_spared_unless_the_guest_is_taking_it_back() {
    let (mut ledger, space) = guest(4, 3);
    let named = [Extent { space, first: 0, count: 10 }, Extent { space, first: 512, count: 512 }];
    ledger.removed(&named, RemovedBy::Balloon);
    assert_eq!(populate(&mut ledger, space, 20), (10, 502));
    assert_eq!(populate(&mut ledger, space, 3), (0, 10));
    assert_eq!(populate(&mut ledger, space, 700), (512, 512), "deflated without a word");
    assert_eq!(ledger.counts().ballooned, PageCount(0));
}

#[test]
fn a_lowered_target_is_reached_page_by_page_over_a_crash() {
    let (mut ledger, space) = guest(4, 3);
    for page in [0, 512, 1024] {
        populate(&mut ledger, space, page);
    }
    ledger.set_target(MemTarget(Bytes::mib(2)));
    let limits = |ledger: &Ledger<Words>| (ledger.residency().limit().0, ledger.residency().room().0);
    assert_eq!(limits(&ledger), (1536, 0));
    ledger.removed(&[Extent { space, first: 0, count: 600 }], RemovedBy::Balloon);
    assert_eq!(limits(&ledger), (936, 0));
    assert!(matches!(ledger.fault(space, 0), Fault::Exhausted(_)), "what came back stays away");
    let (mut ledger, _) = Ledger::attach(from_image(&image(&ledger))).unwrap();
    assert_eq!(limits(&ledger), (936, 0));
    ledger.removed(&[Extent { space, first: 600, count: 524 }], RemovedBy::Balloon);
    assert_eq!(limits(&ledger), (512, 100));
    ledger.set_target(MemTarget(Bytes::mib(8)));
    assert_eq!(limits(&ledger), (2048, 1636));
    let totals = ledger.totals();
    assert_eq!((totals.returned_frames, totals.split_frames, totals.returned_pages), (1, 2, 1124));
}

#[test]
fn room_comes_with_the_answer_to_a_discard_and_a_fault_waits_for_it() {
    let (mut ledger, space) = guest(2, 1);
    populate(&mut ledger, space, 0);
    let mut out = vec![];
    ledger.inflate(&[Extent { space, first: 0, count: 512 }], TELLS, &mut out);
    assert_eq!((ledger.counts().ballooned.0, resident(&ledger)), (512, 512));
    assert_eq!(ledger.fault(space, 3), Fault::Leaving);
    assert!(matches!(ledger.fault(space, 600), Fault::Exhausted(_)));
    ledger.discarded(out[0]);
    assert_eq!((ledger.counts().ballooned.0, resident(&ledger)), (512, 0));
    assert_eq!(ledger.totals().returned_frames, 1);
    assert_eq!(populate(&mut ledger, space, 600), (512, 512));
}

#[test]
fn what_failed_is_as_if_it_had_not_been_begun() {
    let (mut ledger, space) = guest(2, 1);
    let Fault::Populate(extent) = ledger.fault(space, 3) else { panic!() };
    assert_eq!(ledger.fault(space, 4), Fault::Arriving);
    ledger.populate_failed(extent);
    assert_eq!((resident(&ledger), ledger.counts().outstanding), (0, PageCount(1024)));
    assert_eq!(populate(&mut ledger, space, 3), (0, 512));
    let mut out = vec![];
    ledger.inflate(&[extent], TELLS, &mut out);
    ledger.discard_failed(out[0]);
    assert_eq!((resident(&ledger), ledger.counts().ballooned), (512, PageCount(512)));
    ledger.discarded(out[0]);
    assert_eq!(resident(&ledger), 512, "nobody waits for that answer any more");
    ledger.deflate(&[extent]);
    assert_eq!(ledger.counts().present, PageCount(512), "its memory never went");
}

#[test]
fn a_pin_says_what_is_missing_and_holds_what_is_there() {
    let (mut ledger, space) = guest(3, 3);
    populate(&mut ledger, space, 0);
    let io = Extent { space, first: 510, count: 4 };
    assert_eq!(ledger.pin(io), PageCount(2));
    assert_eq!(ledger.missing(io), Some(Extent { space, first: 512, count: 2 }));
    let Fault::Populate(extent) = ledger.fault(space, 512) else { panic!() };
    assert_eq!(ledger.missing(io).map(|run| run.first), Some(512), "not there before it is populated");
    ledger.populated(extent, TELLS, &mut vec![]);
    assert_eq!(ledger.missing(io), None);
    let mut out = vec![];
    let tally = ledger.inflate(&[Extent { space, first: 0, count: 1024 }], TELLS, &mut out);
    assert_eq!((tally.pinned, out.len()), (PageCount(4), 2));
    out.drain(..).for_each(|discard| ledger.discarded(discard));
    assert_eq!(resident(&ledger), 4);
    ledger.unpin(io, TELLS, &mut out);
    out.drain(..).for_each(|discard| ledger.discarded(discard));
    assert_eq!(resident(&ledger), 0);
}

#[test]
fn a_reboot_takes_everything_back_and_waits_for_io() {
    let (mut ledger, space) = guest(4, 3);
    for page in [0, 512, 1024] {
        populate(&mut ledger, space, page);
    }
    let io = Extent { space, first: 600, count: 1 };
    ledger.pin(io);
    ledger.begin_reboot();
    let mut out = vec![];
    assert_eq!(ledger.continue_reboot(2, &mut out), Reboot::More);
    let (mut ledger, repairs) = Ledger::attach(from_image(&image(&ledger))).unwrap();
    assert!(repairs.reboot);
    ledger.correct(Extent { space, first: 0, count: 2048 }, &[Extent { space, first: 0, count: 1536 }]);
    ledger.pin(io);
    out.clear();
    let waiting = ledger.continue_reboot(9, &mut out);
    assert_eq!(waiting, Reboot::Waiting { left: PageCount(1), leaving: PageCount(1535) });
    out.drain(..).for_each(|discard| ledger.discarded(discard));
    ledger.unpin(io, TELLS, &mut out);
    let waiting = ledger.continue_reboot(9, &mut out);
    assert_eq!(waiting, Reboot::Waiting { left: PageCount(0), leaving: PageCount(512) }, "in one piece");
    ledger.discarded(out[0]);
    assert_eq!(ledger.continue_reboot(9, &mut vec![]), Reboot::Done);
    assert_eq!((ledger.counts().outstanding.0, ledger.is_rebooting()), (2048, false));
}

#[test]
fn a_reboot_leaves_the_first_frames_alone_where_firmware_lies_there() {
    let (mut ledger, space) = guest(4, 3);
    for page in [0, 512, 1024] {
        populate(&mut ledger, space, page);
    }
    ledger.keep_at_reboot(1);
    ledger.begin_reboot();
    let mut out = vec![];
    assert_eq!(
        ledger.continue_reboot(9, &mut out),
        Reboot::Waiting { left: PageCount(0), leaving: PageCount(1024) }
    );
    out.drain(..).for_each(|discard| {
        assert!(discard.offset.0 >= 2 << 20, "{discard:?}");
        ledger.discarded(discard);
    });
    assert_eq!(ledger.continue_reboot(9, &mut out), Reboot::Done);
    assert_eq!((ledger.counts().present.0, ledger.counts().outstanding.0), (512, 1536));
    // More than there is leaves everything.
    ledger.keep_at_reboot(u64::MAX);
    ledger.begin_reboot();
    assert_eq!(ledger.continue_reboot(9, &mut out), Reboot::Done);
    assert_eq!((ledger.counts().present.0, out.len()), (512, 0));
}

#[test]
fn recovery_keeps_what_a_hole_was() {
    let (mut ledger, space) = guest(4, 4);
    let extent = |first, count| Extent { space, first, count };
    populate(&mut ledger, space, 0);
    assert!(matches!(ledger.fault(space, 512), Fault::Populate(_)), "and the process dies before it is");
    ledger.removed(&[extent(1024, 10)], RemovedBy::Balloon);
    let mut never = vec![];
    ledger.inflate(&[extent(0, 5)], TELLS, &mut never);
    let (mut ledger, _) = Ledger::attach(from_image(&image(&ledger))).unwrap();
    let corrected = ledger.correct(extent(0, 2048), &[extent(0, 512)]);
    assert_eq!((corrected.found.0, corrected.lost.0), (5, 512));
    assert_eq!(ledger.state(space, 512), Some(PageState::Outstanding));
    assert_eq!(ledger.state(space, 1024), Some(PageState::Ballooned));
    assert_eq!(ledger.state(space, 0), Some(PageState::Present), "the inflation is run again");
}

#[test]
fn the_kernel_may_count_less_for_a_while_and_never_more() {
    let (mut ledger, space) = guest(2, 2);
    populate(&mut ledger, space, 0);
    assert_eq!(ledger.audit_resident(PageCount(512)), Ok(PageCount(0)));
    assert_eq!(ledger.audit_resident(PageCount(500)), Ok(PageCount(12)));
    let unseen = AuditError::Unseen { resident: PageCount(512), kernel: PageCount(513) };
    assert_eq!(ledger.audit_resident(PageCount(513)), Err(unseen));
    assert!(matches!(ledger.fault(space, 512), Fault::Populate(_)));
    assert_eq!(ledger.audit_resident(PageCount(512)), Ok(PageCount(0)), "the rest is on its way");
}

#[test]
fn huge_pages_come_and_go_whole() {
    let mut ledger = fresh(2, 2);
    let space = ledger.add_space_on_demand(key(0), PageCount(1024), Granule::Frame).unwrap();
    ledger.set_target(MemTarget(PageCount(600).bytes()));
    assert_eq!(populate(&mut ledger, space, 100), (0, 512));
    assert!(matches!(ledger.fault(space, 600), Fault::Exhausted(numbers) if numbers.room() == PageCount(88)));
    let mut out = vec![];
    ledger.inflate(&[Extent { space, first: 0, count: 500 }], TELLS, &mut out);
    assert_eq!((out.len(), resident(&ledger)), (0, 512));
    ledger.inflate(&[Extent { space, first: 500, count: 12 }], TELLS, &mut out);
    ledger.discarded(out[0]);
    assert_eq!((out[0].len, resident(&ledger)), (Bytes::mib(2), 0));
    ledger.deflate(&[Extent { space, first: 9, count: 1 }]);
    assert_eq!(populate(&mut ledger, space, 9), (0, 512));
    assert_eq!((ledger.counts().ballooned.0, resident(&ledger)), (511, 512));
}

#[test]
fn words_that_claim_to_be_on_demand_without_maps_are_refused() {
    let mut ledger = fresh(4, 3);
    ledger.add_space(key(0), PageCount(700), Granule::Page).unwrap();
    let mut words = image(&ledger);
    words[19] |= 1 << 62;
    assert_eq!(Ledger::attach(from_image(&words)).err(), Some(LedgerError::Space(0)));
}

#[test]
fn a_reboot_that_was_only_begun_ends_what_was_given_up_elsewhere() {
    let (mut ledger, _) = guest(2, 2);
    let mut begun = image(&ledger);
    begun[5] = 1;
    assert!(Ledger::attach(from_image(&begun)).unwrap().1.reboot);
    let mut mixed = fresh(4, 4);
    let plain = mixed.add_space(key(3), PageCount(512), Granule::Page).unwrap();
    mixed.inflate(&[Extent { space: plain, first: 0, count: 512 }], TELLS, &mut vec![]);
    let mut begun = image(&mixed);
    begun[5] = 1;
    let (mut mixed, _) = Ledger::attach(from_image(&begun)).unwrap();
    assert_eq!(mixed.counts().ballooned, PageCount(0));
    assert_eq!(mixed.continue_reboot(1, &mut vec![]), Reboot::Done);
    assert_eq!(ledger.continue_reboot(1, &mut vec![]), Reboot::Done, "none is under way");
}

#[test]
fn a_huge_page_that_was_lost_in_part_is_taken_back_all_the_same() {
    let mut ledger = fresh(1, 1);
    let space = ledger.add_space_on_demand(key(0), PageCount(512), Granule::Frame).unwrap();
    ledger.set_target(MemTarget(Bytes::mib(2)));
    populate(&mut ledger, space, 0);
    ledger.removed(&[Extent { space, first: 0, count: 511 }], RemovedBy::Other);
    assert_eq!(ledger.next_batch(1, &mut vec![]), Batch::Over, "half a huge page cannot be swept");
    ledger.begin_reboot();
    let mut out = vec![];
    ledger.continue_reboot(1, &mut out);
    assert_eq!(out[0].len, Bytes::mib(2));
    ledger.discarded(out[0]);
    assert_eq!(ledger.continue_reboot(1, &mut out), Reboot::Done);
}
