//! Everything that can be typed wrong, or be wrong in the world: a clear error, the right exit code, nothing changed.
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common::{FakeDaemon, Told, command, uml};
use plimsoll_api::http::Endpoint;
use plimsoll_testbed::skip::{skip, unless_root};

fn with_web() -> FakeDaemon {
    let daemon = FakeDaemon::start();
    daemon.world().vms.insert("web".to_string(), uml("web"));
    daemon
}

/// `run` with a kernel that is an executable, so that User Mode Linux is chosen.
fn run_args<'a>(sizes: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--name", "new", "--kernel", env!("CARGO_BIN_EXE_plimsoll")], sizes].concat()
}

/// Nothing was asked of the daemon but to be read, and no folder was made.
#[track_caller]
fn unchanged(daemon: &FakeDaemon) {
    let changed: Vec<String> =
        daemon.world().asked.iter().filter(|asked| !asked.starts_with("GET")).cloned().collect();
    assert!(changed.is_empty(), "{changed:?}");
    assert!(!daemon.run_dir().join("run").join("new").exists());
}

#[test]
fn words_that_are_no_commands_are_told_the_right_one() {
    let daemon = with_web();
    daemon.run(&["lsit"]).refused(2, &["unrecognized subcommand 'lsit'", "list"]);
    daemon.run(&["ps"]).refused(2, &["here that is `plimsoll list`"]);
    daemon.run(&["kill", "web"]).refused(2, &["here that is `plimsoll stop`"]);
    daemon.run(&["list", "--jsno"]).refused(2, &["unexpected argument '--jsno'", "--json"]);
    daemon.run(&["run", "--name", "x", "--memory", "1G", "--vmm", "umll"]).refused(2, &["'umll'", "uml"]);
    let nothing = daemon.run(&[]);
    assert_eq!(nothing.code, 2);
    assert!(nothing.stderr.contains("Usage: plimsoll"), "{nothing:?}");
    unchanged(&daemon);
}

#[test]
fn impossible_sizes_are_wrong_use_and_start_nothing() {
    let daemon = with_web();
    for (sizes, says) in [
        (&["--memory", "2G", "--maxmem", "1G"][..], "memory=2G is more than maxmem=1G"),
        (&["--memory", "64M", "--floor", "65M"], "floor=65M is more than memory=64M"),
        (&["--memory", "0"], "is 0; a VM needs at least"),
        (&["--memory", "-1M"], "`-1M` is negative"),
        (&["--memory", "-1M", "--maxmem", "1G"], "`-1M` is negative"),
        (&["--memory", "1000000000000000000000000000000"], "more than 16 EiB"),
        (&["--memory", "1e30"], "`e30` in `1e30` is no unit"),
        (&["--memory", "64Q"], "`Q` in `64Q` is no unit"),
        (&["--memory", "5000"], "is not a multiple of 4096"),
        (&["--memory", "64M", "--weight", "0"], "weight=0 is out of range"),
        (&["--memory", "64M", "--weight", "-3"], "'-3'"),
        (&["--memory", "64M", "--maxmem", "17T"], "more than 16T"),
    ] {
        daemon.run(&run_args(sizes)).refused(2, &[says]);
    }
    daemon.run(&["set", "web", "memory=-5M"]).refused(2, &["negative"]);
    daemon.run(&["hold", "web", "-5M"]).refused(2, &["negative"]);
    unchanged(&daemon);
}

#[test]
fn bad_names_never_reach_the_daemon() {
    let daemon = with_web();
    for name in ["", "a/b", "..", "-x", "a b", "\u{fc}"] {
        let told = daemon.run(&["show", "--", name]);
        assert_eq!(told.code, 2, "{name:?}: {told:?}");
    }
    assert!(daemon.world().asked.is_empty());
}

#[test]
fn an_unknown_vm_is_answered_with_near_names() {
    let daemon = with_web();
    for args in [
        &["show", "wbe"][..],
        &["explain", "wbe"],
        &["set", "wbe", "memory=1G"],
        &["hold", "wbe"],
        &["release", "wbe"],
        &["stop", "wbe"],
    ] {
        daemon.run(args).refused(1, &["there is no VM `wbe`", "did you mean web?"]);
    }
    daemon.run(&["show", "zzzzzz"]).refused(1, &["`plimsoll list` shows those there are"]);
}

#[test]
fn a_name_that_is_taken_is_the_daemons_refusal() {
    let daemon = with_web();
    let mut args = run_args(&["--memory", "64M"]);
    args[2] = "web";
    // Whether keeper and back end are built depends on who runs this; without them it ends before.
    let told = daemon.run(&args);
    assert_eq!(told.code, 1, "{told:?}");
    let taken = told.stderr.contains("the name `web` is taken");
    assert!(taken || told.stderr.contains("cannot find plimsoll-keeper"), "{told:?}");
    assert!(daemon.world().vms.contains_key("web"), "somebody else's VM was forgotten");
    assert!(!daemon.run_dir().join("run/web").exists());
}

#[test]
fn more_than_the_host_has_is_the_daemons_refusal() {
    let daemon = with_web();
    let disk = daemon.run_dir().join("disk.img");
    std::fs::write(&disk, [0; 512]).unwrap();
    let disk = disk.to_str().unwrap();
    let args = ["run", "--name", "new", "--memory", "8G", "--vmm", "qemu", "--accel", "tcg", "--disk", disk];
    let told = daemon.run(&args);
    let missing = told.stderr.contains("cannot find qemu-system-x86_64");
    if missing {
        skip("more_than_the_host_has_is_the_daemons_refusal", "no QEMU");
        return;
    }
    told.refused(1, &["cannot run new: memory=8G does not fit: the budget is 7G"]);
    assert!(!daemon.run_dir().join("run/new").exists());
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let daemon = with_web();
    daemon
        .run(&["run", "--name", "new", "--memory", "64M", "--kernel", "/no/kernel"])
        .refused(1, &["cannot run new", "kernel /no/kernel", "No such file"]);
    daemon
        .run(&run_args(&["--memory", "64M", "--initrd", "/"]))
        .refused(1, &["initial RAM disk /", "it is a folder"]);
    daemon.run(&run_args(&["--memory", "64M", "--disk", "/no/disk"])).refused(1, &["disk /no/disk"]);
    daemon.run(&["run", "--name", "new", "--memory", "64M"]).refused(2, &["give --kernel FILE"]);
    daemon.run(&run_args(&["--memory", "64M", "--qemu-arg", "-nic"])).refused(2, &["--qemu-arg is for QEMU"]);
    daemon.run(&run_args(&["--memory", "64M", "--append", "mem=4G"])).refused(2, &["mem="]);
    daemon
        .run(&run_args(&["--memory", "64M", "--cgroup", "no-such-group"]))
        .refused(1, &["no-such-group", "must name a memory cgroup that exists"]);
    unchanged(&daemon);
}

#[test]
fn wrong_keys_of_set_are_told_the_right_one() {
    let daemon = with_web();
    daemon.run(&["set", "web", "memroy=1G"]).refused(2, &["did you mean memory?"]);
    daemon.run(&["set", "web", "floor=1G"]).refused(2, &["fixed when a VM is made"]);
    daemon.run(&["set", "web"]).refused(2, &["KEY=VALUE"]);
    daemon.run(&["set", "web", "memory"]).refused(2, &["write KEY=VALUE"]);
    unchanged(&daemon);
}

#[test]
fn start_switches_that_contradict_or_mean_nothing_start_nothing() {
    let daemon = with_web();
    for (switches, says) in [
        (&["--selfballooning", "--noselfballooning"][..], "cannot be used with"),
        (&["--selfballooning", "--tune", "selfballooning=off"], "selfballooning is set twice"),
        (&["--noselfshrink", "--tune", "frontswap_selfshrinking=on"], "frontswap_selfshrinking is set twice"),
        (&["--tune", "selfballoon_interval=0"], "at least 1"),
        (&["--tune", "selfbaloon_interval=5"], "did you mean selfballoon_interval?"),
        (&["--tune", "selfballooning"], "write KEY=VALUE"),
    ] {
        daemon.run(&run_args(&[&["--memory", "64M"], switches].concat())).refused(2, &[says]);
        let adopt = ["adopt", "--name", "new", "--qmp", "/no/socket"];
        daemon.run(&[&adopt[..], switches].concat()).refused(2, &[says]);
    }
    unchanged(&daemon);
}

#[test]
fn start_switches_arrive() {
    let daemon = with_web();
    let switches = ["--selfballooning", "--noselfshrink", "--tune", "selfballoon_interval=2"];
    daemon.run(&[&["adopt", "--name", "new", "--qmp", "/no/socket"][..], &switches].concat()).answer();
    let tunables = daemon.world().vms["new"].tunables;
    assert!(tunables.selfballooning && !tunables.frontswap_selfshrinking);
    assert_eq!(tunables.selfballoon_interval, 2);
}

#[test]
fn an_adopted_agent_is_named_by_its_whole_path() {
    let daemon = with_web();
    let adopt = ["adopt", "--name", "new", "--qmp", "/no/socket", "--agent"];
    daemon.run(&[&adopt[..], &["some/agent.sock"]].concat()).answer();
    let endpoint = daemon.world().vms["new"].endpoint.clone();
    let socket = endpoint.agent_socket().unwrap();
    assert!(socket.starts_with('/') && socket.ends_with("/some/agent.sock"), "{socket}");
    daemon.run(&adopt).refused(2, &["--agent"]);
}

#[test]
fn times_out_of_range_are_refused() {
    let daemon = with_web();
    daemon.run(&["top", "--interval", "1ms"]).refused(2, &["100ms to 1h"]);
    daemon.run(&["top", "--interval", "fast"]).refused(2, &["no unit of time"]);
    daemon.run(&["top", "-n", "0"]).refused(2, &["'0'"]);
    daemon.run(&["stop", "web", "--timeout", "-1s"]).refused(2, &["-1"]);
    daemon.run(&["events", "--since", "x"]).refused(2, &["'x'"]);
    unchanged(&daemon);
}

#[test]
fn without_a_daemon_the_command_to_start_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    for args in
        [&["list"][..], &["show", "web"], &["stop", "web"], &["events"], &["host"], &["config", "show"]]
    {
        let told = Told::of(command(dir.path(), args).output().unwrap());
        told.refused(
            1,
            &[
                &format!("no daemon answers at {path}/api.sock"),
                &format!("`plimsoll --run-dir {path} daemon`"),
            ],
        );
    }
    let told = Told::of(command(dir.path(), &["list"]).output().unwrap());
    assert_eq!(told.stderr.matches("No such file").count(), 1, "{told:?}");
    // A socket that is left of a daemon that was killed.
    drop(UnixListener::bind(dir.path().join("api.sock")).unwrap());
    Told::of(command(dir.path(), &["list"]).output().unwrap())
        .refused(1, &["Connection refused", "start it with"]);
}

#[test]
fn a_socket_that_may_not_be_used_names_the_group() {
    let Some(()) = unless_root("a_socket_that_may_not_be_used_names_the_group") else { return };
    let daemon = with_web();
    let open =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    open(daemon.run_dir(), 0o755);
    open(&daemon.run_dir().join("api.sock"), 0o660);
    // A copy, for the build's own folder may not be open to nobody.
    let copy = daemon.run_dir().join("plimsoll");
    std::fs::copy(env!("CARGO_BIN_EXE_plimsoll"), &copy).unwrap();
    let told = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .arg("--run-dir")
        .arg(daemon.run_dir())
        .arg("list")
        .output()
        .unwrap();
    Told::of(told).refused(1, &["you may not use", "group `plimsoll`"]);
}

/// Somebody who listens, reads a request, says `says` and closes.
fn listener(dir: &Path, says: &'static [u8]) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(dir.join("api.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(says);
    })
}

#[test]
fn somebody_else_at_the_socket_is_recognised() {
    for says in [
        &b""[..],
        b"{\"QMP\": {}}\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\n\x1b[31m!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhal",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let other = listener(dir.path(), says);
        let told = Told::of(command(dir.path(), &["list"]).output().unwrap());
        told.refused(1, &["cannot list the VMs", "does not answer as a plimsoll daemon does"]);
        assert!(!told.stderr.contains('\x1b'), "{told:?}");
        other.join().unwrap();
    }
}

#[test]
fn a_qmp_socket_without_qemu_is_named_when_sizes_must_be_asked() {
    let daemon = with_web();
    let path = daemon.run_dir().join("qmp.sock");
    let path = path.to_str().unwrap();
    daemon
        .run(&["adopt", "--name", "new", "--qmp", path, "--memory", "64M"])
        .refused(1, &["cannot adopt new", path]);
    unchanged(&daemon);
    // Without sizes, or with all, the daemon asks; the path arrives absolute.
    let told = daemon
        .command(&["adopt", "--name", "new", "--qmp", "qmp.sock"])
        .current_dir(daemon.run_dir())
        .output();
    assert_eq!(Told::of(told.unwrap()).answer().lines().count(), 1);
    let endpoint = Endpoint::Qemu { qmp: path.to_string(), agent: None, pager: None };
    assert_eq!(daemon.world().vms["new"].endpoint, endpoint);
    let sizes = ["--memory", "64M", "--maxmem", "32M"];
    daemon
        .run(&[&["adopt", "--name", "two", "--qmp", path][..], &sizes].concat())
        .refused(2, &["memory=64M is more than maxmem=32M"]);
}

#[test]
fn config_check_speaks_for_plimsolld() {
    // A plimsolld of our own beside a copy of the command.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("plimsoll");
    std::fs::copy(env!("CARGO_BIN_EXE_plimsoll"), &copy).unwrap();
    let fake = dir.path().join("plimsolld");
    std::fs::write(&fake, "#!/bin/sh\necho \"$@\"; [ \"$2\" = good ] || exit 3\n").unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = |args: &[&str]| {
        Told::of(
            std::process::Command::new(&copy).args(["--run-dir", "/nowhere"]).args(args).output().unwrap(),
        )
    };
    assert_eq!(run(&["config", "check", "good"]).answer(), "--check-config good\n");
    assert_eq!(run(&["config", "check", "bad"]).code, 3);
    let daemon = run(&["daemon", "--config", "x.toml", "--log", "debug"]);
    assert_eq!(daemon.stdout, "--run-dir /nowhere --config x.toml --log debug\n");
}
