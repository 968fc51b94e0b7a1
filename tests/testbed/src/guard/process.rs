//! Child processes that do not outlive the test.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::marked::RUN_VARIABLE;
use super::{Deed, Undo, run_id};
use crate::BedError;
use crate::wait::poll_until;

/// How long a killed process may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// A child in a process group of its own. Dropped, the whole group is killed and the child waited for.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    child: Child,
    undo: Option<Undo>,
}

impl Process {
    /// Starts `command`. For one that begins inside a control group see [`super::TestCgroup::command`].
    ///
    /// # Errors
    /// [`BedError::Io`] naming the program when it cannot be started.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self, BedError> {
        let program = command.get_program().to_owned();
        if !command.get_envs().any(|(name, _)| name == RUN_VARIABLE) {
            command.env(RUN_VARIABLE, run_id());
        }
        command.process_group(0);
        let started = command.spawn();
        // What was handed to the child is its own: a pipe's other end must not stay open here.
        drop(command);
        let mut child = started.map_err(BedError::io("run", &program))?;
        let guarded = pid_of(&child).and_then(|pid| Ok((pid, Undo::register(Deed::Group(pid))?)));
        match guarded {
            Ok((pid, undo)) => Ok(Self { name: name.to_owned(), pid, child, undo: Some(undo) }),
            Err(error) => {
                // Neither can fail in a way that matters: the child is ours and unwaited.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Its process id, which is also that of its group.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it ends by itself. What remains of its group is killed then.
    ///
    /// # Errors
    /// [`BedError::Wait`] when it still runs after `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus, BedError> {
        let what = format!("{} (pid {}) to exit", self.name, self.pid.as_raw_nonzero());
        let child = &mut self.child;
        let status = poll_until(limit, &what, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        self.undo = None;
        Ok(status)
    }

    /// Sends the child alone a signal.
    ///
    /// # Errors
    /// [`BedError::Io`] when it is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), BedError> {
        kill_process(self.pid, signal)
            .map_err(|error| BedError::io("signal", &self.name)(io::Error::from(error)))
    }

    /// SIGKILL to the whole group, and waits for the child's end.
    ///
    /// # Errors
    /// [`BedError::Wait`] when it does not end, which only a process stuck in the kernel does.
    pub fn kill(&mut self) -> Result<ExitStatus, BedError> {
        self.undo = None;
        self.wait_exit(DEATH_LIMIT)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error would be a process stuck in the kernel, which nobody can help.
        let _ = self.kill();
    }
}

fn pid_of(child: &Child) -> Result<Pid, BedError> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| BedError::Unsupported(format!("process id {} is out of range", child.id())))
}

#[cfg(test)]
mod test {
    use std::process::Command;
    use std::time::Duration;

    use super::Process;
    use crate::guard::{leftovers, run_id};
    use crate::wait::poll_until;

    #[test]
    fn a_dropped_process_takes_its_group_along() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & exec sleep 600"]);
        let process = Process::spawn("sleepers", command).expect("starts");
        let two = || {
            let found = leftovers(run_id());
            if found.iter().filter(|line| line.contains("sleep 600")).count() == 2 {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        };
        poll_until(Duration::from_secs(10), "two sleepers", two).expect("both run");
        drop(process);
        let none = || {
            let found = leftovers(run_id());
            if found.iter().any(|line| line.contains("sleep 600")) {
                Err(format!("{found:?}"))
            } else {
                Ok(())
            }
        };
        poll_until(Duration::from_secs(10), "no sleepers", none).expect("both gone");
    }

    #[test]
    fn an_exit_is_seen_with_its_code() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        let mut process = Process::spawn("seven", command).expect("starts");
        let status = process.wait_exit(Duration::from_secs(10)).expect("ends");
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Process::spawn("x", Command::new("/no/such")).expect_err("there is none").to_string();
        assert!(error.starts_with("cannot run /no/such: "), "{error}");
    }
}
