//! How much memory a guest has, by the kernel's count of the file that it is, from the first page on.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use plimsoll_units::Bytes;

use super::plan::LOOK_EVERY;
use crate::experiment::figures::number;

/// What `plimsoll run` calls a guest's memory.
const MEMORY: &str = "/memfd:plimsoll-ram (deleted)";
/// How often it is looked for before there is one.
const SEEK_EVERY: Duration = Duration::from_millis(2);

/// Milliseconds since the file was found, and bytes that exist of it.
pub(super) type Sample = (u64, u64);

/// Looks at a guest's memory on a thread of its own, until it is told to stop.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Seen>>>,
}

/// What was seen of a guest's memory.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// When it was found; before, no VMM had it.
    pub(super) since: Instant,
    pub(super) samples: Vec<Sample>,
}

impl Watch {
    /// Begins before the guest is there: its memory is looked for among what the processes of its control group have
    /// open, of which the keeper is the first and QEMU the second.
    pub(super) fn begin(group: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || follow(&group, &|| stopped.load(Ordering::Relaxed)));
        Self { stop, thread: Some(thread) }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the kernel did not tell, or no memory was found.
    pub(super) fn end(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("it has ended before"))?;
        let seen = thread.join().map_err(|_| anyhow!("the thread that looks at the memory panicked"))?;
        Ok(seen?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // What it saw is of no use any more.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn follow(group: &Path, stopped: &dyn Fn() -> bool) -> io::Result<Seen> {
    let memory = loop {
        if let Some(memory) = find(group) {
            break memory;
        }
        if stopped() {
            return Err(io::Error::other(format!("no process of {} had a guest's memory", group.display())));
        }
        std::thread::sleep(SEEK_EVERY);
    };
    sample(&memory, stopped)
}

/// The memory of the guest whose processes are in that group. It is opened and never mapped: who reads a hole through a
/// mapping puts memory there.
fn find(group: &Path) -> Option<File> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).ok()?;
    pids.lines().find_map(|pid| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let mut paths = entries.map(|entry| entry.path());
        let ours = paths.find(|path| fs::read_link(path).is_ok_and(|link| link.as_os_str() == MEMORY))?;
        File::open(ours).ok()
    })
}

fn sample(memory: &File, stopped: &dyn Fn() -> bool) -> io::Result<Seen> {
    let since = Instant::now();
    let (mut samples, mut due) = (Vec::new(), since);
    loop {
        // Once more when it is to end.
        let last = stopped();
        let resident = memory.metadata()?.blocks().saturating_mul(512);
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        samples.push((ms, resident));
        if last {
            return Ok(Seen { since, samples });
        }
        // A late look does not delay the next one.
        due += LOOK_EVERY;
        due = due.max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

impl Seen {
    /// The most that existed at once.
    pub(super) fn most(&self) -> Bytes {
        Bytes(self.samples.iter().map(|(_, resident)| *resident).max().unwrap_or(0))
    }

    /// What existed at the end.
    pub(super) fn last(&self) -> Bytes {
        Bytes(self.samples.last().map_or(0, |(_, resident)| *resident))
    }

    /// Looks in a second.
    pub(super) fn rate(&self) -> f64 {
        let ms = self.samples.last().map_or(0, |(ms, _)| *ms);
        let looks = u64::try_from(self.samples.len().saturating_sub(1)).unwrap_or(0);
        if ms == 0 { 0.0 } else { number(looks) * 1000.0 / number(ms) }
    }

    /// The longest time without a look, in milliseconds.
    pub(super) fn longest_gap_ms(&self) -> u64 {
        let ms = || self.samples.iter().map(|(ms, _)| *ms);
        ms().zip(ms().skip(1)).map(|(one, next)| next.saturating_sub(one)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::time::Instant;

    use plimsoll_testbed::guard::ShmDir;
    use plimsoll_units::Bytes;
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

    use super::{Seen, Watch, find};

    fn group_of(dir: &ShmDir, pid: u32) {
        let mut procs = std::fs::File::create(dir.path().join("cgroup.procs")).expect("makes");
        // A number that is nobody's is no reason to stop looking.
        writeln!(procs, "4194305\n{pid}").expect("writes");
    }

    #[test]
    fn a_memory_that_comes_later_is_found_and_followed() {
        let dir = ShmDir::create("watch").expect("a folder");
        let watch = Watch::begin(dir.path().to_owned());
        let memory = memfd_create("plimsoll-ram", MemfdFlags::CLOEXEC).expect("a file");
        rustix::fs::ftruncate(&memory, 8 << 20).expect("its size");
        assert!(find(dir.path()).is_none());
        group_of(&dir, std::process::id());
        assert!(find(dir.path()).is_some());
        fallocate(&memory, FallocateFlags::empty(), 0, 1 << 20).expect("memory");
        let seen = watch.end().expect("it was found");
        assert_eq!((seen.most(), seen.last()), (Bytes::mib(1), Bytes::mib(1)));
        assert!(!seen.samples.is_empty());
    }

    #[test]
    fn without_a_guest_there_is_nothing_to_be_seen() {
        let dir = ShmDir::create("watch").expect("a folder");
        let error = Watch::begin(dir.path().to_owned()).end().expect_err("nobody has memory").to_string();
        assert!(error.contains("no process of"), "{error}");
    }

    #[test]
    fn gaps_and_rates_are_of_the_times() {
        let seen =
            Seen { since: Instant::now(), samples: vec![(0, 4096), (50, 8192), (250, 0), (300, 4096)] };
        assert_eq!((seen.longest_gap_ms(), seen.most(), seen.last()), (200, Bytes(8192), Bytes(4096)));
        assert!((seen.rate() - 10.0).abs() < 1e-9);
        let nothing = Seen { samples: Vec::new(), ..seen };
        assert_eq!((nothing.longest_gap_ms(), nothing.most()), (0, Bytes::ZERO));
        assert!(nothing.rate().abs() < 1e-9);
    }
}
