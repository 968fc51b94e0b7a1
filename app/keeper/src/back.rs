//! The back end's process.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use plimsoll_vhost_user::handover::{Handover, Work};

use crate::args::Args;

/// The time in which deaths are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// The pause before the second start in a row; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(25);

/// A living back end, or one whose end has been asked for and not yet been seen.
#[derive(Debug)]
pub(crate) struct Back {
    child: Child,
    /// Becomes readable when the process has ended.
    handle: OwnedFd,
    /// Our end of its standard input. Open for as long as it shall live.
    input: UnixStream,
    /// Its end was asked for: not a death to be counted.
    dismissed: bool,
}

impl Back {
    /// Starts one. `ledger_frames` is what its memory was laid out for.
    pub(crate) fn start(args: &Args, ledger_frames: u32, handover: &Handover) -> anyhow::Result<Self> {
        let (input, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        handover.send(&input)?;
        let mut command = Command::new(&args.backend);
        command.env_clear();
        for name in ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let at_first = match handover.work {
            Work::Devices { .. } => ["--initial-balloon".to_owned(), args.initial_balloon.to_string()],
            Work::OnDemand { .. } => ["--target".to_owned(), args.target.unwrap_or_default().0.to_string()],
        };
        let mut child = command
            .args(["--name", &args.name, "--maxmem", &args.maxmem.0.to_string()])
            .args(at_first)
            .args(["--ledger-frames", &ledger_frames.to_string()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start the back end {}", args.backend.display()))?;
        match plimsoll_shm::process_handle(child.id()) {
            Ok(handle) => Ok(Self { child, handle, input, dismissed: false }),
            Err(error) => {
                // It has not been waited for, so the number is still its own.
                let _ = child.kill();
                let _ = child.wait();
                Err(error).context("cannot watch the back end")
            }
        }
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Our end of its standard input, on which it speaks too.
    pub(crate) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, for no fault of its own.
    pub(crate) fn dismiss(&mut self) {
        self.dismissed = true;
        self.kill();
    }

    pub(crate) fn is_dismissed(&self) -> bool {
        self.dismissed
    }

    /// Kills it. That it has ended is seen on its handle.
    pub(crate) fn kill(&mut self) {
        // It cannot have been waited for yet, so this hits no other process; that it has ended is no error.
        let _ = self.child.kill();
    }

    /// It has ended: how.
    pub(crate) fn reap(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "still running".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.kill();
        let deadline = Instant::now() + Duration::from_secs(5);
        let wait = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(&self.handle, rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&wait));
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            tracing::error!(pid = self.pid(), late = ?deadline.elapsed(), "the killed back end has not ended");
        }
    }
}

/// The back ends that died lately.
#[derive(Debug)]
pub(crate) struct Deaths {
    times: VecDeque<Instant>,
    limit: usize,
    rest: Duration,
}

/// What is to be done after a death.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Start another at this moment.
    At(Instant),
    /// Too many in a row: start none before this moment.
    Rest(Instant),
}

impl Deaths {
    /// After so many within [`WINDOW`] there is to be a rest. Never for ever: somebody has to answer in the end.
    pub(crate) fn new(limit: u32, rest: Duration) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).max(1);
        Self { times: VecDeque::new(), limit, rest }
    }

    /// They do not count any more.
    pub(crate) fn forget(&mut self) {
        self.times.clear();
    }

    /// One has died.
    pub(crate) fn count(&mut self, now: Instant) -> Next {
        while self.times.front().is_some_and(|first| now.duration_since(*first) >= WINDOW) {
            self.times.pop_front();
        }
        self.times.push_back(now);
        if self.times.len() >= self.limit {
            return Next::Rest(now + self.rest);
        }
        // The first death in a while is answered at once, the second after a pause.
        let again = u32::try_from(self.times.len()).unwrap_or(u32::MAX).saturating_sub(1);
        let pause = if again == 0 { Duration::ZERO } else { PAUSE * (1 << (again - 1).min(5)) };
        Next::At(now + pause)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const REST: Duration = Duration::from_secs(7);

    #[test]
    fn deaths_in_a_row_are_answered_slower_and_slower() {
        let start = Instant::now();
        let mut deaths = Deaths::new(5, REST);
        let pauses: Vec<_> = (0..5).map(|_| deaths.count(start)).collect();
        let after = |ms| Next::At(start + Duration::from_millis(ms));
        assert_eq!(pauses, [after(0), after(25), after(50), after(100), Next::Rest(start + REST)]);

        let mut deaths = Deaths::new(5, REST);
        for second in 0..100 {
            let now = start + Duration::from_secs(3 * second);
            assert!(matches!(deaths.count(now), Next::At(_)), "one every three seconds may go on");
        }
        assert_eq!(Deaths::new(0, REST).count(start), Next::Rest(start + REST));
        let mut patient = Deaths::new(u32::MAX, REST);
        (0..1000).for_each(|_| assert!(matches!(patient.count(start), Next::At(_))));
    }
}
