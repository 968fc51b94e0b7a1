//! A pager that dies for good.

use plimsoll_uffd::agreement::OnPagerLoss;
use plimsoll_uffd::handover::PodListener;
use plimsoll_units::PAGE_SIZE;

use crate::bed::{Bed, SIZE, Vmm, page};
use crate::pager::accept;

/// A VMM whose pager has accepted it and is gone, with a fault read and not answered.
fn lost(bed: &Bed) -> Vmm {
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let taken = accept(&listener, bed);
    assert_eq!(vmm.reply(), "ok");
    vmm.begin("touch 0");
    assert_eq!(taken.fault(), 0);
    vmm.waits();
    vmm
}

#[test]
fn with_stall_who_touches_missing_memory_waits() {
    let Some(bed) = Bed::new("with_stall_who_touches_missing_memory_waits") else { return };
    let mut vmm = lost(&bed);
    vmm.waits();
    assert_eq!(bed.resident(), 0);
    vmm.process.kill().unwrap();
}

#[test]
fn with_stall_what_is_there_can_be_used_and_the_loss_is_said_once() {
    let Some(bed) = Bed::new("with_stall_what_is_there_can_be_used_and_the_loss_is_said_once") else {
        return;
    };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let taken = accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    taken.fill(0);
    taken.fill(PAGE_SIZE);
    drop((taken, listener));
    assert_eq!(vmm.ask("touch 0"), "ok 1");
    for _ in 0..3 {
        assert_eq!(vmm.ask(&format!("punch {} {PAGE_SIZE}", page(1))), "ok");
    }
    assert_eq!(bed.resident(), PAGE_SIZE);
    let said = vmm.said();
    assert!(said.lines().count() == 1 && said.contains("waits for ever"), "{said}");
    vmm.begin(&format!("touch {}", page(1)));
    vmm.waits();
}

#[test]
fn with_open_the_vmm_goes_on_without_a_limit() {
    let Some(mut bed) = Bed::new("with_open_the_vmm_goes_on_without_a_limit") else { return };
    bed.loss = OnPagerLoss::Open;
    let mut vmm = lost(&bed);
    assert_eq!(vmm.reply(), "ok 1");
    let pages = SIZE / PAGE_SIZE;
    assert_eq!(vmm.ask(&format!("touch 0 {pages}")), format!("ok {pages}"));
    assert_eq!(bed.resident(), SIZE);
    assert_eq!(vmm.ask(&format!("punch 0 {PAGE_SIZE}")), "ok");
    let said = vmm.said();
    assert!(said.lines().count() == 1 && said.contains("nothing limits its memory"), "{said}");
}
