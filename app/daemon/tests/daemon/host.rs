//! A memory cgroup in the place of the host, and the service manager. Needs root to make a cgroup.

use std::{os::unix::net::UnixDatagram, process::Command, time::Duration};

use plimsoll_cgroup::{Hierarchies, Limit, MemCgroup, PressureGroup};
use plimsoll_units::Bytes;

use crate::common::{CONFIG, Daemon, PATIENCE, Process, wait_for};

/// Removed when the test ends, however it ends.
struct Group {
    group: MemCgroup,
    twin: Option<PressureGroup>,
    name: String,
}

impl Group {
    fn make(what: &str) -> Option<Self> {
        let hierarchies = Hierarchies::discover().ok()?;
        let name = format!("plimsoll-daemon-{what}-{}", std::process::id());
        let group = hierarchies.create(&name).ok()?;
        let twin = group.pressure_group().ok();
        Some(Self { group, twin, name })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.twin.take().map(|twin| twin.remove());
        let _ = self.group.remove();
    }
}

#[expect(clippy::print_stderr, reason = "what a test leaves out is to be seen")]
fn loud(text: &str) {
    eprintln!("SKIPPED: {text}");
}

#[test]
fn a_cgroup_stands_for_the_host() {
    let Some(group) = Group::make("host") else {
        loud("no memory cgroup can be made here: one in the place of the host goes untested");
        return;
    };
    group.group.set_limit(Limit::Bytes(Bytes::mib(640))).unwrap();
    let config = format!("[host]\ncgroup = {:?}\n[journal]\ndir = \"none\"\n", group.name);
    let daemon = Daemon::start(&config);
    let host = daemon.list().host;
    assert_eq!(host.cgroup.as_deref(), Some(group.name.as_str()));
    assert_eq!((host.sample.budget, host.sample.low), (Bytes::mib(620), Bytes::mib(10)));
    assert!(host.sample.available <= Bytes::mib(640) && host.sample.available > Bytes::mib(600), "{host:?}");
    let pressure = group.group.pressure_path().is_some();
    assert_eq!(host.sample.psi.is_some(), pressure, "{host:?}");
    // Whoever changes the limit of a running group changes the budget.
    group.group.set_limit(Limit::Bytes(Bytes::mib(320))).unwrap();
    wait_for("the new budget", || (daemon.list().host.sample.budget == Bytes::mib(310)).then_some(()));
    drop(daemon);
}

#[test]
fn a_stalling_group_calls_for_a_tick() {
    let Some(group) = Group::make("stall").filter(|g| g.group.pressure_path().is_some()) else {
        loud("no cgroup with pressure can be made here: being woken by it goes untested");
        return;
    };
    group.group.set_limit(Limit::Bytes(Bytes::mib(24))).unwrap();
    let config = format!(
        "tick = \"30s\"\n[host]\ncgroup = {:?}\nbudget = \"1G\"\n[journal]\ndir = \"none\"\n",
        group.name
    );
    let daemon = Daemon::start(&config);
    let file = daemon.dir.path().join("cache");
    // Page cache belongs to the group that made it, so the file is made in there; then 64 MiB are read through 24
    // MiB, over and over.
    let script = "read go; head -c 64M /dev/zero > \"$0\"; while :; do cat \"$0\" > /dev/null; done";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&file);
    let mut shell = Process(command.stdin(std::process::Stdio::piped()).spawn().unwrap());
    group.group.add(shell.0.id()).unwrap();
    group.twin.as_ref().unwrap().add(shell.0.id()).unwrap();
    std::io::Write::write_all(shell.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    wait_for("a tick that a stall called for", || {
        let text = daemon.get("/metrics");
        let line = text.as_str().unwrap().lines().find(|l| l.starts_with("plimsoll_pressure_ticks_total "));
        (line.unwrap() != "plimsoll_pressure_ticks_total 0").then_some(())
    });
    shell.kill();
    drop(shell);
    wait_for("the group to be empty", || group.group.procs().unwrap().is_empty().then_some(()));
}

#[test]
fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    std::fs::write(dir.path().join("p.toml"), CONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsolld"));
    command.arg("--config").arg(dir.path().join("p.toml")).arg("--run-dir").arg(dir.path().join("run"));
    let mut daemon = Process::start(command.env("NOTIFY_SOCKET", &path).stderr(std::process::Stdio::null()));
    let hear = || {
        let mut text = [0; 64];
        let n = manager.recv(&mut text).unwrap();
        String::from_utf8(text[..n].to_vec()).unwrap()
    };
    assert_eq!(hear(), "READY=1");
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon.0), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(hear(), "STOPPING=1");
    manager.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(wait_for("its end", || daemon.0.try_wait().unwrap()).success());
}
