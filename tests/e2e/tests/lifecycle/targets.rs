//! Target down and up, statistics, and the end of it all.

use plimsoll_api::http::VmView;
use plimsoll_e2e::{Bed, CALM, Kind, NO_REPORTS, PATIENCE, Vm, mib};
use plimsoll_units::Bytes;

use crate::{Scale, fill_and_verify};

/// What has to come back at least when the target goes down.
const COMES_BACK: Bytes = mib(16);
/// What the guest's own account and its statistics may differ by: they are taken at different moments.
const APART: Bytes = mib(6);

/// The host gets back what the balloon takes, and the guest can really use what it gets back.
fn follows(test: &str, kind: Kind) {
    let Some(bed) = Bed::new(test, CALM) else { return };
    let scale = Scale::of(kind);
    let Some(vm) = bed.run(kind, "web", scale.sizes(), &["--append", NO_REPORTS]) else { return };
    // Ballooned as soon as the driver is up.
    vm.reaches(mib(scale.memory));
    fill_and_verify(&vm, mib(scale.fill));
    statistics_match(&vm);
    vm.send("free");
    // The guest keeps it, until it is asked; so much of it that the target below cannot be met by chance.
    let filled = vm.resident();
    assert!(filled >= mib(scale.low).plus(COMES_BACK), "{filled}");

    bed.ok(&["set", "web", &format!("memory={}M", scale.low)]);
    vm.reaches(mib(scale.low));
    vm.wait_resident("at most the target", |now| now <= mib(scale.low));
    assert!(vm.meminfo("available") < mib(scale.low));

    bed.ok(&["set", "web", &format!("memory={}M", scale.memory)]);
    vm.reaches(mib(scale.memory));
    fill_and_verify(&vm, mib(scale.fill));
    assert!(vm.resident() >= mib(scale.fill), "{}", vm.resident());
    vm.send("free");
    stops(&bed, &vm);
}

/// Statistics come by themselves and say what the guest's own kernel says.
fn statistics_match(vm: &Vm<'_>) {
    let free = vm.meminfo("free");
    let available = vm.meminfo("available");
    let near = |told: Option<Bytes>, own: Bytes| {
        told.is_some_and(|told| told.minus(own) <= APART && own.minus(told) <= APART)
    };
    let is = |view: &VmView| {
        let Some(sample) = view.stats else { return false };
        near(sample.stats.free, free) && near(sample.stats.available, available)
    };
    let what = format!("statistics near free={free} available={available}");
    let view = vm.wait(&what, PATIENCE, is);
    assert!(view.stats_age_ms.is_some_and(|age| age < 5_000), "{view:#?}");
    let total = view.stats.and_then(|sample| sample.stats.total).expect("a total");
    assert!(total <= view.sizes.maxmem() && total >= available, "{view:#?}");
}

/// `stop` leaves no process, no file in the run folder and nothing in memory.
fn stops(bed: &Bed, vm: &Vm<'_>) {
    assert!(!bed.processes().is_empty() && !bed.vm_files().is_empty());
    bed.ok(&["stop", &vm.name, "--timeout", "1s"]);
    bed.only_the_daemon_is_left();
    assert_eq!(bed.list().vms, []);
}

#[test]
fn the_host_follows_a_uml_guest_down_and_up() {
    follows("the_host_follows_a_uml_guest_down_and_up", Kind::Uml);
}

#[test]
fn the_host_follows_a_qemu_guest_down_and_up() {
    follows("the_host_follows_a_qemu_guest_down_and_up", Kind::Qemu);
}
