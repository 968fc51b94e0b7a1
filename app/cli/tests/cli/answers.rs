//! What the command answers: help, tables and JSON, compared with files, and requests that arrive as meant.
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{FakeDaemon, assert_golden, uml};
use plimsoll_api::http::{BackendView, Event, Life, ListView, ProcessRef};
use plimsoll_model::{Reason, Signal, Source, VmState};
use plimsoll_testbed::paths::program;
use plimsoll_testbed::skip::unless_available;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::{Bytes, MemTarget};

/// A host with a VM in each state that a reader must be able to tell from the others.
fn busy() -> FakeDaemon {
    let daemon = FakeDaemon::start();
    let mut web = uml("web");
    web.vmm = Some(ProcessRef { pid: 4242, start_time: 7 });
    web.backend = Some(BackendView {
        epoch: 2,
        generation: 1,
        ledger: Default::default(),
        counters: Default::default(),
    });
    let mut db = uml("db");
    (db.state, db.target) = (VmState::Distressed, MemTarget(Bytes::gib(12)));
    db.reason = Reason::Distress {
        signal: Signal::Swap,
        source: Source::Agent,
        available: Bytes::mib(3),
        low: Bytes::mib(20),
        wanted: Bytes::gib(1),
        granted: Bytes::mib(768),
    };
    let mut mail = uml("mail");
    mail.state = VmState::Stuck;
    mail.reason = Reason::Stuck {
        asked: MemTarget(Bytes::mib(128)),
        moved: Bytes::ZERO,
        window_ms: 5000,
        retry_ms: 29_500,
    };
    let mut old = uml("old");
    (old.life, old.need, old.resident) = (Life::Gone, None, None);
    let mut lost = uml("lost");
    lost.life = Life::Unprotected;
    let mut mute = uml("mute");
    (mute.life, mute.problem) = (Life::Unreachable, Some("no \x1b[31manswer\x1b[0m since 4 s".to_string()));
    let mut pinned = uml("pinned");
    (pinned.state, pinned.hold) = (VmState::Held, Some(MemTarget(Bytes::mib(256))));
    pinned.reason = Reason::Held { hold: MemTarget(Bytes::mib(256)) };
    for vm in [web, db, mail, old, lost, mute, pinned] {
        daemon.world().vms.insert(vm.name.to_string(), vm);
    }
    daemon
}

#[test]
fn help_reads_as_it_was_approved() {
    let daemon = FakeDaemon::start();
    let commands = [
        "",
        "daemon",
        "run",
        "adopt",
        "list",
        "show",
        "top",
        "set",
        "hold",
        "release",
        "explain",
        "events",
        "stop",
        "host",
        "config",
        "config show",
        "config check",
    ];
    for command in commands {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("--help");
        let name = if command.is_empty() { "plimsoll".to_string() } else { command.replace(' ', "-") };
        assert_golden(&format!("help-{name}.txt"), daemon.run(&args).answer());
    }
}

#[test]
fn list_shows_every_state() {
    assert_golden("list.txt", busy().run(&["list"]).answer());
}

#[test]
fn top_off_a_terminal_prints_one_list_after_the_other() {
    let daemon = busy();
    let list = daemon.run(&["list"]).stdout;
    let told = daemon.run(&["top", "-n", "2", "--interval", "100ms"]);
    assert_eq!(told.answer(), format!("{list}\n{list}\n"));
    let json = daemon.run(&["top", "-n", "3", "--interval", "100ms", "--json"]);
    assert_eq!(json.answer().lines().count(), 3);
    assert!(json.stdout.lines().all(|line| serde_json::from_str::<ListView>(line).is_ok()));
}

#[test]
fn show_and_host_group_their_facts() {
    let daemon = busy();
    assert_golden("show.txt", &without_own_uid(daemon.run(&["show", "web"]).answer()));
    assert_golden("host.txt", daemon.run(&["host"]).answer());
}

/// The user this test runs as is in the answer, and not the same everywhere.
fn without_own_uid(text: &str) -> String {
    text.replace(&format!("of user {}", rustix::process::getuid().as_raw()), "of user UID")
}

#[test]
fn explain_speaks_in_sentences() {
    let daemon = busy();
    let told = daemon.run(&["explain", "web"]);
    let text = told.answer();
    for part in [
        "web's target is 256M. It was told of 1G (maxmem), is guaranteed 128M (floor)",
        "Why: its baseline is 256M and the host has room for it.",
        "by its balloon's statistics, 0.4 s ago (no agent is heard) it needs 128M and could spare 128M.",
        "The host is tight: guests want more than is free: 2048M of a budget of 7168M is claimed",
        "distressed guests wait for 64M",
        "2026-11-21T11:24:36Z): 300M -> 256M by the arbiter: it needs 140M, by its balloon's statistics",
        "Before that:",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let change = |name: &str| daemon.run(&["explain", name]).stdout;
    assert!(change("pinned").contains("What would change it: `plimsoll release pinned`"));
    assert!(change("db").contains("only a larger --maxmem"));
    assert!(change("lost").contains("keeper is gone"));
    assert!(change("old").contains("`plimsoll stop old` clears it away"));
}

#[test]
fn json_is_the_apis_own_one_document_each() {
    let daemon = busy();
    let document = |args: &[&str]| {
        let told = daemon.run(args);
        serde_json::from_str::<serde_json::Value>(told.answer()).unwrap()
    };
    let list: ListView = serde_json::from_value(document(&["list", "--json"])).unwrap();
    assert_eq!(list.vms.len(), 7);
    assert_eq!(document(&["show", "web", "--json"])["name"], "web");
    assert_eq!(document(&["explain", "web", "--json"])["vm"]["name"], "web");
    assert_eq!(document(&["host", "--json"])["ticks"], 77);
    assert_eq!(document(&["config", "show", "--json"])["host"]["budget"], "auto");
    assert_eq!(daemon.run(&["config", "show"]).answer(), "[host]\nbudget = \"auto\"\n");
}

#[test]
fn set_hold_and_release_reach_the_daemon() {
    let daemon = busy();
    let set = daemon.run(&["set", "web", "memory=300M", "weight=7"]);
    assert_eq!(set.answer(), "web: target 300M (memory 300M, floor 128M, maxmem 1G, weight 7)\n");
    let hold = daemon.run(&["hold", "web", "384M"]);
    assert_eq!(
        hold.answer(),
        "web: target 384M (memory 300M, floor 128M, maxmem 1G, weight 7), held at 384M\n"
    );
    assert_eq!(daemon.world().vms["web"].hold, Some(MemTarget(Bytes::mib(384))));
    let release = daemon.run(&["release", "web"]);
    assert!(!release.answer().contains("held"), "{release:?}");
    assert_eq!(daemon.run(&["hold", "web"]).answer().lines().count(), 1);
}

fn event(seq: u64, vm: Option<&str>, kind: &str) -> Event {
    let vm = vm.map(|name| name.parse().unwrap());
    Event {
        seq,
        wall_us: 1_795_260_276_000_000 + seq,
        vm,
        kind: kind.to_string(),
        text: "so it was".to_string(),
    }
}

#[test]
fn events_are_chosen_by_number_and_name() {
    let daemon = busy();
    daemon.world().events = vec![
        event(1, None, "daemon-started"),
        event(2, Some("web"), "running"),
        event(3, Some("db"), "distressed"),
    ];
    assert_golden("events.txt", daemon.run(&["events"]).answer());
    assert!(daemon.run(&["events", "web"]).answer().contains("running"));
    assert_eq!(daemon.run(&["events", "web"]).answer().lines().count(), 1);
    let json = daemon.run(&["events", "--since", "1", "--json"]);
    let seqs: Vec<u64> =
        json.answer().lines().map(|line| serde_json::from_str::<Event>(line).unwrap().seq).collect();
    assert_eq!(seqs, [2, 3]);
}

#[test]
fn following_goes_on_over_a_new_start_of_the_daemon() {
    let mut daemon = busy();
    daemon.world().events = vec![event(1, None, "daemon-started"), event(2, Some("web"), "running")];
    let mut child =
        daemon.command(&["events", "--follow"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (send, lines) = std::sync::mpsc::channel::<String>();
    let reader = std::thread::spawn(move || {
        let mut text = [0u8; 4096];
        while let Ok(n @ 1..) = stdout.read(&mut text) {
            let _ = send.send(String::from_utf8_lossy(&text[..n]).into_owned());
        }
    });
    let wait_for = |what: &str| {
        let begin = Instant::now();
        let mut seen = String::new();
        while !seen.contains(what) {
            let left = Duration::from_secs(20).saturating_sub(begin.elapsed());
            seen += &lines.recv_timeout(left).unwrap_or_else(|_| panic!("no `{what}`, only:\n{seen}"));
        }
    };
    wait_for("running");
    daemon.world().events.push(event(3, Some("web"), "held"));
    wait_for("held");
    daemon.kill();
    std::fs::remove_file(daemon.run_dir().join("api.sock")).unwrap();
    daemon.world().events = vec![event(1, None, "begun-anew")];
    daemon.resume();
    wait_for("begun-anew");
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let daemon = busy();
    let mut child = daemon
        .command(&["top", "--interval", "100ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "");
}

#[test]
fn there_is_no_colour_off_a_terminal() {
    let daemon = busy();
    for args in [&["--help"][..], &["list"], &["show", "mute"], &["explain", "mute"], &["nonsense"]] {
        let told = daemon.run(args);
        assert!(!told.stdout.contains('\x1b') && !told.stderr.contains('\x1b'), "{told:?}");
    }
}

/// A terminal of util-linux' `script`; what is put on its standard input is typed there.
fn on_a_terminal(daemon: &FakeDaemon, args: &str) -> std::process::Child {
    let command = format!(
        "stty cols 70 rows 6; exec {} --run-dir {} {args}",
        env!("CARGO_BIN_EXE_plimsoll"),
        daemon.run_dir().display()
    );
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
    script.env("SHELL", "/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn top_gives_the_terminal_back_also_after_ctrl_c() {
    const TEST: &str = "top_gives_the_terminal_back_also_after_ctrl_c";
    let Some(_) = unless_available(TEST, program("script", "bsdutils")) else { return };
    let daemon = busy();
    for (args, typed) in [("top -n 2 --interval 100ms", None), ("top --interval 100ms", Some(b"\x03"))] {
        let mut child = on_a_terminal(&daemon, args);
        let looked = || daemon.world().asked.iter().filter(|asked| *asked == "GET /v1/vms").count() >= 2;
        poll_until(Duration::from_secs(20), "two looks", || looked().then_some(()).ok_or(String::new()))
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        if let Some(typed) = typed {
            stdin.write_all(typed).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text:?}");
        let (enter, leave) = ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l");
        assert!(
            text.starts_with(enter) && text.trim_end().trim_end_matches("^C").ends_with(leave),
            "{text:?}"
        );
        // Cut to 70 columns and 5 rows: the third VM is there, the seventh is not.
        assert!(
            text.contains("mail") && !text.contains("pinned") && !text.contains("again in 30 s"),
            "{text:?}"
        );
        daemon.world().asked.clear();
    }
}
