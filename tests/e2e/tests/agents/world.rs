//! A guest whose line is abused, one that must not notice, and one that needs memory meanwhile.

use std::io::Write;
use std::time::Duration;

use plimsoll_api::http::VmView;
use plimsoll_e2e::{Bed, Kind, Limit, PATIENCE, Vm, Watch, mib, sizes};
use plimsoll_model::{Source, VmState};
use plimsoll_units::Bytes;

use crate::inside::Inside;

/// Enough for everybody: nobody has to give for another.
const BUDGET: Bytes = mib(1024);
/// Idle guests go back to their baselines at once, so that the tests wait less.
const CONFIG: &str = "
[host]
budget = \"1G\"
low = \"1M\"
overhead-uml = \"16M\"
overhead-qemu = \"64M\"
[policy]
host-stall = \"100%\"
idle-share = \"100%\"
plenty-share = \"100%\"
";
/// The same settings that [`CONFIG`] leaves as they are: a tick a second, an agent is believed for three.
const TICK_MS: u64 = 1000;
const BELIEVED_MS: u64 = 3000;
/// What a tick may be late on a busy machine: it waits 200 ms at most for answers.
const LATE_MS: u64 = 700;

/// Memory, maxmem and floor of the guest whose line is abused, in MiB.
pub(crate) const SUSPECT: (u64, u64, u64) = (192, 256, 96);
/// The same of the one that must not notice.
const HONEST: (u64, u64, u64) = (128, 192, 64);
/// The same of the one that comes into need.
const NEEDY: (u64, u64, u64) = (96, 160, 64);
/// What that is left with when it does: less than the 12M at which it is in distress.
const LEFT: Bytes = mib(6);
/// What it is to be granted at least.
const SERVED: u64 = 24;

/// The three, watched over.
pub(crate) struct World<'v, 'b> {
    pub(crate) suspect: &'v Vm<'b>,
    pub(crate) inside: Inside<'v, 'b>,
    pub(crate) honest: &'v Vm<'b>,
    needy: &'v Vm<'b>,
    watch: Option<Watch<'b>>,
}

/// Starts the three, lets the agents of the first two be heard, and does `act` in this world. Afterwards everything that
/// was seen is checked: the honest guest noticed nothing, the suspect one was never believed longer than it may be, and
/// the books are right.
#[track_caller]
pub(crate) fn act(test: &str, kind: Kind, act: impl FnOnce(&World<'_, '_>)) {
    let Some(bed) = Bed::journaled(test, CONFIG) else { return };
    let launch =
        |name, kind, (memory, maxmem, floor)| bed.launch(kind, name, sizes(memory, maxmem, floor), &[]);
    let Some(suspect) = launch("suspect", kind, SUSPECT) else { return };
    let Some(honest) = launch("honest", Kind::Uml, HONEST) else { return };
    let Some(needy) = launch("needy", Kind::Uml, NEEDY) else { return };
    for (vm, (memory, ..)) in [(&suspect, SUSPECT), (&honest, HONEST), (&needy, NEEDY)] {
        vm.console.wait_ready(1, PATIENCE * 2).unwrap_or_else(|error| panic!("{}: {error}", vm.name));
        vm.reaches(mib(memory));
        vm.wait("statistics", PATIENCE, |view| view.source == Source::Device && view.need.is_some());
    }
    let mut world =
        World { suspect: &suspect, inside: Inside(&suspect), honest: &honest, needy: &needy, watch: None };
    world.inside.agent_is_heard();
    Inside(&honest).agent_is_heard();
    honest.reaches(mib(HONEST.0));
    world.watch = Some(Watch::begin(&bed, BUDGET, &[&suspect, &honest, &needy]));
    act(&world);
    world.end();
}

impl World<'_, '_> {
    /// The third guest comes into distress and is given what it needs, whatever the first one says meanwhile.
    #[track_caller]
    pub(crate) fn needy_is_served(&self) {
        let needy = self.needy;
        let near = mib(NEEDY.0 + 1);
        needy.wait("to be near its baseline", PATIENCE, |view| {
            view.target.0 <= near && view.actual == view.target
        });
        let size = needy.meminfo("available").minus(LEFT);
        needy.send(&format!("fill {}", size.0 & !0xfff));
        needy.wait("to be served", PATIENCE, |view| view.actual.0 >= mib(NEEDY.0 + SERVED));
        let verdict = needy.send("verify");
        assert_eq!(verdict.number("bad_pages"), Some(0), "{}", verdict.text());
        needy.send("free");
    }

    /// Waits until the first guest is judged by its balloon's statistics, and `explain` says so.
    #[track_caller]
    pub(crate) fn falls_back(&self) {
        // Whether it came soon enough is checked in the end, by the daemon's own time.
        let limit = Duration::from_millis(4 * BELIEVED_MS);
        self.suspect.wait("to be judged by its balloon", limit, |view| view.source == Source::Device);
        let text = self.suspect.bed.ok(&["explain", "suspect"]);
        assert!(text.contains("by its balloon's statistics"), "{text}");
        assert!(text.contains("no agent is heard"), "{text}");
    }

    #[track_caller]
    fn end(mut self) {
        let (bed, watch) = (self.suspect.bed, self.watch.take().expect("it is watched over"));
        let (said, samples) = watch.end(Limit::Strict);
        let mut heard = 0;
        for sample in &samples {
            for vm in &sample.list.vms {
                let within = vm.target.0 >= vm.sizes.floor() && vm.target.0 <= vm.sizes.maxmem();
                assert!(within, "{vm:#?}");
                if vm.name.as_str() == "honest" {
                    assert!(is_unmoved(vm), "{vm:#?}");
                    heard += usize::from(vm.source == Source::Agent);
                }
                // Its agent was never started.
                assert!(vm.name.as_str() != "needy" || vm.source != Source::Agent, "{vm:#?}");
            }
        }
        assert!(
            heard * 2 > samples.len(),
            "the honest agent was heard at {heard} of {} looks",
            samples.len()
        );
        is_believed_for_three_ticks(bed);
        assert_eq!(self.honest.bed.count("honest", "distressed"), 0);
        tell(&said);
    }
}

/// The honest guest as it should be seen. On a machine so busy that it is not heard for three seconds it may be seen as
/// one that is not heard; it keeps what it has even then.
fn is_unmoved(vm: &VmView) -> bool {
    let well = (vm.state, vm.source) == (VmState::Ok, Source::Agent);
    let late = vm.agent.is_none_or(|agent| agent.age_ms > BELIEVED_MS);
    let unheard = late && matches!(vm.state, VmState::Ok | VmState::Unreachable);
    (vm.target.0, vm.actual.0) == (mib(HONEST.0), mib(HONEST.0)) && (well || unheard)
}

/// At no tick was an agent believed that said what cannot be, or nothing for three seconds; and each time an agent was
/// not believed any more, that was found out by the third regular tick after its last good word.
#[track_caller]
fn is_believed_for_three_ticks(bed: &Bed) {
    let ticks = bed.ticks();
    let mut last_word = None;
    let mut before = ticks[0].snapshot.now;
    for tick in &ticks {
        // A daemon that this machine does not let run finds out when it runs again.
        let gap_ms =
            tick.snapshot.now.millis_since(std::mem::replace(&mut before, tick.snapshot.now)).max(TICK_MS);
        for (vm, verdict) in tick.snapshot.vms.iter().zip(&tick.plan.verdicts) {
            assert_eq!(vm.id, verdict.vm);
            if verdict.source == Source::Agent {
                let agent = vm.agent.unwrap_or_else(|| panic!("nobody was believed: {tick:#?}"));
                let age_ms = tick.snapshot.now.millis_since(agent.at);
                let total = agent.stats.total.unwrap_or(Bytes(u64::MAX));
                let possible =
                    total <= vm.sizes.maxmem() && agent.stats.available.is_some_and(|left| left <= total);
                assert!(possible && age_ms <= BELIEVED_MS, "{age_ms} ms old: {tick:#?}");
                if vm.name.as_str() == "suspect" {
                    last_word = Some(agent.at);
                }
            } else if vm.name.as_str() == "suspect"
                && let Some(at) = last_word.take()
            {
                let after_ms = tick.snapshot.now.millis_since(at);
                assert!(
                    after_ms <= BELIEVED_MS + gap_ms + LATE_MS,
                    "found out after {after_ms} ms: {tick:#?}"
                );
            }
        }
    }
}

/// Tells what was counted, past the test harness, which shows nothing of tests that pass.
pub(crate) fn tell(text: &str) {
    // Nobody is left to be told that it cannot be told.
    drop(writeln!(std::io::stderr(), "{text}"));
}
