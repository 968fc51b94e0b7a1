//! Back ends killed in the middle of a report of free pages.

use std::time::{Duration, Instant};

use plimsoll_e2e::{Bed, CALM, Kind, PATIENCE, Vm, mib, sizes};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use crate::kit::{KILLS, OFTEN, Quiet, is_seen_again, tell, verify};
use crate::probe::{Probe, linger};

/// All of maxmem: there is nothing to inflate.
const MEMORY: u64 = 320;
/// Filled with a pattern and held, in MiB.
const HELD: u64 = 24;
/// Filled and freed again and again, in MiB: one report of Linux', 32 blocks of 4 MiB, and more.
const PASSING: u64 = 96;
/// The kernel reports whole blocks of 4 MiB in User Mode Linux. A processor keeps hundreds of freed pages on lists of
/// its own, each of which holds its block back, unless it is told to keep fewer
/// (Documentation/admin-guide/sysctl/vm.rst).
const APPEND: &str = "loglevel=5 sysctl.vm.percpu_pagelist_high_fraction=65536";
/// The host's count falls by at least so much when a report has begun.
const BEGUN: Bytes = mib(2);
/// A back end is killed this long after a report was seen to begin, at most: it takes 20 ms and more.
const LINGER: Duration = Duration::from_millis(8);
/// What was under way when a back end was killed is done by its successor in less.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Kills that came too late may be tried again as often.
const MISSES: usize = KILLS;
/// What the guest keeps of what it freed, or the kernel uses for itself.
const KEPT: u64 = 32;

#[test]
fn back_ends_killed_while_guests_report_free_pages_are_not_missed() {
    const NAME: &str = "back_ends_killed_while_guests_report_free_pages_are_not_missed";
    let Some(bed) = Bed::new(NAME, &format!("{OFTEN}{CALM}")) else { return };
    let args = ["--append", APPEND];
    let Some(vm) = bed.run(Kind::Uml, "web", sizes(MEMORY, MEMORY, 128), &args) else { return };
    vm.reaches(mib(MEMORY));
    vm.send(&format!("fill {HELD}M 5"));
    let before = vm.wait_resident("settled after the boot", |now| now < mib(160));
    let (mut probe, quiet) = (Probe::new(&vm), Quiet::from_now_on(&vm));
    let (mut hits, mut misses) = (0, 0);
    while hits < KILLS {
        if killed_in_a_report(&vm, &mut probe) {
            hits += 1;
        } else {
            misses += 1;
        }
        assert!(misses <= MISSES, "the back end is never hit in the middle of a report");
        quiet.check(&vm);
    }
    let kills = u64::try_from(hits + misses).expect("few");
    let what = format!("near {before} again");
    vm.wait_resident(&what, |now| now <= before.plus(mib(KEPT)));
    verify(&vm, mib(HELD).pages_floor().0);
    let view = is_seen_again(&vm, kills);
    let backend = view.backend.expect("it has a back end");
    assert_eq!((view.actual.0, view.target.0), (mib(MEMORY), mib(MEMORY)), "{view:#?}");
    assert_eq!((backend.counters.inflated_pages, backend.ledger.ballooned.0), (0, 0), "{view:#?}");
    assert_eq!((backend.counters.bad_pages, backend.counters.discard_errors), (0, 0), "{view:#?}");
    assert_eq!(vm.send("balloon").number("inflate"), Some(0));
    tell(&format!("{kills} back ends killed, {hits} in the middle of a report"));
}

/// Kills the back end as the host's own count begins to fall; whether a report was under way then. Nothing is lost of
/// what the guest holds and uses meanwhile.
#[track_caller]
fn killed_in_a_report(vm: &Vm<'_>, probe: &mut Probe) -> bool {
    probe.wait_for_grace();
    let before = probe.status();
    let load = vm.begin(&format!("script fill {PASSING}M;free {PASSING}M;touch 600"));
    falls(vm);
    linger(LINGER);
    // Not asked at this moment: it would answer when the report is done.
    probe.kill(&before);
    // Linux waits two seconds between reports: what the successor does at once, its predecessor had begun.
    let again = || match probe.try_status() {
        Some(status) if status.counters.reported_pages > 0 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    let hit = poll_until(AT_ONCE, "the report to be taken up", again).is_ok();
    vm.send("stop");
    let done = vm.finish(&load);
    assert_eq!((done.number("steps"), done.number("failed")), (Some(3), Some(0)), "{}", done.text());
    verify(vm, mib(HELD).pages_floor().0);
    hit
}

/// Waits until the host's count of the guest's memory falls from the highest that was seen.
#[track_caller]
fn falls(vm: &Vm<'_>) {
    let begin = Instant::now();
    let mut highest = Bytes::ZERO;
    loop {
        let now = vm.resident();
        highest = highest.max(now);
        if now.plus(BEGUN) <= highest {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "no report came: {highest} at most, {now} now");
        // A report is over in less time than a pause would take.
        std::hint::spin_loop();
    }
}
