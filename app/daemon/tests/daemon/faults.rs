//! What can go wrong with a VM, and that nobody else notices.

use std::time::Instant;

use plimsoll_api::http::Life;
use plimsoll_model::{Link, VmState};
use plimsoll_units::{Bytes, MemTarget};
use serde_json::json;

use crate::common::{
    CONFIG, Daemon, Process,
    backend::{Backend, Manner},
    sizes, wait_for,
};

fn mib(n: u64) -> MemTarget {
    MemTarget(Bytes::mib(n))
}

#[test]
fn a_back_end_that_hangs_lies_or_floods_delays_nobody() {
    let daemon = Daemon::start(CONFIG);
    let dir = daemon.dir.path();
    let good = Backend::start(dir, "good", 512, 100);
    daemon.run_vm("good", &good, sizes(256, 512, 128));
    let bad = [("silent", Manner::Silent), ("garbage", Manner::Garbage), ("flood", Manner::Flood)];
    let backends: Vec<Backend> = bad
        .into_iter()
        .map(|(name, manner)| {
            let backend = Backend::start(dir, name, 512, 100);
            daemon.run_vm(name, &backend, sizes(256, 512, 128));
            backend.guest().manner = manner;
            backend
        })
        .collect();
    let problems = ["did not answer within 1000 ms", "does not speak the control protocol", "answer nothing"];
    for ((name, _), problem) in bad.into_iter().zip(problems) {
        let vm = daemon.wait_life(name, "unreachable");
        assert_eq!((vm.state, vm.link), (VmState::Unreachable, Link::Unreachable));
        wait_for(problem, || daemon.show(name).problem.filter(|p| p.contains(problem)));
    }
    let (begun, ticks) = (Instant::now(), daemon.ticks());
    daemon.wait_ticks(5);
    let took = begun.elapsed();
    assert!(took.as_millis() < 8000, "5 ticks after {ticks} took {took:?}");
    assert_eq!(daemon.show("good").life, Life::Running);
    daemon.change("PUT", "/v1/vms/good/hold", &json!({ "target": Bytes::mib(300) }));
    wait_for("the good one to move", || (daemon.show("good").actual == mib(300)).then_some(()));
    for backend in &backends {
        backend.guest().manner = Manner::Proper;
    }
    for (name, _) in bad {
        assert_eq!(daemon.wait_life(name, "running").problem, None);
    }
}

#[test]
fn a_target_that_is_refused_is_told_and_tried_again() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    backend.guest().manner = Manner::Refusing;
    daemon.register("a", &backend.path, sizes(256, 512, 128));
    wait_for("the problem", || daemon.show("a").problem.filter(|p| p.contains("not today")));
    assert!(daemon.log().contains("a target could not be set"));
    backend.guest().manner = Manner::Proper;
    wait_for("the target", || (daemon.show("a").actual == mib(256)).then_some(()));
    assert_eq!(daemon.show("a").problem, None);
}

#[test]
fn a_back_end_that_restarts_and_a_guest_that_reboots_get_their_target_again() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    wait_for("the target", || (daemon.show("a").actual == mib(256)).then_some(()));
    let backend = backend.restart();
    wait_for("the new back end", || daemon.show("a").backend.filter(|b| b.epoch == 2));
    {
        let mut guest = backend.guest();
        guest.status.generation += 1;
        guest.status.driver_ready = false;
        guest.status.num_pages = Default::default();
        guest.status.actual = Default::default();
    }
    let vm = wait_for("the reboot", || Some(daemon.show("a")).filter(|vm| vm.link == Link::NoDriver));
    assert_eq!((vm.stats, vm.actual), (None, mib(512)));
    backend.guest().status.driver_ready = true;
    wait_for("the target again", || (daemon.show("a").actual == mib(256)).then_some(()));
    let kinds = daemon.kinds("a");
    assert!(
        kinds.contains(&"backend-restarted".to_owned()) && kinds.contains(&"rebooted".to_owned()),
        "{kinds:?}"
    );
}

/// Its new driver is up before the next tick: the memory that the new guest begins with was not taken back in distress.
#[test]
fn a_guest_that_reboots_between_two_ticks_is_not_in_distress() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    wait_for("the target", || (daemon.show("a").actual == mib(256)).then_some(()));
    {
        let mut guest = backend.guest();
        guest.rate = Bytes::mib(64);
        guest.status.generation += 1;
        guest.status.num_pages = Default::default();
        guest.status.actual = Default::default();
    }
    wait_for("the reboot", || daemon.kinds("a").contains(&"rebooted".to_owned()).then_some(()));
    assert!(daemon.show("a").actual > mib(300));
    wait_for("the target again", || (daemon.show("a").actual == mib(256)).then_some(()));
    assert_eq!(daemon.show("a").target, mib(256));
    let kinds = daemon.kinds("a");
    assert!(!kinds.contains(&"distressed".to_owned()), "{kinds:?}");
}

#[test]
fn what_a_vm_held_is_free_at_once_when_its_vmm_ends() {
    let daemon =
        Daemon::start(&CONFIG.replace("4G", "700M").replace("[host]", "forget-after = \"2s\"\n[host]"));
    let dir = daemon.dir.path();
    let (a, b) = (Backend::start(dir, "a", 600, 100), Backend::start(dir, "b", 600, 100));
    daemon.run_vm("a", &a, sizes(300, 600, 150));
    daemon.run_vm("b", &b, sizes(300, 600, 150));
    let (mut vmm, keeper) = (Process::idle(), Process::idle());
    daemon.change("PATCH", "/v1/vms/a", &json!({ "vmm": vmm.reference(), "keeper": keeper.reference() }));
    wait_for("both to arrive", || daemon.list().vms.iter().all(|vm| vm.actual == mib(300)).then_some(()));
    // Distressed: it uses all but a few megabytes, and there is nothing left for it.
    b.guest().used = Bytes::mib(420);
    wait_for("distress", || (daemon.show("b").state == VmState::Distressed).then_some(()));
    assert!(daemon.show("b").target < mib(560));
    vmm.kill();
    let gone = daemon.wait_life("a", "gone");
    assert!(gone.reason_text.contains("nobody answers"), "{}", gone.reason_text);
    wait_for("b to have all it may have", || (daemon.show("b").target == mib(600)).then_some(()));
    assert_eq!(daemon.list().host.guaranteed, Bytes::mib(166));
    wait_for("a to be forgotten", || (daemon.list().vms.len() == 1).then_some(()));
    let kinds = daemon.kinds("a");
    assert_eq!(kinds.iter().filter(|k| *k == "gone").count(), 1, "{kinds:?}");
    assert_eq!(kinds.last().unwrap(), "forgotten");
    assert!(!daemon.run_dir().join("vms/a.json").exists());
}

#[test]
fn a_vm_whose_keeper_ends_is_shown_and_reckoned_with_all_it_could_take() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.register("a", &backend.path, sizes(256, 512, 128));
    let (mut vmm, mut keeper) = (Process::idle(), Process::idle());
    daemon.change("PATCH", "/v1/vms/a", &json!({ "vmm": vmm.reference(), "keeper": keeper.reference() }));
    daemon.wait_life("a", "running");
    keeper.kill();
    let vm = daemon.wait_life("a", "unprotected");
    assert_eq!((vm.link, vm.actual), (Link::Unreachable, mib(512)));
    let host = wait_for("a tick", || Some(daemon.list().host).filter(|h| h.guaranteed == Bytes::mib(528)));
    wait_for("the claim", || (daemon.list().host.claimed == host.guaranteed).then_some(()));
    daemon.wait_ticks(2);
    assert_eq!(daemon.show("a").life, Life::Unprotected);
    vmm.kill();
    daemon.wait_life("a", "gone");
}

#[test]
fn a_keeper_without_a_vmm_is_no_running_vm_and_its_start_no_reboot() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    {
        let mut guest = backend.guest();
        guest.status.generation = 0;
        guest.status.connected = false;
        guest.status.driver_ready = false;
    }
    daemon.register("a", &backend.path, sizes(256, 512, 128));
    wait_for("the keeper to answer", || daemon.show("a").backend);
    assert_eq!(daemon.show("a").life, Life::Starting);
    {
        let mut guest = backend.guest();
        guest.status.generation = 1;
        guest.status.connected = true;
        guest.status.driver_ready = true;
    }
    daemon.wait_life("a", "running");
    wait_for("the target", || (daemon.show("a").actual == mib(256)).then_some(()));
    assert!(!daemon.kinds("a").contains(&"rebooted".to_owned()));
}

#[test]
fn a_vm_that_never_comes_is_given_up() {
    let daemon = Daemon::start(&CONFIG.replace("[host]", "start-timeout = \"1s\"\n[host]"));
    daemon.register("a", &daemon.dir.path().join("nowhere"), sizes(256, 512, 128));
    assert_eq!(daemon.list().host.guaranteed, Bytes::mib(144));
    daemon.wait_life("a", "gone");
    assert_eq!(daemon.list().host.guaranteed, Bytes::ZERO);
    // Its name is free again.
    daemon.register("a", &daemon.dir.path().join("elsewhere"), sizes(256, 512, 128));
    daemon.wait_life("a", "starting");
}

#[test]
fn a_guest_in_distress_is_answered_within_a_tick_or_two() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 1024, 100);
    daemon.run_vm("a", &backend, sizes(256, 1024, 128));
    wait_for("the target", || (daemon.show("a").actual == mib(256)).then_some(()));
    backend.guest().used = Bytes::mib(250);
    wait_for("all it may have", || (daemon.show("a").target == mib(1024)).then_some(()));
    let kinds = daemon.kinds("a");
    assert!(kinds.contains(&"distressed".to_owned()), "{kinds:?}");
    wait_for("relief", || daemon.kinds("a").contains(&"relieved".to_owned()).then_some(()));
}
