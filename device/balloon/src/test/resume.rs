//! A device that takes over from one that was killed.

use plimsoll_units::{BalloonSize, PageCount};

use super::rig::{BUFFERS, Rig};
use crate::{Features, Outcome, Role};

#[test]
fn configuration_and_ledger_go_on_where_they_were() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    rig.device.config().set_num_pages(BalloonSize(PageCount(300)));
    rig.device.write_config(4, &256u32.to_le_bytes());
    rig.device.write_config(12, &0u32.to_le_bytes());
    rig.name(Role::Inflate, 512..768);
    rig.take_over(Features::DEFAULT);
    assert_eq!(rig.device.config().num_pages(), BalloonSize(PageCount(300)));
    assert_eq!(rig.device.config().actual(), BalloonSize(PageCount(256)));
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(256));
    let before = rig.resident();
    // Joined to a frame with what the device before it took.
    (600..610).for_each(|page| rig.refill(page));
    rig.name(Role::Inflate, 768..1024);
    assert_eq!((before - rig.resident(), rig.device.counters().whole_frames), (256, 1));
    rig.device.ledger().audit().unwrap();
}

#[test]
fn a_chain_that_is_run_again_counts_once_and_discards_no_more() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    rig.name(Role::Inflate, 600..700);
    rig.take_over(Features::DEFAULT);
    assert_eq!(rig.name(Role::Inflate, 600..700), Outcome::Complete { written: 0 });
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(100));
    assert_eq!(rig.device.counters().repeated_pages, 100);
    assert_eq!(rig.lost(), (600..700).collect::<Vec<_>>());
}

#[test]
fn the_statistics_buffer_in_flight_is_held_again() {
    let mut rig = Rig::new(512, Features::DEFAULT);
    rig.send(Role::Stats, &[(BUFFERS, 20, 0)]);
    rig.take_over(Features::DEFAULT);
    assert_eq!(rig.device.take_held(), None);
    assert_eq!(rig.send(Role::Stats, &[(BUFFERS, 20, 0)]), Outcome::Hold);
    assert_eq!(rig.device.take_held(), Some(0));
}
