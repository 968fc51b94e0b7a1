//! The journal of a daemon that was killed and came back.

use std::fs;

use plimsoll_model::{Plan, Snapshot};
use plimsoll_policy::{Config, History, decide};
use plimsoll_units::Bytes;
use serde_json::Value;

use crate::common::{CONFIG, Daemon, backend::Backend, sizes, wait_for};

/// Decides again everything a file says was decided; returns the number of ticks and of moves.
fn replay(text: &str) -> (usize, usize) {
    let mut state: Option<(Config, History)> = None;
    let (mut ticks, mut moves) = (0, 0);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["v"], 1);
        let part = |name: &str| line[name].clone();
        match line["kind"].as_str().unwrap() {
            "start" => {
                let config = serde_json::from_value(part("config")).unwrap();
                state = Some((config, serde_json::from_value(part("history")).unwrap()));
            }
            "tick" => {
                let (config, history) = state.as_mut().unwrap();
                let snapshot: Snapshot = serde_json::from_value(part("snapshot")).unwrap();
                let plan: Plan = serde_json::from_value(part("plan")).unwrap();
                assert_eq!(decide(&snapshot, config, history), plan, "tick {ticks}");
                moves += plan.actions.len();
                ticks += 1;
            }
            kind => assert!(matches!(kind, "event" | "outcome"), "{kind}"),
        }
    }
    (ticks, moves)
}

#[test]
fn a_day_of_a_real_daemon_replays_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("journal");
    let config = CONFIG.replace("\"none\"", &format!("{:?}\nkeep = 3", dir.to_str().unwrap()));
    let mut daemon = Daemon::start(&config);
    let (a, b) =
        (Backend::start(daemon.dir.path(), "a", 512, 100), Backend::start(daemon.dir.path(), "b", 512, 60));
    daemon.run_vm("a", &a, sizes(256, 512, 128));
    daemon.run_vm("b", &b, sizes(256, 512, 128));
    a.guest().used = Bytes::mib(250);
    wait_for("an answer to distress", || (daemon.show("a").target.0 == Bytes::mib(512)).then_some(()));
    a.guest().used = Bytes::mib(50);
    daemon.wait_ticks(3);
    daemon.process.kill();
    daemon.start_again();
    daemon.wait_ticks(3);
    drop(daemon);
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    // A kill may leave half a line at the end, and nothing worse.
    let before = read("journal.jsonl.1");
    let whole = &before[..=before.rfind('\n').unwrap()];
    let (ticks, moves) = replay(whole);
    assert!(ticks >= 4 && moves > 0, "{ticks} ticks, {moves} moves");
    assert!(whole.contains("\"kind\":\"event\""));
    let after = read("journal.jsonl");
    assert!(replay(&after[..=after.rfind('\n').unwrap()]).0 >= 3);
}
