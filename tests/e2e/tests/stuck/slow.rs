//! A guest that runs for a few milliseconds, a few times a second, while it is asked to give.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{park_timeout, scope};
use std::time::Duration;

use plimsoll_api::http::ListView;
use plimsoll_e2e::{Bed, Kind, Limit, NO_REPORTS, Watch, mib};
use plimsoll_model::Reason;
use plimsoll_units::Bytes;
use rustix::process::Pid;

use crate::kit::{Needy, Spec, Stopped, budget, config, of, start_with, tell};

const UML: [Spec; 2] = [("slow", Kind::Uml, (192, 256, 64)), ("needy", Kind::Uml, (96, 320, 64))];
/// It runs for so long, ...
const RUNS: Duration = Duration::from_millis(8);
/// ... and then does not.
const RESTS: Duration = Duration::from_millis(250);
/// Filled and freed beforehand, in MiB, so that there is something behind the pages it gives.
const TOUCHED: u64 = 128;
/// What it is to give, in MiB.
const GIVES: u64 = 96;
/// Enough for that at 2 MiB/s, and for being found stuck once because this machine is busy.
const IN_THE_END: Duration = Duration::from_secs(75);
/// At so many looks, a tenth of a second apart, it was seen to be behind: one that runs freely is at four or so.
const BEHIND: usize = 10;

/// Lets processes run as seldom as that until it is told that all is done.
fn slow_down(pids: &[Pid], done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let stopped = Stopped::all(pids.to_vec());
        park_timeout(RESTS);
        stopped.go_on();
        park_timeout(RUNS);
    }
}

/// Ends what waits for it, also when a test fails meanwhile.
struct Done<'d>(&'d AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_a_slow_guest_gives_is_granted_as_it_comes() {
    const NAME: &str = "what_a_slow_guest_gives_is_granted_as_it_comes";
    let budget = budget(&UML);
    let Some(bed) = Bed::journaled(NAME, &config(budget)) else { return };
    let Some(vms) = start_with(&bed, &UML, &["--append", NO_REPORTS]) else { return };
    let [slow, needy] = vms.as_slice() else { panic!("two VMs were expected") };
    let needy = Needy(needy);
    slow.send(&format!("fill {TOUCHED}M"));
    slow.send("free");
    let freed = slow.resident();
    assert!(freed >= mib(TOUCHED), "{freed}");
    let watch = Watch::begin(&bed, budget, &[slow, needy.0]);
    let (pids, done) = (Stopped::pids(slow), AtomicBool::new(false));
    scope(|scope| {
        scope.spawn(|| slow_down(&pids, &done));
        let _done = Done(&done);
        let arrived = |list: &ListView| {
            of(list, "slow").actual.0 <= mib(192 - GIVES) && of(list, "needy").actual.0 >= mib(96 + GIVES)
        };
        needy.until(IN_THE_END, "all that the slow one can give", arrived);
    });
    let (said, samples) = watch.end(Limit::Strict);
    let behind =
        samples.iter().map(|sample| of(&sample.list, "slow")).filter(|vm| vm.actual > vm.target).count();
    assert!(behind >= BEHIND, "it was behind at {behind} of {} looks only: not slow", samples.len());
    for tick in bed.ticks() {
        for verdict in tick.plan.verdicts {
            // Judged by rate, if at all: less than 1 MiB in a second.
            let Reason::Stuck { moved, window_ms, .. } = verdict.reason else { continue };
            assert!(moved < Bytes(window_ms * mib(1).0 / 1000), "{verdict:?}");
        }
    }
    slow.wait_resident("less by what it gave", |now| now <= freed.minus(mib(TOUCHED / 2)));
    needy.is_whole();
    tell(&format!("behind at {behind} looks; {said}"));
}
