//! Drivers that do what the specification says, as Linux does it.

use plimsoll_frames::Extent;
use plimsoll_units::{BalloonSize, PageCount};

use super::rig::{BUFFERS, Rig, WRITE};
use crate::{Features, Outcome, Role};

const DONE: Outcome = Outcome::Complete { written: 0 };
/// Pages of the file before the guest's memory.
const BASE: u64 = 512;

fn set(pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
    pages.into_iter().collect()
}

#[test]
fn buffers_of_256_descending_pages_are_joined_to_a_frame() {
    let mut rig = Rig::new(2048, Features::DEFAULT);
    let before = rig.resident();
    assert_eq!(rig.name(Role::Inflate, (768..1024).rev()), DONE);
    assert_eq!((before - rig.resident(), rig.device.counters().whole_frames), (256, 0));
    assert_eq!(rig.name(Role::Inflate, (512..768).rev()), DONE);
    assert_eq!((before - rig.resident(), rig.device.counters().whole_frames), (512, 1));
    assert_eq!(rig.lost(), set(512..1024));
    let counters = rig.device.counters();
    assert_eq!((counters.inflated_pages, counters.discards, counters.bad_buffers()), (512, 2, 0));
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(512));
}

#[test]
fn deflated_pages_are_the_guests_again() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    rig.name(Role::Inflate, 600..700);
    assert_eq!(rig.name(Role::Deflate, (650..700).rev()), DONE);
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(50));
    (600..700).for_each(|page| rig.refill(page));
    // The rest of the frame: pages 600..650 are still in the balloon, 650..700 are not.
    rig.name(Role::Inflate, set(512..600).into_iter().chain(700..1024));
    assert_eq!(rig.lost(), set((512..600).chain(700..1024)));
}

#[test]
fn without_the_promise_only_the_present_buffer_is_discarded() {
    let mut rig = Rig::new(1024, Features::DEFAULT.without(Features::MUST_TELL_HOST));
    rig.name(Role::Inflate, 512..768);
    (512..768).for_each(|page| rig.refill(page));
    rig.name(Role::Inflate, 768..1024);
    assert_eq!(rig.lost(), set(768..1024));
}

#[test]
fn a_promise_that_comes_late_does_not_cover_what_was_before() {
    let mut rig = Rig::new(1024, Features::DEFAULT.without(Features::MUST_TELL_HOST));
    rig.name(Role::Inflate, 512..768);
    rig.device.set_acked_features(Features::DEFAULT.0);
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(0));
    (512..768).for_each(|page| rig.refill(page));
    rig.name(Role::Inflate, 768..1024);
    assert_eq!(rig.lost(), set(768..1024));
}

#[test]
fn reports_are_discarded_before_they_are_answered() {
    let mut rig = Rig::new(2048, Features::DEFAULT);
    let before = rig.resident();
    // 32 buffers of 128 KiB, as Linux would send 32 of 2 MiB and more.
    let pages = |n: u64| BASE + n * 64..BASE + n * 64 + 32;
    let buffers: Vec<_> = (0..32).map(|n| (rig.pfn(pages(n).start) << 12, 32 << 12, WRITE)).collect();
    assert_eq!(rig.send(Role::Reporting, &buffers), DONE);
    assert_eq!(before - rig.resident(), 32 * 32);
    assert_eq!(rig.lost(), set((0..32).flat_map(pages)));
    assert_eq!(rig.device.ledger().counts().reported, PageCount(1024));
    assert_eq!((rig.device.counters().reported_pages, rig.device.counters().bad_buffers()), (1024, 0));
}

#[test]
fn reported_pages_in_use_again_do_not_complete_a_frame() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    let buffer = (rig.pfn(512) << 12, 256 << 12, WRITE);
    rig.send(Role::Reporting, &[buffer]);
    (512..768).for_each(|page| rig.refill(page));
    rig.name(Role::Inflate, 768..1024);
    assert_eq!(rig.lost(), set(768..1024));
}

#[test]
fn poisoned_pages_are_left_alone() {
    for (features, poison, expected) in [
        (Features::DEFAULT, 0xaaaa_aaaa_u32, 0),
        (Features::DEFAULT, 0, 8),
        (Features::DEFAULT.without(Features::PAGE_POISON), 0xaaaa_aaaa, 8),
    ] {
        let mut rig = Rig::new(512, features);
        assert!(rig.device.write_config(12, &poison.to_le_bytes()).poison_val);
        let buffer = (rig.pfn(600) << 12, 8 << 12, WRITE);
        assert_eq!(rig.send(Role::Reporting, &[buffer]), DONE);
        assert_eq!(rig.lost().len(), expected);
        assert_eq!(rig.device.counters().poisoned_reports, u64::from(expected == 0));
        rig.name(Role::Inflate, [700]);
        assert_eq!(rig.lost().len(), expected + 1, "inflated pages may always be discarded");
    }
}

#[test]
fn statistics_are_held_until_they_are_asked_for() {
    let mut rig = Rig::new(512, Features::DEFAULT);
    let send = |rig: &mut Rig, entries: &[(u16, u64)]| {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(tag, value)| tag.to_le_bytes().into_iter().chain(value.to_le_bytes()))
            .collect();
        vm_memory::Bytes::write_slice(&*rig.memory, &bytes, vm_memory::GuestAddress(BUFFERS)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        // Cut within an entry: descriptors do not matter.
        rig.send(Role::Stats, &[(BUFFERS, 13, 0), (BUFFERS + 13, len - 13, 0)])
    };
    assert_eq!(rig.device.take_held(), None);
    assert_eq!(send(&mut rig, &[(4, 1 << 30), (6, 2 << 30)]), Outcome::Hold);
    let stats = rig.device.stats();
    assert_eq!((stats.values[4], stats.values[6], stats.values[5]), (Some(1 << 30), Some(2 << 30), None));
    assert_eq!((stats.sequence, rig.device.is_holding()), (1, true));
    assert_eq!(rig.device.take_held(), Some(0));
    assert_eq!(rig.device.take_held(), None);
    assert_eq!(send(&mut rig, &[(77, 1), (15, 9)]), Outcome::Hold);
    assert_eq!(rig.device.stats().values.iter().flatten().count(), 1);
    assert_eq!((rig.device.stats().sequence, rig.device.counters().unknown_tags), (2, 1));
    assert_eq!(rig.device.counters().bad_buffers(), 0);
}

#[test]
fn a_second_statistics_buffer_goes_back_at_once() {
    let mut rig = Rig::new(512, Features::DEFAULT);
    assert_eq!(rig.send(Role::Stats, &[(BUFFERS, 10, 0)]), Outcome::Hold);
    assert_eq!(rig.send(Role::Stats, &[(BUFFERS, 10, 0)]), DONE);
    assert_eq!((rig.device.counters().extra_stats_buffers, rig.device.take_held()), (1, Some(0)));
}

#[test]
fn a_page_under_io_keeps_its_contents_until_the_io_is_over() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    let space = rig.device.memory().regions()[0].space;
    let io = Extent { space, first: 600, count: 4 };
    rig.device.pin(io);
    rig.name(Role::Inflate, 598..606);
    assert_eq!(rig.lost(), [598, 599, 604, 605]);
    assert_eq!(rig.device.counters().pinned_pages, 4);
    rig.name(Role::Deflate, [601]);
    rig.device.unpin(io);
    assert_eq!(rig.lost(), [598, 599, 600, 602, 603, 604, 605]);
}

#[test]
fn stops_and_resets_give_the_guest_everything_back() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    let fill = |rig: &mut Rig| {
        rig.name(Role::Inflate, 600..700);
        rig.device.write_config(4, &100u32.to_le_bytes());
        rig.send(Role::Stats, &[(BUFFERS, 10, 0)]);
    };
    rig.device.config().set_num_pages(BalloonSize(PageCount(100)));
    fill(&mut rig);
    rig.device.on_ring_stop(Role::Deflate);
    rig.device.on_ring_stop(Role::Reporting);
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(100));
    rig.device.on_ring_stop(Role::Stats);
    assert_eq!((rig.device.take_held(), rig.device.config().actual().0), (None, PageCount(100)));
    rig.device.on_ring_stop(Role::Inflate);
    assert_eq!((rig.device.ledger().counts().ballooned.0, rig.device.config().actual().0.0), (0, 0));
    fill(&mut rig);
    rig.device.reset();
    assert_eq!((rig.device.ledger().counts().ballooned.0, rig.device.config().actual().0.0), (0, 0));
    assert_eq!((rig.device.take_held(), rig.device.config().num_pages().0), (None, PageCount(100)));
}
