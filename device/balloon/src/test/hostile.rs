//! Drivers that do what they should not: every defect is counted, answered, and costs no page that was not named.

use plimsoll_units::PageCount;

use super::rig::{BUFFERS, BUFFERS_END, NEXT, RAM, RAM_OFFSET, Rig, WRITE};
use crate::{Features, Outcome, Role};

const DONE: Outcome = Outcome::Complete { written: 0 };

fn rig() -> Rig {
    Rig::new(1024, Features::DEFAULT)
}

#[test]
fn descriptors_of_the_wrong_direction_name_nothing() {
    let mut rig = rig();
    let (addr, len, _) = rig.pfns(BUFFERS, [rig.pfn(600)]);
    let good = rig.pfns(BUFFERS + 64, [rig.pfn(700)]);
    assert_eq!(rig.send(Role::Inflate, &[(addr, len, WRITE), good]), DONE);
    assert_eq!(rig.lost(), [700]);
    let free = rig.pfn(601) << 12;
    assert_eq!(rig.send(Role::Reporting, &[(free, 4096, 0)]), DONE);
    assert_eq!(rig.lost(), [700]);
    assert_eq!((rig.device.counters().wrong_direction, rig.device.counters().empty_chains), (2, 1));
}

#[test]
fn empty_and_ragged_buffers_are_answered() {
    let mut rig = rig();
    for role in [Role::Inflate, Role::Deflate, Role::Reporting] {
        let flags = if role == Role::Reporting { WRITE } else { 0 };
        assert_eq!(rig.send(role, &[(BUFFERS, 0, flags)]), DONE);
    }
    assert_eq!(rig.send(Role::Stats, &[(BUFFERS, 0, 0)]), Outcome::Hold);
    assert_eq!(rig.device.counters().empty_chains, 4);
    let (addr, len, flags) = rig.pfns(BUFFERS, [rig.pfn(600), rig.pfn(601)]);
    for missing in 1..=3 {
        assert_eq!(rig.send(Role::Inflate, &[(addr, len - missing, flags)]), DONE);
    }
    assert_eq!((rig.lost(), rig.device.counters().ragged), (vec![600], 3));
}

#[test]
fn page_numbers_outside_memory_name_nothing() {
    let mut rig = rig();
    let last = rig.pfn(512 + 1023);
    let outside = [1, rig.pfn(512) - 1, last + 1, u64::from(u32::MAX), BUFFERS >> 12];
    let pfns = rig.pfns(BUFFERS, outside.into_iter().chain([last]));
    assert_eq!(rig.send(Role::Inflate, &[pfns]), DONE);
    assert_eq!((rig.lost(), rig.device.counters().outside_pages), (vec![1535], 5));
}

#[test]
fn numbers_of_64_bits_do_not_cost_the_guest_its_first_page() {
    let mut rig = Rig::at(0, 0, 1024, Features::DEFAULT);
    let pfns = rig.pfns(BUFFERS, (600..700).flat_map(|pfn| [pfn, 0]));
    assert_eq!(rig.send(Role::Inflate, &[pfns]), DONE);
    assert_eq!(rig.lost(), (600..700).collect::<Vec<_>>());
    assert_eq!((rig.device.counters().zero_pfns, rig.device.counters().inflated_pages), (100, 100));
}

#[test]
fn a_page_in_two_regions_is_no_page() {
    let mut rig = rig();
    let half = (1 << 20) + 2048;
    let table = vec![rig.region(RAM, RAM_OFFSET, half), rig.region(RAM + half, RAM_OFFSET + half, 1 << 20)];
    rig.device.replace_memory(table).unwrap();
    // 256 whole pages, one of two halves, pages whole again, and half a page at the end.
    rig.name_anywhere();
    let last = rig.pfns(BUFFERS, [(RAM >> 12) + 512]);
    rig.send(Role::Inflate, &[last]);
    assert_eq!(rig.device.counters().straddling_pages, 2);
    assert_eq!(rig.lost(), (512..768).chain(769..1024).collect::<Vec<_>>());
}

#[test]
fn memory_at_odd_offsets_has_no_pages() {
    let mut rig = rig();
    let table = vec![rig.region(RAM, RAM_OFFSET + 2048, 1 << 20)];
    rig.device.replace_memory(table).unwrap();
    rig.name_anywhere();
    rig.send(Role::Reporting, &[(RAM, 1 << 20, WRITE)]);
    assert_eq!((rig.lost(), rig.device.counters().straddling_pages), (vec![], 256));
}

#[test]
fn a_report_is_clipped_to_whole_pages_of_the_memory() {
    let mut rig = rig();
    let end = RAM + (4 << 20);
    for (addr, len) in [
        (end - 8192, 1 << 20),
        (RAM - 4096, 8192),
        (RAM + 8192 + 1, 3 * 4096),
        (end, 4096),
        (RAM + 100, 1000),
    ] {
        assert_eq!(rig.send(Role::Reporting, &[(addr, len, WRITE)]), DONE);
    }
    assert_eq!(rig.lost(), [512, 515, 516, 1534, 1535]);
    assert_eq!(rig.device.counters().clipped_reports, 5);
    assert_eq!(rig.device.ledger().counts().reported, PageCount(5));
}

#[test]
fn a_report_that_leaves_64_bits_is_clipped() {
    let mut rig = rig();
    assert_eq!(
        rig.send(Role::Reporting, &[(u64::MAX - 4095, 8192, WRITE), (u64::MAX, u32::MAX, WRITE)]),
        DONE
    );
    assert!(rig.lost().is_empty());
}

#[test]
fn buffers_outside_memory_are_answered() {
    let mut rig = rig();
    for (addr, len) in [(0, 4096), (u64::MAX, 4), (u64::MAX - 3, 4), (BUFFERS_END - 4, 8), (RAM - 4, 8)] {
        assert_eq!(rig.send(Role::Inflate, &[(addr, len, 0)]), DONE);
        assert_eq!(rig.send(Role::Deflate, &[(addr, len, 0)]), DONE);
        rig.send(Role::Stats, &[(addr, len, 0)]);
    }
    assert_eq!((rig.lost(), rig.device.counters().unreadable), (vec![], 15));
}

#[test]
fn an_oversized_buffer_is_read_to_its_end() {
    let mut rig = rig();
    // 16 KiB of page numbers: every page four times over, which is more than twice.
    let pages: Vec<_> = (0..2).flat_map(|_| 512..1536).map(|page| rig.pfn(page)).collect();
    let once = rig.pfns(BUFFERS, pages);
    assert_eq!(rig.send(Role::Inflate, &[once]), DONE);
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(1024));
    assert_eq!(rig.device.counters().over_limit, 0);
    assert_eq!(rig.send(Role::Inflate, &[once, once]), DONE);
    assert_eq!((rig.device.counters().over_limit, rig.lost().len()), (1, 1024));
}

#[test]
fn endless_chains_end() {
    let mut rig = rig();
    let (addr, len, _) = rig.pfns(BUFFERS, [rig.pfn(600)]);
    let itself = rig.chain(0, &[(addr, len, NEXT, 0)]);
    assert_eq!(rig.device.handle(Role::Inflate, itself), DONE);
    let two = rig.chain(1, &[(addr, len, NEXT, 1), (addr, len, NEXT, 0)]);
    assert_eq!(rig.device.handle(Role::Deflate, two), DONE);
    // Far more than the guest has pages, over and over.
    let whole = rig.chain(0, &[(BUFFERS, 1 << 20, NEXT, 0)]);
    assert_eq!(rig.device.handle(Role::Inflate, whole), DONE);
    let report = rig.chain(0, &[(RAM, 4 << 20, NEXT | WRITE, 0)]);
    assert_eq!(rig.device.handle(Role::Reporting, report), DONE);
    assert_eq!(rig.device.counters().over_limit, 2);
}

#[test]
fn a_deflation_that_cannot_be_read_whole_empties_the_balloon() {
    // The guest goes on as if it had taken its pages back, whichever they were.
    let unreadable = (BUFFERS_END - 4, 8, 0);
    let endless = (BUFFERS, 1 << 20, 0);
    for buffer in [unreadable, endless] {
        let mut rig = rig();
        rig.name(Role::Inflate, 512..768);
        (512..768).for_each(|page| rig.refill(page));
        assert_eq!(rig.send(Role::Deflate, &[buffer]), DONE);
        assert_eq!(rig.device.ledger().counts().ballooned, PageCount(0));
        rig.name(Role::Inflate, 768..1024);
        assert_eq!(rig.lost(), (768..1024).collect::<Vec<_>>());
    }
}

#[test]
fn broken_indirect_tables_are_answered() {
    const INDIRECT: u16 = 4;
    let mut rig = rig();
    for (addr, len, next) in
        [(BUFFERS, 15, 0), (BUFFERS, 16, 0), (0, 16, 0), (u64::MAX, 1 << 30, 0), (BUFFERS, 0, 63)]
    {
        let chain = rig.chain(0, &[(addr, len, INDIRECT | NEXT, next)]);
        assert_eq!(rig.device.handle(Role::Inflate, chain), DONE);
    }
    let beyond = rig.chain(0, &[(BUFFERS, 4, NEXT, 999)]);
    assert_eq!(rig.device.handle(Role::Inflate, beyond), DONE);
    assert!(rig.lost().is_empty());
}

#[test]
fn statistics_are_read_up_to_a_bound() {
    let mut rig = rig();
    let chain = rig.chain(0, &[(BUFFERS, 1 << 20, NEXT, 0)]);
    assert_eq!(rig.device.handle(Role::Stats, chain), Outcome::Hold);
    let counters = rig.device.counters();
    assert_eq!((counters.stats_overlong, counters.stats_buffers), (1, 1));
    assert_eq!(rig.device.stats().values[0], Some(0));
}

#[test]
fn a_kernel_that_refuses_is_reported_and_survived() {
    let mut rig = rig();
    rustix::fs::fcntl_add_seals(&rig.file, rustix::fs::SealFlags::FUTURE_WRITE).unwrap();
    assert_eq!(rig.name(Role::Inflate, 600..610), DONE);
    assert_eq!((rig.device.counters().discard_errors, rig.device.counters().discards), (1, 0));
    let message = rig.device.take_discard_error().unwrap().to_string();
    assert!(message.contains("did not discard 40960 bytes at 2457600"), "{message}");
    assert!(rig.device.take_discard_error().is_none());
}
