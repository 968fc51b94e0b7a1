//! What the console's thread may do to the command that runs: stop it, and see how it goes.

use std::collections::VecDeque;
use std::io::Write;
use std::process::ChildStdin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many seconds `stats` looks back.
const SECONDS: usize = 60;

/// Shared by the console's thread and the runner.
#[derive(Default)]
pub(crate) struct Link {
    cancelled: AtomicBool,
    input: Mutex<Option<ChildStdin>>,
    ticks: Mutex<VecDeque<u64>>,
}

impl Link {
    /// A new command begins.
    pub(crate) fn begin(&self) {
        self.cancelled.store(false, Ordering::Relaxed);
        lock(&self.ticks).clear();
    }

    /// Ends the running command early.
    pub(crate) fn stop(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // A worker that is gone has nothing to stop.
        drop(self.send("stop"));
    }

    /// Whether the running command was told to stop.
    pub(crate) fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Connects a new worker, or none.
    pub(crate) fn connect(&self, input: Option<ChildStdin>) {
        *lock(&self.input) = input;
    }

    /// Sends the worker a line.
    pub(crate) fn send(&self, line: &str) -> std::io::Result<()> {
        match lock(&self.input).as_mut() {
            Some(input) => input.write_all(format!("{line}\n").as_bytes()),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }

    /// Notes what was done in a second.
    pub(crate) fn tick(&self, count: u64) {
        let mut ticks = lock(&self.ticks);
        if ticks.len() == SECONDS {
            ticks.pop_front();
        }
        ticks.push_back(count);
    }

    /// What was done in each of the last seconds, oldest first.
    pub(crate) fn stats(&self) -> String {
        let ticks = lock(&self.ticks);
        let counts = ticks.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!("ok seconds={} counts={counts}", ticks.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod test {
    use super::{Link, SECONDS};

    #[test]
    fn stats_look_back_a_minute() {
        let link = Link::default();
        for count in 0..100 {
            link.tick(count);
        }
        let stats = link.stats();
        assert!(stats.starts_with(&format!("ok seconds={SECONDS} counts=40,41,")), "{stats}");
        link.begin();
        assert_eq!(link.stats(), "ok seconds=0 counts=");
    }

    #[test]
    fn stop_without_a_worker_is_noted() {
        let link = Link::default();
        link.stop();
        assert!(link.cancelled());
        link.begin();
        assert!(!link.cancelled());
    }
}
