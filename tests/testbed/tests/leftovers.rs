//! Whatever happens to a test, nothing of it remains.
//!
//! Each test starts this program anew as a child, which sets up one of everything and then ends in one of the ways
//! in which tests end.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plimsoll_testbed::guard::{ShmDir, TempSwap, TestCgroup, leftovers, run_id};
use plimsoll_testbed::guest::UmlSpec;
use plimsoll_testbed::images;
use plimsoll_testbed::skip::{unless_available, unless_root};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;
use rustix::process::{Pid, Signal, kill_process};

/// How the child shall end; set in its environment and nowhere else.
const ENDING: &str = "PLIMSOLL_TESTBED_ENDING";
const LIMIT: Duration = Duration::from_secs(60);

/// The child: one of everything, told of on standard output, then the end.
#[test]
fn child() {
    let Ok(ending) = std::env::var(ENDING) else { return };
    let dir = ShmDir::create("leftover").expect("makes");
    std::fs::write(dir.path().join("file"), "x").expect("writes");
    let swap = TempSwap::add(Bytes::mib(4)).expect("swaps");
    let cgroup = TestCgroup::create("leftover", Bytes::mib(256)).expect("makes");
    let mut spec = UmlSpec::new("leftover", Bytes::mib(64), images::uml().expect("was there"));
    spec.cgroup = Some(&cgroup);
    let guest = spec.boot().expect("boots");
    let found = leftovers(run_id());
    assert!(found.iter().any(|line| line.contains("linux.uml")), "{found:?}");
    for what in ["Dir(", "Cgroup(", "Swap("] {
        assert!(found.iter().any(|line| line.contains(what)), "{found:?}");
    }
    // Unbuffered: the parent waits for it.
    std::io::Write::write_all(&mut std::io::stdout(), format!("\nready {}\n", run_id()).as_bytes())
        .expect("writes");
    if ending == "panic" {
        panic!("as told");
    }
    // For a signal. The guest's own end ends it too, should none come.
    let _ = guest.wait_exit(LIMIT);
    drop((guest, cgroup, swap, dir));
}

struct Victim {
    child: Child,
    run: String,
}

impl Victim {
    /// A child with one of everything; `None` where that is not possible.
    fn start(test: &str, ending: &str) -> Option<Self> {
        unless_available(test, images::uml())?;
        unless_root(test)?;
        let mut child = Command::new(std::env::current_exe().expect("known"))
            .args(["child", "--exact", "--nocapture"])
            .env(ENDING, ending)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = output.lines().map_while(Result::ok);
        let run = lines.find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        Some(Self { child, run: run.expect("it gets ready") })
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("in range");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for its end, then for nothing to be left.
    fn end(mut self) -> std::process::ExitStatus {
        let status = self.child.wait().expect("ends");
        let look = || {
            let found = leftovers(&self.run);
            if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
        };
        poll_until(LIMIT, "nothing to be left", look).expect("everything is put back");
        status
    }
}

#[test]
fn after_a_panic_nothing_is_left() {
    let Some(victim) = Victim::start("after_a_panic_nothing_is_left", "panic") else { return };
    assert_eq!(victim.end().code(), Some(101));
}

#[test]
fn after_an_interrupt_nothing_is_left() {
    let Some(victim) = Victim::start("after_an_interrupt_nothing_is_left", "wait") else { return };
    victim.signal(Signal::INT);
    assert_eq!(victim.end().code(), Some(130));
}

#[test]
fn after_sigkill_nothing_is_left() {
    let Some(victim) = Victim::start("after_sigkill_nothing_is_left", "wait") else { return };
    victim.signal(Signal::KILL);
    assert_eq!(victim.end().signal(), Some(9));
}
