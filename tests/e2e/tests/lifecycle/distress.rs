//! A guest that needs more than it has, unless an operator says otherwise.

use plimsoll_api::http::Explain;
use plimsoll_e2e::{Bed, CALM, Kind, PATIENCE, Vm, mib};
use plimsoll_model::{Reason, VmState};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use crate::{Scale, fill_and_verify, verify};

/// An idle guest goes back to its baseline in a few seconds, so that the test need not wait for half a minute.
const QUICKLY_BACK: &str = "idle-share = \"50%\"\n";
/// How far beyond what is available the guest fills.
const BEYOND: Bytes = mib(32);
/// Less than this available and a guest of these sizes is in distress: 12M and a sixteenth of what it holds.
const CLOSE: Bytes = mib(8);

fn distress(test: &str, kind: Kind) {
    let Some(bed) = Bed::new(test, &format!("{CALM}{QUICKLY_BACK}")) else { return };
    let scale = Scale::of(kind);
    let Some(vm) = bed.run(kind, "web", scale.sizes(), &[]) else { return };
    vm.reaches(mib(scale.memory));
    is_answered(&bed, &vm, mib(scale.memory));
    vm.send("free");
    // Back to the baseline, but for what is not worth a move.
    let near = mib(scale.memory + 1);
    vm.wait("to be near its baseline", PATIENCE, |view| view.target.0 <= near && view.actual == view.target);
    bed.wait_event("web", "relieved");
    waits_while_held(&bed, &vm, mib(scale.memory));
}

/// The guest fills more than it has, is given it, and loses neither a byte nor a process. `explain` says so.
fn is_answered(bed: &Bed, vm: &Vm<'_>, memory: Bytes) {
    let size = vm.meminfo("available").plus(BEYOND);
    fill_and_verify(vm, Bytes(size.0 & !0xfff));
    let view =
        vm.wait("to be granted more", PATIENCE, |view| view.target.0 > memory && view.actual == view.target);
    assert!(view.target.0 <= view.sizes.maxmem(), "{view:#?}");
    bed.wait_event("web", "distressed");
    let explain: Explain = bed.json(&["explain", "web"]);
    let granted = explain.changes.iter().find(|change| matches!(change.reason, Reason::Distress { .. }));
    let granted = granted.unwrap_or_else(|| panic!("no change for distress in {explain:#?}"));
    assert!(granted.to.0 > granted.from.0 && granted.by == "arbiter", "{granted:#?}");
    let text = bed.ok(&["explain", "web"]);
    assert!(text.contains("the guest is in distress"), "{text}");
    verify(vm);
}

/// A hold wins over distress; a release does not wait for the next sign of it.
fn waits_while_held(bed: &Bed, vm: &Vm<'_>, memory: Bytes) {
    bed.ok(&["hold", "web", &memory.to_string()]);
    vm.reaches(memory);
    let size = vm.meminfo("available").minus(CLOSE);
    vm.send(&format!("fill {}", size.0));
    let sees = |view: &plimsoll_api::http::VmView| {
        view.stats.and_then(|sample| sample.stats.available).is_some_and(|left| left < mib(12))
    };
    vm.wait("statistics that tell of distress", PATIENCE, sees);
    let seen = bed.list().host.ticks;
    let ticks = || {
        let now = bed.list().host.ticks;
        if now >= seen + 3 { Ok(()) } else { Err(format!("{now} ticks")) }
    };
    poll_until(PATIENCE, "three more ticks", ticks).expect("the daemon ticks");
    let view = vm.view();
    assert_eq!(
        (view.target.0, view.state, view.hold.map(|pin| pin.0)),
        (memory, VmState::Held, Some(memory))
    );
    let text = bed.ok(&["explain", "web"]);
    assert!(text.contains("plimsoll release web"), "{text}");

    bed.ok(&["release", "web"]);
    vm.wait("to be granted more", PATIENCE, |view| view.target.0 > memory && view.actual == view.target);
    let kinds: Vec<_> = bed.events(Some("web")).into_iter().map(|event| event.kind).collect();
    for kind in ["held", "released"] {
        assert_eq!(kinds.iter().filter(|have| *have == kind).count(), 1, "{kinds:?}");
    }
    verify(vm);
}

#[test]
fn a_uml_guest_in_distress_is_answered_unless_held() {
    distress("a_uml_guest_in_distress_is_answered_unless_held", Kind::Uml);
}

#[test]
fn a_qemu_guest_in_distress_is_answered_unless_held() {
    distress("a_qemu_guest_in_distress_is_answered_unless_held", Kind::Qemu);
}
