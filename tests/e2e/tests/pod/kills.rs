//! Back ends and keepers that are killed.

use plimsoll_api::http::Life;
use plimsoll_e2e::{Bed, CALM, PATIENCE, Vm, mib};
use plimsoll_model::VmState;
use rustix::process::{Pid, Signal, kill_process};

use crate::kit::{MEMORY, NO_DRIVER, boot, pager, possible, said, verify};

/// How often the back end is killed while the guest fills its memory.
const KILLS: u64 = 6;

#[track_caller]
fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap_or_else(|error| panic!("cannot kill {pid:?}: {error}"));
}

/// Which of its back ends is heard.
fn epoch(vm: &Vm<'_>) -> u64 {
    vm.view().pager.map_or(0, |pager| pager.epoch)
}

#[test]
fn a_guest_does_not_notice_that_its_back_end_was_killed() {
    const TEST: &str = "a_guest_does_not_notice_that_its_back_end_was_killed";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    let Some((vm, meter)) = boot(&bed, "web", &["--append", "loglevel=5"]) else { return };
    vm.reaches(mib(MEMORY));
    let first = epoch(&vm);
    for round in 1..=KILLS {
        let fill = vm.begin("fill 96M");
        // In the midst of its faults.
        let (_, backend) = vm.keeper_and_backend();
        kill(backend);
        vm.finish(&fill);
        verify(&vm, mib(96));
        vm.send("free");
        let is_heard = |view: &plimsoll_api::http::VmView| {
            view.pager.is_some_and(|pager| pager.epoch >= first + round)
                && said(view).is_some_and(|p| p.mapped)
        };
        vm.wait("the next back end", PATIENCE, is_heard);
    }
    let view = vm.view();
    assert_eq!((view.life, view.target.0), (Life::Running, mib(MEMORY)), "{view:#?}");
    assert_eq!(bed.count("web", "backend-restarted"), usize::try_from(KILLS).expect("few"));
    meter.never_above(mib(MEMORY));
}

#[test]
fn a_guest_whose_keeper_is_killed_does_what_was_wished_for() {
    const TEST: &str = "a_guest_whose_keeper_is_killed_does_what_was_wished_for";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    for loss in ["open", "stall"] {
        let more = ["--append", NO_DRIVER, "--on-pager-loss", loss];
        let Some((vm, meter)) = boot(&bed, loss, &more) else { return };
        assert!(pager(&vm).mapped);
        let (keeper, _) = vm.keeper_and_backend();
        kill(keeper);
        bed.wait_event(loss, "pager-lost");
        let view = vm.wait("to be shown as unprotected", PATIENCE, |view| view.life == Life::Unprotected);
        assert!(view.pager.is_some_and(|pager| pager.lost), "{view:#?}");
        let before = vm.resident();
        let fill = vm.begin("fill 300M");
        if loss == "open" {
            vm.finish(&fill);
            verify(&vm, mib(300));
            assert!(meter.most() > mib(300), "{}", meter.most());
        } else {
            assert_ne!(view.state, VmState::Stalled, "nobody is there who could tell");
            // It stands still: nothing is ever populated again.
            vm.console
                .answer(&fill, std::time::Duration::from_secs(5))
                .expect_err("it has no memory to fill");
            assert!(vm.resident() <= before.plus(mib(4)), "{} after {before}", vm.resident());
        }
        bed.ok(&["stop", loss, "--kill"]);
    }
    bed.only_the_daemon_is_left();
}
