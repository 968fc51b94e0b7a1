//! From `run` to `stop`, on real guests.

use plimsoll_e2e::{Bed, CALM, Kind, mib, sizes};

/// A guest's memory is what was asked for before its workload begins, and nothing of it is left after `stop`.
fn runs_and_stops(test: &str, kind: Kind) {
    let Some(bed) = Bed::new(test, CALM) else { return };
    let Some(vm) = bed.run(kind, "web", sizes(128, 256, 96), &[]) else { return };
    vm.reaches(mib(128));
    vm.send("fill 32M");
    assert!(vm.resident() > mib(32), "{}", vm.resident());
    bed.ok(&["stop", "web", "--timeout", "1s"]);
    bed.only_the_daemon_is_left();
}

#[test]
fn uml_runs_and_stops() {
    runs_and_stops("uml_runs_and_stops", Kind::Uml);
}

#[test]
fn qemu_runs_and_stops() {
    runs_and_stops("qemu_runs_and_stops", Kind::Qemu);
}
