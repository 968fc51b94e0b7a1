//! plimsolld killed while balloons move.

use std::time::Duration;

use plimsoll_api::http::{Life, ListView, VmView};
use plimsoll_e2e::{Bed, CALM, Kind, Lasting, PATIENCE, Vm, mib, sizes, snapshot};
use plimsoll_model::{VmId, VmState};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use crate::kit::{KILLS, OFTEN, Quiet, tell, verify};
use crate::probe::linger;

/// Longer than a tick: death comes at any place in it.
const LINGER: Duration = Duration::from_millis(300);

/// A guest that is moved, and how.
struct Moved<'b> {
    vm: Vm<'b>,
    quiet: Quiet,
    by_hold: bool,
    /// Its targets, in MiB, taken in turns.
    between: [u64; 2],
    state: VmState,
}

impl<'b> Moved<'b> {
    fn start(bed: &'b Bed, kind: Kind, name: &str, by_hold: bool, between: [u64; 2]) -> Option<Self> {
        let [one, first] = between;
        let (high, low) = (one.max(first), one.min(first));
        let vm = bed.run(kind, name, sizes(first, high + 32, 64), &[])?;
        vm.reaches(mib(first));
        vm.send("fill 24M 5");
        // Otherwise the arbiter would go down slowly.
        vm.wait("a need that the low target covers", PATIENCE, |view| {
            view.need.is_some_and(|need| need < mib(low))
        });
        let quiet = Quiet::from_now_on(&vm);
        let state = if by_hold { VmState::Held } else { VmState::Ok };
        Some(Self { vm, quiet, by_hold, between, state })
    }

    fn low(&self) -> u64 {
        self.between[0].min(self.between[1])
    }

    fn goal(&self, round: usize) -> Bytes {
        mib(self.between[round % 2])
    }

    #[track_caller]
    fn ask_for(&self, round: usize) {
        let (bed, name, goal) = (self.vm.bed, &self.vm.name, self.goal(round).to_string());
        if self.by_hold {
            bed.ok(&["hold", name, &goal]);
        } else {
            bed.ok(&["set", name, &format!("memory={goal}")]);
        }
    }
}

#[test]
fn a_daemon_killed_again_and_again_finds_its_vms_and_targets() {
    const NAME: &str = "a_daemon_killed_again_and_again_finds_its_vms_and_targets";
    let Some(bed) = Bed::new(NAME, &format!("{OFTEN}{CALM}")) else { return };
    let Some(set) = Moved::start(&bed, Kind::Uml, "set", false, [96, 176]) else { return };
    let Some(held) = Moved::start(&bed, Kind::Uml, "held", true, [176, 96]) else { return };
    let Some(qemu) = Moved::start(&bed, Kind::Qemu, "qemu", false, [192, 256]) else { return };
    let moved = [set, held, qemu];
    let first = ids(&bed.list());
    let mut in_motion = 0;
    for round in 0..KILLS {
        let loads = moved.each_ref().map(|moved| moved.vm.begin("touch 600"));
        moved.iter().for_each(|moved| moved.ask_for(round));
        linger(LINGER);
        let before = bed.list();
        bed.kill_daemon();
        bed.start_daemon();
        in_motion += before.vms.iter().filter(|vm| vm.actual != vm.target).count();
        finds(&bed.list(), &snapshot(&before), &first);
        for (moved, load) in moved.iter().zip(loads) {
            settles(moved, round);
            moved.vm.send("stop");
            let touched = moved.vm.finish(&load);
            assert!(touched.number("pages") > Some(0), "{}", touched.text());
            moved.quiet.check(&moved.vm);
        }
    }
    assert!(in_motion > 0, "no memory was on its way when the daemon was killed");
    for moved in &moved {
        verify(&moved.vm, mib(24).pages_floor().0);
        if let Some(backend) = moved.vm.view().backend {
            assert_eq!((backend.epoch, backend.generation), (1, 1), "{backend:?}");
        }
    }
    tell(&format!("{KILLS} daemons killed, {in_motion} balloons in motion at that"));
}

fn ids(list: &ListView) -> Vec<VmId> {
    list.vms.iter().map(|vm| vm.id).collect()
}

/// The first answer of a new daemon has the same VMs under the same numbers, with the same sizes, targets, pins and
/// processes.
#[track_caller]
fn finds(list: &ListView, before: &[Lasting], first: &[VmId]) {
    assert_eq!(snapshot(list), before);
    assert_eq!(ids(list), first);
}

/// The VM is as it was, and comes to where it was asked to go.
#[track_caller]
fn settles(moved: &Moved<'_>, round: usize) {
    let goal = moved.goal(round);
    let is = |view: &VmView| {
        assert_eq!(view.target.0, goal, "{view:#?}");
        let rests = view.actual.0 == goal && view.need.is_some_and(|need| need < mib(moved.low()));
        view.life == Life::Running && view.state == moved.state && rests
    };
    let look = || {
        let view = moved.vm.view();
        if is(&view) { Ok(()) } else { Err(format!("{view:#?}")) }
    };
    poll_until(PATIENCE, "the target to be reached", look).unwrap_or_else(|error| panic!("{error}"));
    let pin = moved.vm.view().hold.map(|pin| pin.0);
    assert_eq!(pin, moved.by_hold.then_some(goal));
}
