//! A hold on a process: its number cannot come to mean another.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{ProcError, ProcessId, Procfs};

/// A descriptor of a process (pidfd_open(2)). Readable once the process has ended, so it can be waited for with
/// poll, epoll or tokio's `AsyncFd`.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
    process: ProcessId,
}

impl Pidfd {
    /// Takes hold of `process`; [`ProcError::NoProcess`] if it has ended or its number belongs to another by now.
    pub fn open(proc: &mut Procfs, process: ProcessId) -> Result<Self, ProcError> {
        let pid = process.pid;
        let gone = || ProcError::NoProcess { pid };
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let fd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Err(gone()),
            Err(err) => return Err(ProcError::Pidfd { what: "take hold of", pid, source: err.into() }),
        };
        // Checked after opening: from here on the descriptor stays with whom it names.
        if proc.is_alive(process)? { Ok(Self { fd, process }) } else { Err(gone()) }
    }

    /// Which process.
    #[must_use]
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    /// Whether it has ended.
    pub fn has_exited(&self) -> Result<bool, ProcError> {
        self.wait(Duration::ZERO)
    }

    /// Waits until it has ended, at most `within`; whether it has.
    pub fn wait(&self, within: Duration) -> Result<bool, ProcError> {
        let failed = |source: io::Error| ProcError::Pidfd { what: "wait for", pid: self.process.pid, source };
        let begun = std::time::Instant::now();
        loop {
            let left = within.saturating_sub(begun.elapsed());
            let timeout = Timespec::try_from(left).map_err(|err| failed(io::Error::other(err)))?;
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(n) => return Ok(n > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(failed(err.into())),
            }
        }
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) -> Result<(), ProcError> {
        self.send(Signal::TERM, "terminate")
    }

    /// Ends it (SIGKILL).
    pub fn kill(&self) -> Result<(), ProcError> {
        self.send(Signal::KILL, "kill")
    }

    fn send(&self, signal: Signal, what: &'static str) -> Result<(), ProcError> {
        let pid = self.process.pid;
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err(ProcError::NoProcess { pid }),
            Err(err) => Err(ProcError::Pidfd { what, pid, source: err.into() }),
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
