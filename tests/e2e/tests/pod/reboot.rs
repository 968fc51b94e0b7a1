//! A guest that reboots: everything it had is outstanding again.

use plimsoll_e2e::{Bed, CALM, PATIENCE, mib};

use crate::kit::{MEMORY, boot, pager, possible, verify};

#[test]
fn a_guest_that_reboots_begins_with_nothing() {
    const TEST: &str = "a_guest_that_reboots_begins_with_nothing";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    let Some((vm, meter)) = boot(&bed, "web", &["--append", "loglevel=5"]) else { return };
    vm.reaches(mib(MEMORY));
    let fresh = vm.resident();
    vm.send("fill 100M");
    let full = vm.wait_resident("what it has filled", |now| now > mib(140));
    let before = vm.view();

    vm.begin("reboot");
    vm.console.wait_ready(2, PATIENCE * 2).unwrap_or_else(|error| panic!("{error}"));
    bed.wait_event("web", "rebooted");
    vm.wait("to be ballooned to its target again", PATIENCE, |view| view.actual.0 == mib(MEMORY));
    let after = vm.view();
    assert_eq!((after.vmm, after.keeper, after.target), (before.vmm, before.keeper, before.target));
    let again = vm.resident();
    assert!(
        again <= fresh.plus(mib(32)),
        "{again} where it had {fresh} after its first start, and {full} before the second"
    );
    let pager = pager(&vm);
    assert!(pager.resident.plus(pager.outstanding.bytes()) <= mib(MEMORY), "{pager:?}");
    assert_eq!(bed.count("web", "rebooted"), 1, "{:#?}", bed.events(Some("web")));
    assert_eq!((bed.count("web", "target"), pager.stalls), (0, 0), "{:#?}", bed.events(Some("web")));
    vm.send("fill 100M");
    verify(&vm, mib(100));
    meter.never_above(mib(MEMORY));
}

#[test]
fn a_guest_whose_reboot_nobody_hears_of_comes_up_within_its_limit() {
    const TEST: &str = "a_guest_whose_reboot_nobody_hears_of_comes_up_within_its_limit";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    let Some((vm, meter)) = boot(&bed, "web", &["--append", "loglevel=5"]) else { return };
    vm.reaches(mib(MEMORY));
    bed.kill_daemon();
    vm.begin("reboot");
    vm.console.wait_ready(2, PATIENCE * 2).unwrap_or_else(|error| panic!("{error}"));
    meter.never_above(mib(MEMORY));
    bed.start_daemon();
    vm.wait("to be ballooned to its target again", PATIENCE, |view| view.actual.0 == mib(MEMORY));
    vm.send("fill 64M");
    verify(&vm, mib(64));
    meter.never_above(mib(MEMORY));
}
