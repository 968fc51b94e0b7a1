//! Free page reporting: what a guest frees is back on the host without anybody asking.

use plimsoll_e2e::{Bed, CALM, Kind, mib, sizes};
use plimsoll_units::PageCount;

use crate::verify;

/// What is filled and freed, in MiB.
const FILLED: u64 = 256;
/// Pages near others in use are not reported, and the guest uses some for itself.
const KEPT: u64 = 24;

fn reports(test: &str, kind: Kind) {
    let Some(bed) = Bed::new(test, CALM) else { return };
    // All of maxmem: there is nothing to inflate.
    let Some(vm) = bed.run(kind, "web", sizes(512, 512, 128), &[]) else { return };
    vm.reaches(mib(512));
    // The worker has started, and every page it keeps is there.
    vm.send("fill 8M 3");
    let before = vm.wait_resident("settled after the boot", |now| now < mib(256));
    vm.send(&format!("fill {FILLED}M"));
    let filled = vm.resident();
    assert!(filled >= mib(FILLED), "{filled}");
    verify(&vm);
    vm.send(&format!("free {FILLED}M"));
    let what = format!("near {before} again");
    vm.wait_resident(&what, |now| now <= before.plus(mib(KEPT)));

    let view = vm.view();
    assert_eq!((view.actual.0, view.target.0), (mib(512), mib(512)), "{view:#?}");
    assert_eq!(vm.send("balloon").number("inflate"), Some(0));
    if let Some(backend) = view.backend {
        assert_eq!(backend.counters.inflated_pages, 0, "{view:#?}");
        assert!(PageCount(backend.counters.reported_pages).bytes() >= mib(FILLED - KEPT), "{view:#?}");
    }
    // What was kept is untouched, and what was given back can be had again.
    verify(&vm);
    vm.send(&format!("fill {FILLED}M"));
    verify(&vm);
}

#[test]
fn memory_freed_in_a_uml_guest_is_back_on_the_host() {
    reports("memory_freed_in_a_uml_guest_is_back_on_the_host", Kind::Uml);
}

#[test]
fn memory_freed_in_a_qemu_guest_is_back_on_the_host() {
    reports("memory_freed_in_a_qemu_guest_is_back_on_the_host", Kind::Qemu);
}
