//! What several of these tests need.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll_api::http::VmView;
use plimsoll_e2e::{PATIENCE, Vm};
use rustix::process::{Pid, Signal, kill_process};

/// How often each kind of process is killed.
pub(crate) const KILLS: usize = 20;

/// Configuration before all sections: a daemon that looks often, so that the tests wait less for it.
pub(crate) const OFTEN: &str = "tick = \"200ms\"\n";

/// SIGKILL to one process and nothing of its group.
#[track_caller]
pub(crate) fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap_or_else(|error| panic!("cannot kill {pid:?}: {error}"));
}

/// A number from 0 to 1, the same ones in each run of a test (splitmix64).
pub(crate) fn random() -> f64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    let mut z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from(u32::try_from(z >> 32).expect("32 bits")) / f64::from(u32::MAX)
}

/// Waits until the daemon hears from the back end that came after so many kills, and statistics from the guest.
#[track_caller]
pub(crate) fn is_seen_again(vm: &Vm<'_>, kills: u64) -> VmView {
    let is = |view: &VmView| {
        let start = view.backend.map(|backend| (backend.epoch, backend.generation));
        start == Some((1 + kills, 1)) && view.stats_age_ms.is_some_and(|age| age < 3000)
    };
    vm.wait("the latest back end and fresh statistics", PATIENCE, is)
}

/// Tells what was counted, past the test harness, which shows nothing of tests that pass.
pub(crate) fn tell(text: &str) {
    // Nobody is left to be told that it cannot be told.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Checks every byte the guest holds: at least so many pages, and none of them wrong.
#[track_caller]
pub(crate) fn verify(vm: &Vm<'_>, least_pages: u64) {
    let verdict = vm.send("verify");
    assert!(verdict.number("pages") >= Some(least_pages.max(1)), "{}: {}", vm.name, verdict.text());
    assert_eq!(verdict.number("bad_pages"), Some(0), "{}: {}", vm.name, verdict.text());
}

/// A console on which, from now on, nobody but the workload is heard: the kernel is told to print warnings and worse only.
pub(crate) struct Quiet(usize);

impl Quiet {
    #[track_caller]
    pub(crate) fn from_now_on(vm: &Vm<'_>) -> Self {
        Self(vm.console.text().expect("its console can be read").len())
    }

    #[track_caller]
    pub(crate) fn check(&self, vm: &Vm<'_>) {
        let text = vm.console.text().expect("its console can be read");
        let noise = |line: &&str| {
            let kernels = line.split("@plimsoll ").next().unwrap_or_default();
            !kernels.trim().is_empty()
        };
        let heard: Vec<_> = text[self.0..].lines().filter(noise).collect();
        assert!(heard.is_empty(), "{} noticed something: {heard:#?}", vm.name);
    }
}
