//! A journal is written, read back and replayed.

use std::fs;

use plimsoll_model::{HostSample, Link, PsiTotals, Sizes, StatsSample, Tunables, VmId, VmSample};
use plimsoll_policy::decide;
use plimsoll_units::MonoTime;
use serde::Deserialize;

use super::*;

/// The lines as a reader sees them.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Read {
    Start { config: Box<Config>, history: History },
    Tick { snapshot: Box<Snapshot>, plan: Plan },
    Event {},
    Outcome {},
    Lost { lines: u64 },
}

/// Decides again what a file says was decided; returns the number of ticks and of lost lines.
fn replay(text: &str) -> (usize, u64) {
    let (mut state, mut ticks, mut lost) = (None, 0, 0);
    for line in text.lines() {
        match serde_json::from_str(line).unwrap() {
            Read::Start { config, history } => state = Some((*config, history)),
            Read::Tick { snapshot, plan } => {
                let (config, history) = state.as_mut().expect("a start comes before every tick");
                assert_eq!(decide(&snapshot, config, history), plan);
                ticks += 1;
            }
            Read::Lost { lines } => lost += lines,
            Read::Event {} | Read::Outcome {} => {}
        }
    }
    (ticks, lost)
}

/// A little world that follows its targets half way each tick; numbers by a linear congruence.
fn snapshots(n: u64) -> impl FnMut(&[plimsoll_model::Action], u64) -> Snapshot {
    let mut seed = 42u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let sizes = Sizes::new(Bytes::mib(256), Bytes::mib(512), None, None).unwrap();
    let mut vms: Vec<VmSample> = (1..=n)
        .map(|id| VmSample {
            id: VmId(id),
            name: VmName::new(&format!("vm{id}")).unwrap(),
            sizes,
            overhead: Bytes::mib(16),
            link: Link::Up,
            target: MemTarget(sizes.memory()),
            actual: MemTarget(sizes.memory()),
            resident: None,
            hold: None,
            stats: None,
            agent: None,
            tunables: Tunables::default(),
            pager: None,
        })
        .collect();
    move |actions, tick| {
        let now = MonoTime(1_000_000 * (tick + 1));
        for vm in &mut vms {
            if let Some(action) = actions.iter().find(|a| a.vm == vm.id) {
                vm.target = action.to;
            }
            vm.actual = MemTarget(Bytes((vm.actual.0.0 + vm.target.0.0) / 2).pages_floor().bytes());
            let mut stats = plimsoll_model::GuestStats::default();
            stats.set_tag(6, random(vm.actual.0.0));
            stats.set_tag(0, tick * random(1 << 22));
            vm.stats = Some(StatsSample { at: now, stats });
        }
        let host = HostSample {
            budget: Bytes::mib(300 * n),
            available: Bytes::mib(random(2048)),
            low: Bytes::mib(64),
            psi: Some(PsiTotals { some_us: tick * random(50_000), full_us: 0 }),
            swap_in_pages: 0,
            swap_out_pages: 0,
        };
        Snapshot { now, host, vms: vms.clone() }
    }
}

/// Runs `ticks` ticks into a journal; `between` may meddle.
fn run(journal: &mut Journal, ticks: u64, mut between: impl FnMut(&mut Journal, u64)) -> usize {
    let (config, mut history) = (Config::default(), History::default());
    let mut world = snapshots(6);
    let mut actions = Vec::new();
    let mut moves = 0;
    for tick in 0..ticks {
        let snapshot = world(&actions, tick);
        journal.before_tick(&config, &history);
        let plan = decide(&snapshot, &config, &mut history);
        journal.tick(&snapshot, &plan);
        moves += plan.actions.len();
        actions = plan.actions;
        between(journal, tick);
    }
    moves
}

fn files(dir: &Path) -> Vec<String> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| name != "lock"));
    paths.sort();
    paths.iter().map(|p| fs::read_to_string(p).unwrap()).collect()
}

/// Waits for the thread, so that a test never overruns the queue by being fast.
fn drain(journal: &Journal) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while journal.shared.queued_bytes.load(Ordering::Relaxed) > 0 {
        assert!(std::time::Instant::now() < until, "the journal's thread does not write");
        std::thread::yield_now();
    }
}

#[test]
fn a_replay_decides_the_same_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), Bytes::mib(64), 2).unwrap();
    let moves = run(&mut journal, 200, |journal, _| drain(journal));
    drop(journal);
    assert!(moves > 50, "a world in which nothing happens proves nothing");
    assert_eq!(replay(&files(dir.path())[0]), (200, 0));
}

#[test]
fn every_rotated_file_replays_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), Bytes::kib(64), 4).unwrap();
    run(&mut journal, 300, |journal, _| drain(journal));
    drop(journal);
    let files = files(dir.path());
    assert_eq!(files.len(), 4);
    for text in files {
        assert!(text.len() < 2 * 65536);
        assert!(replay(&text).0 > 0);
    }
}

#[test]
fn after_a_gap_the_replay_goes_on_at_a_new_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), Bytes::mib(64), 2).unwrap();
    run(&mut journal, 60, |journal, tick| {
        // As if the disk had been behind for ten ticks.
        match tick {
            20 => {
                drain(journal);
                journal.shared.queued_bytes.store(QUEUED_BYTES, Ordering::Relaxed);
            }
            21..30 => {}
            30 => journal.shared.queued_bytes.store(0, Ordering::Relaxed),
            _ => drain(journal),
        }
    });
    assert!(journal.dropped() > 0);
    drop(journal);
    let (ticks, lost) = replay(&files(dir.path())[0]);
    assert!((45..60).contains(&ticks), "{ticks}");
    assert!(lost > 0);
}

#[test]
fn a_full_disk_drops_counts_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path(), Bytes::mib(64), 2).unwrap();
    run(&mut journal, 40, |journal, tick| {
        drain(journal);
        // What the thread does when a write fails.
        if tick == 10 {
            journal.shared.failed.store(true, Ordering::Relaxed);
            journal.shared.drop_one();
        }
    });
    drop(journal);
    assert_eq!(replay(&files(dir.path())[0]), (40, 1));
}

#[test]
fn no_journal_is_no_work() {
    let mut journal = Journal::off();
    run(&mut journal, 3, |_, _| {});
    assert_eq!(journal.dropped(), 0);
}
