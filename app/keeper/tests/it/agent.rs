//! The line from the agent in a guest, through a keeper that never reads it to back ends that come and go.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll_agent_proto::{Report, encode};
use plimsoll_api::control::{AWAIT_AGENT_MS, AgentCounters, Op, Outcome, Status};
use plimsoll_model::AgentStats;
use plimsoll_testbed::guard::ShmDir;
use plimsoll_units::Bytes;

use crate::common::{Keeper, LIMIT, backend, resident_kib, ticks};
use crate::driver::Front;

const MEM: Bytes = Bytes(crate::driver::LENGTH);

/// Kills after which a keeper of a test that kills on purpose still does not give up.
const PATIENT: [&str; 2] = ["--give-up-after", "1000"];

fn frame(seq: u64, urgent: bool) -> Vec<u8> {
    let stats = AgentStats {
        available: Some(Bytes(seq)),
        committed: Some(Bytes(u64::MAX)),
        swap_in: Some(seq),
        ..AgentStats::default()
    };
    let mut bytes = Vec::new();
    encode(&Report { session: 5, seq, urgent, stats }, &mut bytes);
    bytes
}

/// The number of the report that is known.
fn known(status: &Status) -> Option<u64> {
    status.agent.map(|stats| stats.available.unwrap().0)
}

fn wait_known(keeper: &Keeper, seq: u64) -> Status {
    keeper.wait(&format!("report {seq}"), |k| k.try_status().filter(|status| known(status) == Some(seq)))
}

#[test]
fn reports_are_shown_and_age() {
    let (keeper, mut guest) = Keeper::start_with_line("agent", MEM, &[]);
    let status = keeper.status();
    assert_eq!((status.agent, status.agent_counters), (None, Some(AgentCounters::default())));
    guest.write_all(&frame(1, false)).unwrap();
    let status = wait_known(&keeper, 1);
    assert_eq!(status.agent.unwrap().committed, Some(Bytes(u64::MAX)), "nothing is judged here");
    assert_eq!(status.agent_urgent, 0);
    let older = keeper.wait("it to age", |k| Some(k.status().agent_age_ms).filter(|age| *age > 300));
    assert!(older < 60_000);
    for seq in 2..=9 {
        guest.write_all(&frame(seq, false)).unwrap();
    }
    assert_eq!(wait_known(&keeper, 9).agent_counters.unwrap().frames, 9);
}

#[test]
fn who_waits_for_distress_hears_of_it_at_once() {
    let (keeper, mut guest) = Keeper::start_with_line("distress", MEM, &[]);
    guest.write_all(&frame(1, false)).unwrap();
    wait_known(&keeper, 1);
    let waiter = |after| {
        let reply = keeper.try_ask(Op::AwaitAgent { after }).unwrap();
        let Outcome::Ok(status) = reply.result else { panic!("{reply:?}") };
        (status, Instant::now())
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| waiter(0));
        let quiet = scope.spawn(|| waiter(1));
        // Long enough that the question has been asked; it is answered at once all the same if not.
        std::thread::sleep(Duration::from_millis(300));
        let told = Instant::now();
        guest.write_all(&frame(2, true)).unwrap();
        let (status, answered) = waiting.join().unwrap();
        assert_eq!((known(&status), status.agent_urgent), (Some(2), 1));
        let took = answered - told;
        assert!(took < Duration::from_millis(300), "{took:?}");
        // 1 was not the number when this was asked.
        let (status, _) = quiet.join().unwrap();
        assert_eq!(status.agent_urgent, 0);
    });
    let begun = Instant::now();
    let (status, answered) = waiter(1);
    let took = answered - begun;
    assert_eq!(status.agent_urgent, 1);
    assert!(took >= Duration::from_millis(AWAIT_AGENT_MS) && took < LIMIT, "{took:?}");
}

#[test]
fn killed_in_the_middle_of_a_frame_the_next_back_end_goes_on() {
    let (keeper, mut guest) = Keeper::start_with_line("agent-kills", MEM, &PATIENT);
    let mut seq = 0;
    for kill in 0..20usize {
        let epoch = keeper.status().epoch;
        seq += 1;
        let bytes = frame(seq, false);
        let (half, rest) = bytes.split_at(1 + kill * 5 % (bytes.len() - 1));
        guest.write_all(&[b"noise", half].concat()).unwrap();
        if kill % 2 == 0 {
            // With the noise it has read the half: the frame is lost.
            let skipped = |k: &Keeper| k.status().agent_counters.filter(|line| line.skipped_bytes >= 5);
            keeper.wait("the half to be read", skipped);
        }
        assert!(keeper.kill_back_end());
        guest.write_all(rest).unwrap();
        seq += 1;
        guest.write_all(&frame(seq, kill % 3 == 0)).unwrap();
        let status = wait_known(&keeper, seq);
        assert!(status.epoch > epoch, "{status:?}");
    }
    guest.write_all(&frame(seq + 1, false)).unwrap();
    wait_known(&keeper, seq + 1);
}

#[test]
fn a_guest_that_floods_costs_next_to_nothing_and_holds_nobody_up() {
    let (keeper, guest) = Keeper::start_with_line("agent-flood", MEM, &[]);
    let mut front = Front::connect(&keeper);
    front.start();
    let mut noise = frame(1, true);
    let last = noise.len() - 1;
    noise[last] ^= 1;
    let noise = [noise.repeat(500), vec![0xF5; 20_000], frame(2, true).repeat(300)].concat();
    let flood = std::thread::spawn(move || while (&guest).write_all(&noise).is_ok() {});
    keeper.wait("the flood", |k| k.status().agent_counters.filter(|line| line.bad_frames > 10));
    let back_end = keeper.back_end().unwrap();
    let (begun, before) = (Instant::now(), [ticks(back_end), ticks(keeper.pid())]);
    let mut slowest = Duration::ZERO;
    let mut answers = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        keeper.status();
        slowest = slowest.max(asked.elapsed());
        answers += 1;
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let used = [ticks(back_end) - before[0], ticks(keeper.pid()) - before[1]];
    // A tick is 10 ms, so this is 10 % of a core, the answers and the test build's slowness included.
    assert!(used[0] <= 20 && used[1] <= 2, "{used:?} ticks in {:?}", begun.elapsed());
    assert!(slowest < Duration::from_millis(500), "{slowest:?} for one of {answers} answers");
    front.inflate(&[700]);
    keeper.wait("the inflation", |k| (k.status().ledger.ballooned.0 == 1).then_some(()));
    assert!(resident_kib(back_end) < 24 * 1024);
    assert_eq!(keeper.status().epoch, 1);
    drop(keeper);
    flood.join().unwrap();
}

#[test]
fn noise_is_passed_over_and_the_next_report_is_found() {
    let (keeper, mut guest) = Keeper::start_with_line("agent-noise", MEM, &[]);
    let good = frame(1, false);
    guest.write_all(b"\r\nPlease press Enter to activate this console. \xf5\x50\x6c").unwrap();
    guest.write_all(&good[..good.len() - 3]).unwrap();
    guest.write_all(&[0; 600]).unwrap();
    guest.write_all(&good).unwrap();
    let line = wait_known(&keeper, 1).agent_counters.unwrap();
    assert!(line.skipped_bytes > 600 && line.bad_frames > 0 && line.frames == 1, "{line:?}");
    let mut newer = frame(2, true);
    newer[4] = 99;
    guest.write_all(&newer).unwrap();
    guest.write_all(&good).unwrap();
    guest.write_all(&frame(3, false)).unwrap();
    let line = wait_known(&keeper, 3).agent_counters.unwrap();
    assert_eq!((line.out_of_order, line.frames), (1, 2), "{line:?}");
    assert_eq!(keeper.status().epoch, 1);
}

#[test]
fn what_a_guest_said_is_forgotten_when_another_begins() {
    let (keeper, mut guest) = Keeper::start_with_line("agent-reboot", MEM, &[]);
    for generation in 1..4u64 {
        let mut front = Front::connect(&keeper);
        front.start();
        keeper.wait("the front end", |k| (k.status().generation == generation).then_some(()));
        assert_eq!(known(&keeper.status()), None, "of the guest before");
        guest.write_all(&frame(generation, false)).unwrap();
        wait_known(&keeper, generation);
        // It is still sending while it is rebooted, and the rest is in the line when the next one begins.
        guest.write_all(&frame(100 + generation, true).repeat(20)).unwrap();
        drop(front);
        keeper.wait("a cleared device", |k| (!k.status().connected).then_some(()));
    }
}

#[test]
fn the_end_of_a_line_is_the_end_of_nothing_else() {
    let (keeper, mut guest) = Keeper::start_with_line("agent-end", MEM, &PATIENT);
    guest.write_all(&frame(1, false)).unwrap();
    wait_known(&keeper, 1);
    drop(guest);
    for _ in 0..2 {
        let back_end = keeper.wait("a back end", |k| {
            k.try_status()?;
            k.back_end()
        });
        let before = ticks(back_end);
        // Not a wait for a state: it is the time over which is measured.
        std::thread::sleep(Duration::from_secs(1));
        assert!(ticks(back_end) - before <= 5, "it must not ask a dead line again and again");
        keeper.kill_back_end();
    }
}

#[test]
fn a_guest_without_an_agent_costs_nothing_and_its_line_is_told() {
    let (keeper, mut guest) = Keeper::start_with_line("agent-none", MEM, &[]);
    let plain = Keeper::start("agent-no-line", MEM, &[]);
    assert_eq!(keeper.status().agent_counters, Some(AgentCounters::default()));
    assert_eq!(plain.status().agent_counters, None);
    // Whoever does not know how often the agent was urgent is told at once.
    let begun = Instant::now();
    assert_eq!(plain.ask(Op::AwaitAgent { after: u64::MAX }).agent_urgent, 0);
    assert!(begun.elapsed() < Duration::from_millis(AWAIT_AGENT_MS));
    // Nothing is ever sent to a guest that does not ask.
    guest.set_nonblocking(true).unwrap();
    let heard = std::io::Read::read(&mut guest, &mut [0; 16]).unwrap_err();
    assert_eq!(heard.kind(), ErrorKind::WouldBlock);
}

#[test]
fn only_a_stream_socket_is_a_line() {
    let dir = ShmDir::create("agent-wrong").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-keeper"));
    command.args(["--name", "x", "--maxmem", "16M", "--agent-line", "--backend"]).arg(backend());
    let output = command.arg("--dir").arg(dir.path()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("not a stream socket"), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
