//! Lines on which somebody writes as fast as they take it.

use std::time::{Duration, Instant};

use plimsoll_api::control::AgentCounters;
use plimsoll_e2e::{Kind, Vm};
use plimsoll_model::Source;
use rustix::param::clock_ticks_per_second;
use rustix::process::Pid;

use crate::frames::{FRAMES, calm, reports};
use crate::inside::Inside;
use crate::world::{SUSPECT, World, act, tell};

/// How long a flood lasts at least.
const FLOOD: Duration = Duration::from_secs(4);
/// What a flood may cost each process that reads it, in thousandths of a core. It is a few; what is allowed here leaves
/// room for programs that are not optimized.
const COST: u64 = 50;

/// The time that processes have used.
struct Meter {
    pids: Vec<Pid>,
    used: Vec<u64>,
    since: Instant,
}

impl Meter {
    fn start(pids: Vec<Pid>) -> Self {
        let used = pids.iter().map(|pid| used(*pid)).collect();
        Self { pids, used, since: Instant::now() }
    }

    /// Thousandths of a core that each used since the start.
    fn read(&self) -> Vec<u64> {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).expect("minutes");
        let thousandths = |(pid, before): (&Pid, &u64)| {
            let ticks = used(*pid).saturating_sub(*before);
            ticks * 1000 * 1000 / clock_ticks_per_second() / elapsed.max(1)
        };
        self.pids.iter().zip(&self.used).map(thousandths).collect()
    }
}

/// User and system time in clock ticks: fields 14 and 15 of /proc/PID/stat (proc(5)), the 12th and 13th behind the name.
fn used(pid: Pid) -> u64 {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (_, rest) = text.rsplit_once(')').unwrap_or_else(|| panic!("{path}: {text}"));
    rest.split_ascii_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().expect("a number")).sum()
}

/// Whoever reads the line: the daemon, and of User Mode Linux the back end.
fn readers(vm: &Vm<'_>) -> Vec<Pid> {
    let backend = (vm.kind == Kind::Uml).then(|| vm.keeper_and_backend().1);
    [vm.bed.daemon_pid()].into_iter().chain(backend).collect()
}

fn counters(vm: &Vm<'_>) -> AgentCounters {
    vm.view().agent_line.expect("it has a line")
}

/// Measures a quiet while, then what `begin` begins while the third guest is served.
#[track_caller]
fn costs_little(world: &World<'_, '_>, what: &str, begin: impl FnOnce(Inside<'_, '_>)) {
    let (suspect, inside) = (world.suspect, world.inside);
    let quiet = Meter::start(readers(suspect));
    world.needy_is_served();
    let quiet = quiet.read();

    inside.signal_agent("KILL");
    let before = counters(suspect);
    begin(inside);
    let flooded =
        || counters(suspect).skipped_bytes > before.skipped_bytes || counters(suspect).frames > before.frames;
    suspect.wait("the flood to be seen", Duration::from_secs(30), |_| flooded());
    let flood = Meter::start(readers(suspect));
    while flood.since.elapsed() < FLOOD {
        world.needy_is_served();
    }
    let flood = flood.read();
    tell(&format!("{what}: {flood:?} thousandths of a core, {quiet:?} before; {:?}", counters(suspect)));
    for (flood, quiet) in flood.iter().zip(&quiet) {
        assert!(
            flood.saturating_sub(*quiet) <= COST,
            "{what}: {flood} thousandths of a core, {quiet} before"
        );
    }
}

fn garbage(world: &World<'_, '_>) {
    costs_little(world, "a flood of garbage", |inside| inside.rave());
    world.falls_back();
    world.inside.hush();
    // What is left in the line is read at the pace at which a line is read.
    world.inside.agent_is_heard();
}

/// Reports of two agents by turns, so that each is new: they may be believed, but nobody is woken, and nobody else pays.
fn frames(world: &World<'_, '_>) {
    let maxmem = plimsoll_e2e::mib(SUSPECT.1);
    let numbers = (1..=FRAMES).flat_map(|seq| [(1, seq), (2, seq)]);
    let frames = reports(calm(maxmem), numbers.take(usize::try_from(FRAMES).expect("few")));
    costs_little(world, "a flood of frames", |inside| inside.repeat(&frames));
    let line = counters(world.suspect);
    assert!(line.flooded > 0, "{line:?}");
    assert_eq!(world.suspect.view().source, Source::Agent);
    world.inside.hush();
    world.falls_back();
    world.inside.agent_is_heard();
}

#[test]
fn floods_from_a_uml_guest_cost_its_readers_little_and_others_nothing() {
    act("floods_from_a_uml_guest_cost_its_readers_little_and_others_nothing", Kind::Uml, |world| {
        garbage(world);
        frames(world);
    });
}

#[test]
fn floods_from_a_qemu_guest_cost_its_readers_little_and_others_nothing() {
    act("floods_from_a_qemu_guest_cost_its_readers_little_and_others_nothing", Kind::Qemu, garbage);
}
