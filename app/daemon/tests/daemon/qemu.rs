//! A real QEMU that was running already. No kernel is needed: its CPUs never start.

use std::{
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use plimsoll_api::http::{Life, VmView};
use plimsoll_model::{Link, VmState};
use plimsoll_units::{Bytes, MemTarget};
use serde_json::{Value, json};

use crate::common::{CONFIG, Daemon, Process, wait_for};

const QEMU: &str = "qemu-system-x86_64";

pub(crate) fn qemu(socket: &Path, arguments: &[&str]) -> Option<Process> {
    if Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
        loud("no qemu-system-x86_64: adopting a real one goes untested");
        return None;
    }
    let mut command = Command::new(QEMU);
    command.args([
        "-accel",
        "tcg",
        "-machine",
        "pc",
        "-m",
        "128",
        "-display",
        "none",
        "-nodefaults",
        "-S",
        "-qmp",
    ]);
    command.arg(format!("unix:{},server=on,wait=off", socket.display())).args(arguments);
    let process = Process::start(&mut command);
    wait_for("QEMU's socket", || UnixStream::connect(socket).ok());
    Some(process)
}

#[expect(clippy::print_stderr, reason = "what a test leaves out is to be seen")]
fn loud(text: &str) {
    eprintln!("SKIPPED: {text}");
}

fn adoption(name: &str, qmp: &Path) -> Value {
    json!({ "name": name, "endpoint": { "kind": "qemu", "qmp": qmp }, "sizes": null, "adopt": true })
}

/// QEMU serves one client at a time, and needs a moment to see that the last one has gone.
fn adopt(daemon: &Daemon, name: &str, qmp: &Path) -> VmView {
    wait_for("the adoption", || {
        let (status, answer) = daemon.ask("POST", "/v1/vms", Some(&adoption(name, qmp)));
        if status == 503 {
            None
        } else {
            Some(serde_json::from_value(answer.clone()).unwrap_or_else(|e| panic!("{e}: {answer}")))
        }
    })
}

#[test]
fn a_running_qemu_is_adopted_with_its_own_balloon() {
    let mut daemon = Daemon::start(CONFIG);
    let socket = daemon.dir.path().join("qmp");
    let Some(mut process) = qemu(&socket, &["-device", "virtio-balloon-pci"]) else { return };
    let vm = adopt(&daemon, "old", &socket);
    let m = Bytes::mib;
    assert_eq!((vm.sizes.maxmem(), vm.sizes.memory(), vm.sizes.floor()), (m(128), m(128), m(64)));
    assert_eq!(vm.vmm.unwrap(), process.reference());
    let vm = wait_for("a look at it", || {
        Some(daemon.show("old")).filter(|vm| vm.life == Life::Running && vm.link == Link::NoDriver)
    });
    assert!(vm.resident.is_some_and(|r| r > Bytes::ZERO), "{vm:?}");

    let again = daemon.refused("POST", "/v1/vms", &adoption("other", &socket), 409);
    assert!(again.contains("registered already, as `old`"), "{again}");
    let twice = daemon.refused("PATCH", "/v1/vms/old", &json!({ "vmm": { "pid": 1, "start_time": 1 } }), 422);
    assert!(twice.contains("process 1"), "{twice}");
    let held = daemon.change("PUT", "/v1/vms/old/hold", &json!({ "target": m(96) }));
    assert_eq!((held.state, held.target), (VmState::Held, MemTarget(m(96))));

    daemon.process.kill();
    daemon.start_again();
    let vm = daemon.wait_life("old", "running");
    assert_eq!((vm.id.0, vm.target, vm.hold), (1, MemTarget(m(96)), Some(MemTarget(m(96)))));
    daemon.change("POST", "/v1/vms/old/stop", &json!({ "how": "quit" }));
    wait_for("QEMU's end", || process.0.try_wait().unwrap());
    daemon.wait_life("old", "gone");
    assert!(daemon.kinds("old").contains(&"stopping".to_owned()));
}

#[test]
fn a_reset_is_seen_and_a_killed_qemu_is_gone() {
    let daemon = Daemon::start(CONFIG);
    let (socket, other) = (daemon.dir.path().join("qmp"), daemon.dir.path().join("qmp2"));
    let second = format!("unix:{},server=on,wait=off", other.display());
    let Some(mut process) = qemu(&socket, &["-device", "virtio-balloon-pci", "-qmp", &second]) else {
        return;
    };
    adopt(&daemon, "a", &socket);
    daemon.wait_life("a", "running");
    // The same QEMU by its other socket is the same VM.
    let again = daemon.refused("POST", "/v1/vms", &adoption("b", &other), 409);
    assert!(again.contains("cannot be counted twice"), "{again}");
    reset(&other);
    wait_for("the reboot", || daemon.kinds("a").contains(&"rebooted".to_owned()).then_some(()));
    process.kill();
    daemon.wait_life("a", "gone");
}

/// Resets the machine by its second monitor.
pub(crate) fn reset(socket: &Path) {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"system_reset\",\"id\":7}").unwrap();
    let mut line = String::new();
    while !line.contains("\"id\": 7") {
        line.clear();
        assert!(replies.read_line(&mut line).unwrap() > 0, "QEMU hung up");
    }
}

#[test]
fn what_cannot_be_adopted_says_why() {
    let daemon = Daemon::start(CONFIG);
    let at = |name: &str| -> PathBuf { daemon.dir.path().join(name) };
    let refused = |path: &Path, status: u16, part: &str| {
        let message = daemon.refused("POST", "/v1/vms", &adoption("x", path), status);
        assert!(message.contains(part), "{part}: {message}");
    };
    refused(&at("nothing"), 422, "no socket at");
    drop(UnixListener::bind(at("dead")).unwrap());
    refused(&at("dead"), 422, "nobody listens at");
    let _silent = UnixListener::bind(at("silent")).unwrap();
    refused(&at("silent"), 503, "did not greet within 2000 ms");
    let other = UnixListener::bind(at("other")).unwrap();
    let speaker = std::thread::spawn(move || {
        use std::io::Write;
        other.accept().unwrap().0.write_all(b"220 mail ready\r\n").unwrap();
    });
    refused(&at("other"), 422, "does not speak QMP");
    speaker.join().unwrap();
    let Some(_process) = qemu(&at("qmp"), &[]) else { return };
    let message = wait_for("the refusal", || {
        let (status, answer) = daemon.ask("POST", "/v1/vms", Some(&adoption("x", &at("qmp"))));
        (status == 422).then(|| answer["error"].as_str().unwrap().to_owned())
    });
    assert!(message.contains("-device virtio-balloon-pci"), "{message}");
    let mut wrong = adoption("x", &at("qmp"));
    wrong["sizes"] = serde_json::to_value(crate::common::sizes(64, 64, 32)).unwrap();
    assert_eq!(daemon.list().vms, []);
}
