//! A guest without a balloon driver that dirties more than it may have.

use std::time::{Duration, Instant};

use plimsoll_e2e::{Bed, CALM, PATIENCE, Vm, mib};
use plimsoll_model::{Reason, Standstill, VmState};

use crate::kit::{MAXMEM, MEMORY, Meter, NO_DRIVER, boot, pager, possible, verify};

/// What the guest fills: with what its kernel needs, more than it is granted.
const FILL: u64 = 300;

/// A guest that has begun to fill that.
fn filling(
    bed: &Bed,
    on_exhausted: &str,
    act: impl FnOnce(&Vm<'_>, &Meter, plimsoll_testbed::guest::Pending),
) {
    let more = ["--append", NO_DRIVER, "--on-exhausted", on_exhausted];
    let Some((vm, meter)) = boot(bed, "low", &more) else { return };
    let fill = vm.begin(&format!("fill {FILL}M"));
    act(&vm, &meter, fill);
}

#[test]
fn a_guest_without_a_driver_waits_is_shown_and_goes_on_at_once() {
    const TEST: &str = "a_guest_without_a_driver_waits_is_shown_and_goes_on_at_once";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    filling(&bed, "wait", |vm, meter, fill| {
        let view = vm.wait("to stand still", PATIENCE, |view| view.state == VmState::Stalled);
        let why = |reason: &Reason| matches!(reason, Reason::Stalled { why: Standstill::Wait, .. });
        assert!(why(&view.reason) && view.target.0 == mib(MEMORY), "{view:#?}");
        let list = bed.ok(&["list"]);
        assert!(list.contains("stalled") && list.contains("waits for memory since"), "{list}");
        let explained = bed.ok(&["explain", "low"]);
        for words in ["has stood still for", "It has waited for more for", "`plimsoll set low memory=512M`"] {
            assert!(explained.contains(words), "{words} in {explained}");
        }
        assert!(vm.resident() > mib(MEMORY - 8), "{}", vm.resident());
        meter.never_above(mib(MEMORY));

        let begun = Instant::now();
        bed.ok(&["set", "low", "memory=512M"]);
        // It has gone on by now, or within what a look takes.
        vm.wait("to go on", Duration::from_secs(5), |view| {
            view.resident.is_some_and(|resident| resident > mib(MEMORY + 4))
        });
        let took = begun.elapsed();
        vm.finish(&fill);
        verify(vm, mib(FILL));
        meter.never_above(mib(MAXMEM));
        assert!(took < Duration::from_secs(5), "{took:?}");
        for kind in ["pod-exhausted", "stalled", "pod-relieved"] {
            assert!(bed.count("low", kind) > 0, "{kind}: {:#?}", bed.events(Some("low")));
        }
    });
}

#[test]
fn a_guest_without_a_driver_is_given_what_is_free_step_by_step() {
    const TEST: &str = "a_guest_without_a_driver_is_given_what_is_free_step_by_step";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    filling(&bed, "grow", |vm, meter, fill| {
        vm.finish(&fill);
        verify(vm, mib(FILL));
        let view = vm.view();
        assert!(view.target.0 > mib(FILL) && view.target.0 <= mib(MAXMEM), "{view:#?}");
        meter.never_above(view.target.0);
        let change = view.last_change.expect("its target was raised");
        assert!(matches!(change.reason, Reason::Exhausted { .. }), "{change:#?}");
        assert!(pager(vm).stalls > 0);
    });
}

#[test]
fn a_guest_for_which_nothing_is_free_waits_until_another_vm_has_ended() {
    const TEST: &str = "a_guest_for_which_nothing_is_free_waits_until_another_vm_has_ended";
    // Room for both to begin with, and no more.
    const FULL: &str = "
[host]
budget = \"480M\"
low = \"1M\"
overhead-qemu = \"64M\"
overhead-uml = \"16M\"
[policy]
host-stall = \"100%\"
";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, FULL) else { return };
    let sizes = plimsoll_e2e::sizes(128, 128, 128);
    let Some(other) = bed.run(plimsoll_e2e::Kind::Uml, "other", sizes, &[]) else { return };
    filling(&bed, "grow", |vm, meter, fill| {
        let nothing = |view: &plimsoll_api::http::VmView| {
            matches!(view.reason, Reason::Stalled { why: Standstill::NothingFree, .. })
        };
        let view = vm.wait("to stand still", PATIENCE, nothing);
        assert_eq!(view.state, VmState::Stalled, "{view:#?}");
        // 480M less the other's 144M and the overhead of 64M.
        meter.never_above(mib(272));
        assert!(bed.ok(&["explain", "low"]).contains("memory given up by others"));
        bed.ok(&["stop", &other.name, "--kill"]);
        vm.finish(&fill);
        verify(vm, mib(FILL));
    });
}

#[test]
fn a_guest_that_is_to_be_stopped_is_stopped_with_a_reason() {
    const TEST: &str = "a_guest_that_is_to_be_stopped_is_stopped_with_a_reason";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    filling(&bed, "stop", |_, meter, _| {
        bed.wait_event("low", "gone");
        meter.never_above(mib(MEMORY));
        let events = bed.events(Some("low"));
        let why = events.iter().find(|event| event.kind == "stopping").map(|event| event.text.as_str());
        assert!(why.is_some_and(|why| why.contains("on-exhausted=stop")), "{events:#?}");
        bed.ok(&["stop", "low"]);
        bed.only_the_daemon_is_left();
    });
}
