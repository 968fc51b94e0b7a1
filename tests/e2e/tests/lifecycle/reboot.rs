//! A guest that reboots with a full balloon.

use plimsoll_e2e::{Bed, CALM, Kind, PATIENCE, mib};

use crate::{Scale, fill_and_verify};

fn reboots(test: &str, kind: Kind) {
    let Some(bed) = Bed::new(test, CALM) else { return };
    let scale = Scale::of(kind);
    let Some(vm) = bed.run(kind, "web", scale.sizes(), &[]) else { return };
    bed.ok(&["set", "web", &format!("memory={}M", scale.low)]);
    let before = vm.reaches(mib(scale.low));
    assert_eq!(bed.count("web", "rebooted"), 0, "{:#?}", bed.events(Some("web")));

    vm.begin("reboot");
    vm.console.wait_ready(2, PATIENCE * 2).unwrap_or_else(|error| panic!("{error}"));
    // Down and up again may fit between two ticks: until the daemon has seen it, the old guest is shown.
    bed.wait_event("web", "rebooted");
    vm.wait("to be ballooned to its target again", PATIENCE, |view| view.actual.0 == mib(scale.low));
    // Nobody took the reboot for another VM, or for a reason to give it more.
    let after = vm.view();
    assert_eq!((after.id, after.vmm, after.keeper), (before.id, before.vmm, before.keeper));
    assert_eq!(after.target.0, mib(scale.low));
    for (kind, times) in [("rebooted", 1), ("distressed", 0), ("stuck", 0)] {
        assert_eq!(bed.count("web", kind), times, "{kind}: {:#?}", bed.events(Some("web")));
    }
    vm.wait_resident("at most the target", |now| now <= mib(scale.low));

    // No page that the new guest uses is counted as the old one's.
    fill_and_verify(&vm, mib(16));
    bed.ok(&["set", "web", &format!("memory={}M", scale.memory)]);
    vm.reaches(mib(scale.memory));
    fill_and_verify(&vm, mib(scale.fill - 16));
    if let Some(backend) = vm.view().backend {
        assert_eq!(backend.generation, 2, "{backend:?}");
        assert_eq!(backend.ledger.ballooned.bytes(), mib(scale.maxmem - scale.memory), "{backend:?}");
    }
}

#[test]
fn a_uml_guest_rebooted_while_inflated_comes_back_ballooned() {
    reboots("a_uml_guest_rebooted_while_inflated_comes_back_ballooned", Kind::Uml);
}

#[test]
fn a_qemu_guest_rebooted_while_inflated_comes_back_ballooned() {
    reboots("a_qemu_guest_rebooted_while_inflated_comes_back_ballooned", Kind::Qemu);
}
