//! The agent inside a guest, as the daemon hears it.

use std::{
    io::Write,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use plimsoll_agent_proto::{Report, encode};
use plimsoll_api::http::{Endpoint, Life};
use plimsoll_model::{AgentStats, Link};
use plimsoll_units::Bytes;
use serde_json::json;

use crate::common::{
    CONFIG, Daemon,
    backend::{Backend, Manner},
    sizes, wait_for,
};
use crate::qemu;

/// Ticks so far apart that whatever is done at once is not done by the next.
fn slow() -> String {
    CONFIG.replace("[host]", "tick = \"5s\"\n[host]")
}

fn stats(available: u64) -> AgentStats {
    AgentStats {
        total: Some(Bytes::mib(500)),
        available: Some(Bytes::mib(available)),
        committed: Some(Bytes::mib(90)),
        ..AgentStats::default()
    }
}

fn available(daemon: &Daemon) -> Option<u64> {
    daemon.show("a").agent.map(|agent| agent.stats.available.unwrap().0 >> 20)
}

#[test]
fn what_an_agent_says_is_shown_with_its_age_and_forgotten_with_its_guest() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    let vm = daemon.show("a");
    assert_eq!((vm.agent, vm.agent_line), (None, None));
    backend.guest().say(stats(100), false);
    wait_for("its word", || (available(&daemon) == Some(100)).then_some(()));
    let vm = wait_for("its word to age", || daemon.show("a").agent.filter(|agent| agent.age_ms > 1500));
    assert_eq!(vm.stats, stats(100));
    assert_eq!(daemon.show("a").agent_line.unwrap().frames, 1);
    let metrics = daemon.get("/metrics");
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("plimsoll_vm_agent_reports_total{vm=\"a\"} 1"), "{metrics}");
    assert!(metrics.contains("plimsoll_vm_agent_age_seconds{vm=\"a\"} "), "{metrics}");
    {
        let mut guest = backend.guest();
        guest.status.generation += 1;
        guest.status.agent = None;
    }
    wait_for("it to be forgotten", || (available(&daemon).is_none()).then_some(()));
}

#[test]
fn a_word_of_distress_does_not_wait_for_the_tick() {
    let daemon = Daemon::start(&slow());
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    backend.guest().say(stats(100), false);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    for available_now in [90, 80, 70] {
        wait_for("the daemon to wait", || (backend.guest().waiting == 1).then_some(()));
        let (told, ticks) = (Instant::now(), daemon.ticks());
        backend.guest().say(stats(available_now), true);
        wait_for("the tick", || (available(&daemon) == Some(available_now)).then_some(()));
        let took = told.elapsed();
        assert!(took < Duration::from_millis(2500), "{took:?} of the 5 s to the next tick");
        assert!(daemon.ticks() > ticks);
    }
    let ticks = daemon.ticks();
    backend.guest().say(stats(60), false);
    // Not a wait for a state: nothing is to happen meanwhile.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(daemon.ticks(), ticks, "what is not urgent waits for the tick");
}

#[test]
fn an_agent_that_is_always_in_distress_does_not_keep_the_daemon_busy() {
    let daemon = Daemon::start(&slow());
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    backend.guest().say(stats(100), false);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    let (begun, ticks) = (Instant::now(), daemon.ticks());
    while begun.elapsed() < Duration::from_secs(2) {
        backend.guest().say(stats(100), true);
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let made = daemon.ticks() - ticks;
    assert!((2..=12).contains(&made), "{made} ticks in 2 s");
}

#[test]
fn a_back_end_from_before_agents_is_asked_as_ever() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    backend.guest().manner = Manner::Old;
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    wait_for("the target", || (daemon.show("a").actual.0 == Bytes::mib(256)).then_some(()));
    daemon.wait_ticks(2);
    assert_eq!((daemon.show("a").life, daemon.show("a").problem), (Life::Running, None));
}

fn frame(seq: u64, available: u64, urgent: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&Report { session: 9, seq, urgent, stats: stats(available) }, &mut bytes);
    bytes
}

/// Adopts a QEMU whose agent speaks at `agent`.
fn adopt(daemon: &Daemon, qmp: &Path, agent: &Path) {
    let (qmp, agent) = (qmp.to_str().unwrap().into(), Some(agent.to_str().unwrap().into()));
    let endpoint = Endpoint::Qemu { qmp, agent, pager: None };
    let body = json!({ "name": "a", "endpoint": endpoint, "sizes": null, "adopt": true });
    wait_for("the adoption", || (daemon.ask("POST", "/v1/vms", Some(&body)).0 == 201).then_some(()));
}

#[test]
fn the_agent_of_a_qemu_is_heard_and_its_distress_does_not_wait() {
    let daemon = Daemon::start(&slow());
    let (qmp, agent) = (daemon.dir.path().join("qmp"), daemon.dir.path().join("agent"));
    let monitor = daemon.dir.path().join("qmp2");
    let second = format!("unix:{},server=on,wait=off", monitor.display());
    let arguments = ["-device", "virtio-balloon-pci", "-qmp", &second];
    let Some(_process) = qemu::qemu(&qmp, &arguments) else { return };
    let listener = UnixListener::bind(&agent).unwrap();
    adopt(&daemon, &qmp, &agent);
    let (mut guest, _) = listener.accept().unwrap();
    guest.write_all(b"\x00\xff noise").unwrap();
    guest.write_all(&frame(1, 100, true)).unwrap();
    wait_for("its word", || (available(&daemon) == Some(100)).then_some(()));
    assert_eq!(daemon.show("a").agent_line.unwrap().skipped_bytes, 8);

    // A line that is lost is opened again, also in the middle of a frame.
    guest.write_all(&frame(2, 90, false)[..30]).unwrap();
    drop(guest);
    let (mut guest, _) = listener.accept().unwrap();
    guest.write_all(&frame(3, 80, true)).unwrap();
    wait_for("its next word", || (available(&daemon) == Some(80)).then_some(()));

    // A reset hangs up on what the old guest may still have sent.
    guest.write_all(&frame(4, 70, false)).unwrap();
    qemu::reset(&monitor);
    let (mut guest, _) = listener.accept().unwrap();
    guest.write_all(&frame(1, 60, true)).unwrap();
    guest.write_all(&frame(5, 50, true)).unwrap();
    wait_for("the next guest's word", || (available(&daemon) == Some(50)).then_some(()));
    assert_eq!(daemon.show("a").link, Link::NoDriver);
}

#[test]
fn an_agents_socket_is_checked_like_every_other() {
    let daemon = Daemon::start(CONFIG);
    let body = |agent: &str| {
        json!({ "name": "a", "endpoint": { "kind": "qemu", "qmp": "/q", "agent": agent },
            "sizes": sizes(64, 64, 32), "adopt": false })
    };
    let refusal = daemon.refused("POST", "/v1/vms", &body("relative"), 400);
    assert!(refusal.contains("`relative` is not an absolute path"), "{refusal}");
    let refusal = daemon.refused("POST", "/v1/vms", &body(&format!("/{}", "x".repeat(200))), 400);
    assert!(refusal.contains("107 at most"), "{refusal}");
    daemon.change("POST", "/v1/vms", &body("/agent"));
    // The same QMP socket is the same VM, whatever its agent's socket.
    let mut other = body("/elsewhere");
    other["name"] = json!("b");
    let refusal = daemon.refused("POST", "/v1/vms", &other, 409);
    assert!(refusal.contains("registered already, as `a`"), "{refusal}");
}

#[test]
fn a_guest_that_floods_its_line_costs_the_daemon_next_to_nothing() {
    let daemon = Daemon::start(CONFIG);
    let (qmp, agent) = (daemon.dir.path().join("qmp"), daemon.dir.path().join("agent"));
    let Some(_process) = qemu::qemu(&qmp, &["-device", "virtio-balloon-pci"]) else { return };
    let listener = UnixListener::bind(&agent).unwrap();
    adopt(&daemon, &qmp, &agent);
    let (guest, _) = listener.accept().unwrap();
    let flood = std::thread::spawn(move || flood(&guest));
    wait_for("the flood", || daemon.show("a").agent_line.filter(|line| line.bad_frames > 10));
    let (begun, before) = (Instant::now(), ticks_of(daemon.process.0.id()));
    // Not a wait for a state: it is the time over which is measured.
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks_of(daemon.process.0.id()) - before;
    assert!(used <= 20, "{used} ticks of 10 ms in {:?}", begun.elapsed());
    assert_eq!(daemon.show("a").life, Life::Running);
    drop(daemon);
    flood.join().unwrap();
}

/// Sends what is costly to read until the other side is gone.
fn flood(mut line: &UnixStream) {
    let mut frame = frame(1, 1, true);
    let last = frame.len() - 1;
    frame[last] ^= 1;
    let noise = frame.repeat(1000);
    while line.write_all(&noise).is_ok() {}
}

/// Processor time a process has used, in clock ticks: fields 14 and 15 of /proc/PID/stat (proc(5)).
fn ticks_of(pid: u32) -> u64 {
    let clock = Command::new("getconf").arg("CLK_TCK").output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&clock).trim(), "100");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit_once(") ").unwrap().1;
    after.split_ascii_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}
