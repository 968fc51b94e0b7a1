//! The daemon ends, in every way, and comes back.

use std::process::{Command, Stdio};

use plimsoll_model::VmState;
use plimsoll_units::{Bytes, MemTarget};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::common::{CONFIG, Daemon, Process, backend::Backend, sizes, wait_for};

fn mib(n: u64) -> MemTarget {
    MemTarget(Bytes::mib(n))
}

#[test]
fn after_a_kill_the_same_vms_have_the_same_numbers_and_targets() {
    let mut daemon = Daemon::start(CONFIG);
    let dir = daemon.dir.path().to_owned();
    let backends: Vec<Backend> =
        (0..5).map(|n| Backend::start(&dir, &format!("vm{n}"), 512, 50 + 20 * n)).collect();
    for (n, backend) in backends.iter().enumerate() {
        daemon.run_vm(&format!("vm{n}"), backend, sizes(256, 512, 128));
    }
    daemon.change("DELETE", "/v1/vms/vm1", &json!(null));
    daemon.change("PUT", "/v1/vms/vm2/hold", &json!({ "target": Bytes::mib(300) }));
    daemon.change("PATCH", "/v1/vms/vm3", &json!({ "memory": Bytes::mib(200), "weight": 9 }));
    let mut vmm = Process::idle();
    daemon.change("PATCH", "/v1/vms/vm4", &json!({ "vmm": vmm.reference() }));
    wait_for("the guests to arrive", || {
        daemon.list().vms.iter().all(|vm| vm.actual == vm.target).then_some(())
    });
    for round in 0..20 {
        let before = daemon.list().vms;
        daemon.process.kill();
        daemon.start_again();
        let after = daemon.list().vms;
        let facts = |vms: &[plimsoll_api::http::VmView]| -> Vec<_> {
            vms.iter()
                .map(|vm| (vm.id, vm.name.clone(), vm.sizes, vm.hold, vm.target, vm.vmm, vm.owner_uid))
                .collect()
        };
        assert_eq!(facts(&before), facts(&after), "round {round}");
        assert_eq!(after[1].state, VmState::Held);
        assert!(after.iter().all(|vm| vm.actual == vm.target), "round {round}: {after:?}");
    }
    assert_eq!(backends[2].guest().status.num_pages.0.bytes(), Bytes::mib(212));

    daemon.process.kill();
    vmm.kill();
    daemon.start_again();
    assert_eq!(daemon.list().vms.len(), 3, "a VM whose VMM ended meanwhile is not taken in");
    assert_eq!(daemon.kinds("vm4"), ["gone"]);
    let next = daemon.register("next", &dir.join("next"), sizes(64, 64, 32));
    assert!(next.id.0 > 4, "{:?}", next.id);
}

#[test]
fn a_lost_target_is_set_again() {
    let mut daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    wait_for("the target", || (daemon.show("a").actual == mib(256)).then_some(()));
    daemon.process.kill();
    backend.guest().status.num_pages = Default::default();
    daemon.start_again();
    wait_for("the target", || (backend.guest().status.num_pages.0.bytes() == Bytes::mib(256)).then_some(()));
}

#[test]
fn a_signal_ends_it_cleanly_and_vms_stay_as_they_are() {
    let mut daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    for signal in [Signal::TERM, Signal::INT] {
        let pid = Pid::from_child(&daemon.process.0);
        kill_process(pid, signal).unwrap();
        let status = wait_for("its end", || daemon.process.0.try_wait().unwrap());
        assert!(status.success(), "{status}");
        assert!(!daemon.socket().exists());
        assert_eq!(backend.guest().status.num_pages.0.bytes(), Bytes::mib(256));
        daemon.start_again();
        assert_eq!(daemon.show("a").target, mib(256));
    }
}

#[test]
fn a_second_daemon_names_the_first_and_leaves_it_alone() {
    let daemon = Daemon::start(CONFIG);
    let output = Command::new(env!("CARGO_BIN_EXE_plimsolld"))
        .arg("--run-dir")
        .arg(daemon.run_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains(&format!("another plimsolld (process {})", daemon.process.0.id())), "{said}");
    daemon.wait_ticks(1);
}
