//! What a careful administrator's host does by itself, beside reporting: zswap within the host's memory, and
//! proactive reclaim where there is such a thing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_testbed::host::Meminfo;
use plimsoll_units::Bytes;

/// How often zswap's size is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// A change of less is not worth a write.
const STEP: Bytes = Bytes::mib(1);
/// How often memory is reclaimed.
const RECLAIM_EVERY: Duration = Duration::from_secs(1);
/// Stalls in that time above which reclaim rests: 0.1 % of it.
const CALM: Duration = Duration::from_millis(1);
/// The part of what is used that is reclaimed at a time.
const RECLAIM_PARTS: u64 = 200;

/// A thread that does it, until dropped.
pub(crate) struct Administrator {
    over: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Administrator {
    /// Begins.
    ///
    /// Version 1 of control groups does not charge zswap's memory to anybody. On the host that the group stands for
    /// it would be a part of the host's memory; so the group's limit is lowered by what zswap takes.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn begin(cgroup: &TestCgroup, limit: Bytes) -> Result<Self> {
        let (over, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let care = Care { cgroup: cgroup.handle(), limit, applied: limit, most: Arc::clone(&most) };
        let seen = Arc::clone(&over);
        let thread =
            std::thread::Builder::new().name("administrator".into()).spawn(move || care.go_on(&seen))?;
        Ok(Self { over, most, thread: Some(thread) })
    }

    /// The most memory that compressed swap took.
    pub(crate) fn most_zswap(&self) -> Bytes {
        Bytes(self.most.load(Ordering::Relaxed))
    }
}

impl Drop for Administrator {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It only reads and writes files of the kernel's; a panic in it is shown by the runtime.
            let _ = thread.join();
        }
    }
}

struct Care {
    cgroup: TestCgroup,
    limit: Bytes,
    applied: Bytes,
    most: Arc<AtomicU64>,
}

impl Care {
    fn go_on(mut self, over: &AtomicBool) {
        let mut stalled = Stalls::new(self.cgroup.path());
        let mut due = Instant::now() + RECLAIM_EVERY;
        while !over.load(Ordering::Acquire) {
            self.charge_zswap();
            if self.cgroup.can_reclaim() && Instant::now() >= due {
                due += RECLAIM_EVERY;
                let used = self.cgroup.usage().unwrap_or(Bytes::ZERO);
                if let Some(size) = to_reclaim(used, stalled.since_last()) {
                    // Finding less than was asked for is no fault.
                    let _ = self.cgroup.reclaim(size);
                }
            }
            std::thread::sleep(GLANCE);
        }
    }

    fn charge_zswap(&mut self) {
        let pool = Meminfo::read().map_or(Bytes::ZERO, |meminfo| meminfo.zswap);
        self.most.fetch_max(pool.0, Ordering::Relaxed);
        let wanted = self.limit.minus(pool);
        let change = wanted.minus(self.applied).plus(self.applied.minus(wanted));
        if self.cgroup.charges_zswap() || change < STEP {
            return;
        }
        // Lowering it makes the kernel reclaim; when it cannot reclaim enough now, the next glance asks again.
        if self.cgroup.set_limit(wanted).is_ok() {
            self.applied = wanted;
        }
    }
}

/// How much to take back, when the last second was calm.
fn to_reclaim(used: Bytes, stalled: Option<Duration>) -> Option<Bytes> {
    let size = used.scale(1, RECLAIM_PARTS);
    stalled.filter(|stalled| *stalled < CALM && size > Bytes::ZERO).map(|_| size)
}

/// Reads how long processes of the group stalled for want of memory.
struct Stalls {
    path: PathBuf,
    last: Option<u64>,
}

impl Stalls {
    fn new(cgroup: &Path) -> Self {
        Self { path: cgroup.join("memory.pressure"), last: None }
    }

    /// The time stalled since the last question; `None` the first time.
    fn since_last(&mut self) -> Option<Duration> {
        let now = total_us(&std::fs::read_to_string(&self.path).ok()?)?;
        let before = self.last.replace(now)?;
        Some(Duration::from_micros(now.saturating_sub(before)))
    }
}

/// `total=` of the line `some` (Linux's Documentation/accounting/psi.rst), in microseconds.
fn total_us(text: &str) -> Option<u64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use plimsoll_testbed::guard::ShmDir;
    use plimsoll_units::Bytes;

    use super::{Stalls, to_reclaim, total_us};

    #[test]
    fn memory_is_taken_back_while_nobody_stalls() {
        assert_eq!(to_reclaim(Bytes::mib(400), Some(Duration::ZERO)), Some(Bytes::mib(2)));
        assert_eq!(to_reclaim(Bytes::mib(400), Some(Duration::from_millis(1))), None);
        assert_eq!(to_reclaim(Bytes::mib(400), None), None);
        assert_eq!(to_reclaim(Bytes::ZERO, Some(Duration::ZERO)), None);
    }

    #[test]
    fn stalls_are_told_from_question_to_question() {
        let dir = ShmDir::create("stalls").expect("a directory");
        let mut stalls = Stalls::new(dir.path());
        assert_eq!(stalls.since_last(), None);
        let write = |total: u64| {
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull total=9\n");
            std::fs::write(dir.path().join("memory.pressure"), text).expect("writes");
        };
        write(1000);
        assert_eq!(stalls.since_last(), None);
        write(3500);
        assert_eq!(stalls.since_last(), Some(Duration::from_micros(2500)));
        assert_eq!(total_us("full total=3\n"), None);
    }
}
