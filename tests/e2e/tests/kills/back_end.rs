//! Back ends killed while balloons move.

use plimsoll_api::control::Status;
use plimsoll_e2e::{Bed, CALM, Kind, NO_REPORTS, PATIENCE, Vm, mib, sizes};
use plimsoll_model::VmState;
use plimsoll_testbed::guest::Pending;
use plimsoll_units::Bytes;

use crate::kit::{KILLS, OFTEN, Quiet, is_seen_again, tell, verify};
use crate::probe::{Probe, linger};

const MAXMEM: u64 = 224;
/// Between these targets the balloons move, in MiB.
const LOW: u64 = 112;
const HIGH: u64 = 208;
/// Filled with a pattern and held, in MiB.
const HELD: u64 = 16;
/// Filled and freed at the high target, so that there is memory behind what the balloon takes.
const PASSING: u64 = 80;
/// Allocated, checked and freed while the balloon moves. The balloon leaves room for it.
const LOAD: &str = "churn 600 12M";
/// For the kernel of a guest that reports free pages as well: no lines but warnings and worse.
const REPORTS: &str = "loglevel=5";
/// A back end is killed this long after its balloon was seen to move, at most.
const LINGER: std::time::Duration = std::time::Duration::from_millis(40);
/// Kills that came too late may be tried again as often.
const MISSES: usize = KILLS;

/// A guest whose balloon is moved up and down.
struct Mover<'b> {
    vm: Vm<'b>,
    probe: Probe,
    quiet: Quiet,
    load: Option<Pending>,
    /// By `hold`, else by `set memory=`.
    by_hold: bool,
    is_low: bool,
    inflating: Tally,
    deflating: Tally,
    all_pages: u64,
    kills: u64,
    /// Pages that the back end had moved when it was killed last.
    moved: u64,
}

/// Kills in the middle of something, and kills that were not.
#[derive(Default)]
struct Tally {
    hits: usize,
    misses: usize,
}

impl<'b> Mover<'b> {
    fn start(bed: &'b Bed, name: &str, by_hold: bool, append: &str) -> Option<Self> {
        let vm = bed.run(Kind::Uml, name, sizes(HIGH, MAXMEM, 64), &["--append", append])?;
        vm.reaches(mib(HIGH));
        vm.send(&format!("fill {HELD}M 5"));
        let probe = Probe::new(&vm);
        let all_pages = all_pages(&probe.status());
        let quiet = Quiet::from_now_on(&vm);
        let (inflating, deflating) = (Tally::default(), Tally::default());
        let mut mover = Self {
            vm,
            probe,
            quiet,
            load: None,
            by_hold,
            is_low: false,
            inflating,
            deflating,
            all_pages,
            kills: 0,
            moved: 0,
        };
        mover.go_on();
        mover.is_ready();
        Some(mover)
    }

    /// Ends the load: nothing it held was lost, nor anything that was held all the time.
    #[track_caller]
    fn pause(&mut self) {
        let Some(load) = self.load.take() else { return };
        self.vm.send("stop");
        let churned = self.vm.finish(&load);
        assert_eq!(churned.number("bad_pages"), Some(0), "{}", churned.text());
        assert!(churned.number("blocks") > Some(0), "{}", churned.text());
        verify(&self.vm, mib(HELD).pages_floor().0);
        self.quiet.check(&self.vm);
    }

    /// Puts memory behind what the next inflation takes, and begins the load.
    fn go_on(&mut self) {
        if !self.is_low {
            self.vm.send(&format!("fill {PASSING}M"));
            self.vm.send(&format!("free {PASSING}M"));
        }
        self.load = Some(self.vm.begin(LOAD));
    }

    #[track_caller]
    fn is_ready(&self) {
        // Otherwise the arbiter would take what was filled a moment ago for needed, and go down slowly.
        self.vm.wait("a need that the low target covers", PATIENCE, |view| {
            view.need.is_some_and(|need| need < mib(LOW))
        });
    }

    /// Asks for the other target and kills the back end on the way there.
    #[track_caller]
    fn killed_on_the_way(&mut self) {
        let goal = mib(if self.is_low { HIGH } else { LOW });
        self.probe.wait_for_grace();
        let at_rest = self.probe.status();
        self.ask_for(goal);
        let moves = |status: &Status| target(status) == goal && status.actual != at_rest.actual;
        let before = self.probe.wait("the balloon to move", moves);
        linger(LINGER);
        let before = self.probe.try_status().unwrap_or(before);
        self.probe.kill(&before);
        self.kills += 1;
        self.is_low = !self.is_low;
        self.moved = self.counter(&before).saturating_sub(self.counter(&at_rest));
    }

    /// The balloon comes to where it was asked to, all the same.
    #[track_caller]
    fn arrives(&mut self) {
        let goal = mib(if self.is_low { LOW } else { HIGH });
        let view = self.vm.reaches(goal);
        assert_eq!(view.hold.map(|pin| pin.0), self.by_hold.then_some(goal), "{view:#?}");
        assert_eq!(view.state == VmState::Held, self.by_hold, "{view:#?}");
        let after = self.probe.status();
        // The counters begin anew with each back end: both of them moved pages, so death came in between.
        let hit = self.moved > 0 && self.counter(&after) > 0;
        let tally = if self.is_low { &mut self.inflating } else { &mut self.deflating };
        if hit {
            tally.hits += 1
        } else {
            tally.misses += 1
        }
        assert!(tally.misses <= MISSES, "the back end is never hit in the middle: {after:#?}");
        self.agrees(&after);
    }

    /// Pages a back end has moved in the direction of the latest target.
    fn counter(&self, status: &Status) -> u64 {
        if self.is_low { status.counters.inflated_pages } else { status.counters.deflated_pages }
    }

    fn ask_for(&self, goal: Bytes) {
        if self.by_hold {
            self.vm.bed.ok(&["hold", &self.vm.name, &goal.to_string()]);
        } else {
            self.vm.bed.ok(&["set", &self.vm.name, &format!("memory={goal}")]);
        }
    }

    /// At rest the back end, its ledger, the guest and the host all say the same.
    #[track_caller]
    fn agrees(&mut self, status: &Status) {
        assert_eq!(status.epoch, 1 + self.kills, "{status:#?}");
        assert_eq!(status.actual, status.num_pages, "{status:#?}");
        assert_eq!(status.ledger.ballooned, status.actual.0, "{status:#?}");
        assert_eq!(all_pages(status), self.all_pages, "{status:#?}");
        assert_eq!((status.counters.bad_pages, status.counters.discard_errors), (0, 0), "{status:#?}");
        let own = self.vm.send("balloon");
        let [inflated, deflated] = ["inflate", "deflate"].map(|key| own.number(key).expect("a count"));
        assert_eq!(inflated - deflated, status.actual.0.0, "{} {status:#?}", own.text());
        let left = target(status);
        let what = format!("between what is held and the {left} left to it");
        self.vm.wait_resident(&what, |now| now >= mib(HELD) && now <= left);
    }
}

/// What the guest is left by the balloon that is asked for.
fn target(status: &Status) -> Bytes {
    mib(MAXMEM).minus(status.num_pages.0.bytes())
}

fn all_pages(status: &Status) -> u64 {
    let ledger = status.ledger;
    ledger.present.0 + ledger.ballooned.0 + ledger.reported.0
}

#[test]
fn back_ends_killed_while_balloons_move_are_not_missed() {
    const NAME: &str = "back_ends_killed_while_balloons_move_are_not_missed";
    let Some(bed) = Bed::new(NAME, &format!("{OFTEN}{CALM}")) else { return };
    let Some(set) = Mover::start(&bed, "set", false, NO_REPORTS) else { return };
    let Some(held) = Mover::start(&bed, "held", true, REPORTS) else { return };
    let mut movers = [set, held];
    movers[1].killed_on_the_way();
    movers[1].arrives();
    let done = |movers: &[Mover<'_>; 2]| {
        let [one, other] = movers;
        one.inflating.hits + other.inflating.hits >= KILLS
            && one.deflating.hits + other.deflating.hits >= KILLS
    };
    while !done(&movers) {
        movers.iter_mut().for_each(Mover::pause);
        movers.iter_mut().for_each(Mover::go_on);
        movers.iter().for_each(Mover::is_ready);
        movers.iter_mut().for_each(Mover::killed_on_the_way);
        movers.iter_mut().for_each(Mover::arrives);
    }
    for mover in &mut movers {
        mover.pause();
        ends(mover);
    }
}

/// The whole chain still works, and was told of every kill.
fn ends(mover: &Mover<'_>) {
    let Mover { vm, kills, .. } = mover;
    is_seen_again(vm, *kills);
    let told = vm.bed.count(&vm.name, "backend-restarted");
    assert!(told > 0 && u64::try_from(told).is_ok_and(|told| told <= *kills), "{told} of {kills}");
    assert_eq!(vm.bed.count(&vm.name, "rebooted"), 0, "{:#?}", vm.bed.events(Some(&vm.name)));
    tell(&format!(
        "{}: {kills} back ends killed, {} in the middle of an inflation, {} of a deflation, {} at rest",
        vm.name,
        mover.inflating.hits,
        mover.deflating.hits,
        mover.inflating.misses + mover.deflating.misses
    ));
}
