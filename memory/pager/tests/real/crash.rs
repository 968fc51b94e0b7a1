//! Pagers that are killed at any instant, while the guest goes on.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll_frames::Ledger;
use plimsoll_pager::{Config, Pager, Parts};
use plimsoll_shm::SharedWords;
use plimsoll_uffd::{HostRange, HugePages, Uffd};
use plimsoll_units::PAGES_PER_FRAME;
use rustix::io::FdFlags;

use crate::fixture::{Dice, Guest, PATIENCE, target};
use crate::memory::inherited;
use crate::race::Actors;

/// Tells this program that it is the pager's process, and what it works with.
const PARTS: &str = "PLIMSOLL_TEST_PAGER";
/// What the pager says when it serves.
const SERVING: &str = "serving";
/// How often it is killed.
const KILLS: u64 = 20;

/// Not a test: the pager of the test below, in a process of its own. Sweeps all the time.
#[test]
#[ignore = "the other process of a test"]
fn pager_process() {
    let Ok(parts) = std::env::var(PARTS) else { return };
    let [memory, uffd, words, start, len] = parts.split(',').collect::<Vec<_>>()[..] else {
        panic!("{parts}")
    };
    let words = SharedWords::attach_all(inherited(words)).unwrap();
    let (ledger, _) = Ledger::attach(words).unwrap();
    let range = HostRange::new(start.parse().unwrap(), len.parse().unwrap()).unwrap();
    let uffd = Uffd::from(inherited(uffd));
    let parts = Parts { memory: inherited(memory), uffd, range, ledger, hints: None };
    let pager = Pager::start(parts, &Config::new(HugePages::Never), drop).unwrap();
    say(SERVING);
    loop {
        pager.sweep(PATIENCE).expect("a sweep ends");
    }
}

fn say(line: &str) {
    rustix::io::write(std::io::stdout(), format!("{line}\n").as_bytes()).unwrap();
}

/// A pager's process.
struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    fn start(guest: &Guest) -> Self {
        let passed = [passed(&guest.memory), passed(&guest.uffd), passed(&guest.words_fd)];
        let numbers: Vec<_> = passed.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let parts = format!("{},{},{}", numbers.join(","), guest.range().start(), guest.range().len());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::pager_process", "--exact", "--ignored", "--nocapture"])
            .env(PARTS, parts)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Waits until it serves.
    fn serves(&mut self) {
        let mut line = String::new();
        while line.trim_end() != SERVING {
            line.clear();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "the pager has ended by itself");
        }
    }

    /// Kills it; not even a thread of it is there afterwards.
    fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.code().is_none(), "the pager has ended by itself: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already if the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy that a child inherits.
fn passed(fd: impl AsFd) -> OwnedFd {
    let copy = fd.as_fd().try_clone_to_owned().unwrap();
    rustix::io::fcntl_setfd(&copy, FdFlags::empty()).unwrap();
    copy
}

#[test]
fn a_pager_may_be_killed_at_any_instant() {
    let Some(guest) = Guest::new("a_pager_may_be_killed_at_any_instant", 24) else { return };
    let limit = 12 * PAGES_PER_FRAME;
    guest.served(12).stop();
    let watcher = guest.watched(limit);
    let mut process = Process::start(&guest);
    process.serves();
    let actors = Actors::start(&guest, 3, 6 * PAGES_PER_FRAME, 5);
    let mut dice = Dice(11);
    for _ in 0..KILLS {
        actors.do_more(dice.below(100));
        let end = Instant::now() + Duration::from_millis(dice.below(100));
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        process.kill();
        process = Process::start(&guest);
        // Sometimes it is killed again before it serves.
        if dice.below(4) == 0 {
            process.kill();
            process = Process::start(&guest);
        }
        process.serves();
    }
    actors.do_more(1000);
    actors.end();
    process.kill();
    assert!(watcher.end() <= limit);
    let served = guest.served(12);
    assert_eq!(served.set_target(target(limit)).limit().0, limit);
    let status = served.status();
    assert!(status.totals.swept_pages > 0 && status.totals.populated_frames > 12, "{status:?}");
    served.agree();
}
