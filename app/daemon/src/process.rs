//! Watching over processes that are not ours: by pidfd (pidfd_open(2)), which is told of the end of exactly
//! the process it was opened for, whatever becomes of its number.

use std::{io, os::unix::fs::MetadataExt};

use plimsoll_api::http::ProcessRef;
use plimsoll_model::VmId;
use plimsoll_procfs::{Pidfd, ProcError, ProcessId, Procfs};
use tokio::{io::Interest, sync::mpsc, task::JoinHandle};

use crate::readiness;

/// What a process is to its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It runs the guest.
    Vmm,
    /// It stands between the guest and its balloon device.
    Keeper,
}

/// A process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Death {
    pub(crate) vm: VmId,
    pub(crate) role: Role,
    pub(crate) process: ProcessRef,
}

/// Why a process cannot be watched over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// It has ended, or its number belongs to another process by now.
    #[error("there is no process {} that started at {} (clock ticks since boot); it has ended", .0.pid, .0.start_time)]
    Ended(ProcessRef),
    /// The kernel refused.
    #[error("cannot watch over process {pid}: {source}")]
    Io {
        /// Its number.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A watch over one process; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches over `process` until it ends, and tells then.
    pub(crate) fn start(
        vm: VmId,
        role: Role,
        process: ProcessRef,
        tell: mpsc::Sender<Death>,
    ) -> Result<Self, WatchError> {
        let failed = |source| WatchError::Io { pid: process.pid, source };
        let pidfd = open(process)?;
        let pidfd = readiness::watch(&pidfd, Interest::READABLE).map_err(failed)?;
        let task = tokio::spawn(async move {
            match pidfd.readable().await {
                Ok(_) => {
                    // The daemon is ending if nobody listens.
                    let _ = tell.send(Death { vm, role, process }).await;
                }
                Err(error) => {
                    tracing::error!(pid = process.pid, %error, "cannot watch over a process any more")
                }
            }
        });
        Ok(Self { task })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A pidfd of exactly that process.
fn open(process: ProcessRef) -> Result<Pidfd, WatchError> {
    let failed = |source| WatchError::Io { pid: process.pid, source };
    let ProcessRef { pid, start_time } = process;
    match Pidfd::open(&mut Procfs::new(), ProcessId { pid, start_time }) {
        Ok(pidfd) => Ok(pidfd),
        Err(ProcError::NoProcess { .. }) => Err(WatchError::Ended(process)),
        Err(other) => Err(failed(io::Error::other(other))),
    }
}

/// Ends exactly that process, at once.
pub(crate) fn kill(process: ProcessRef) -> Result<(), WatchError> {
    let failed = |error| WatchError::Io { pid: process.pid, source: io::Error::other(error) };
    open(process)?.kill().map_err(failed)
}

/// The process that has the number now, unless it has ended.
pub(crate) fn now(pid: u32) -> Option<ProcessRef> {
    let mut proc = Procfs::new();
    let id = proc.identify(pid).ok()?;
    proc.is_alive(id).ok()?.then_some(ProcessRef { pid: id.pid, start_time: id.start_time })
}

/// Whether that very process runs.
pub(crate) fn runs(process: ProcessRef) -> bool {
    now(process.pid) == Some(process)
}

/// Who runs a process: the owner of /proc/PID, which is its effective user (proc(5)).
pub(crate) fn owner(pid: u32) -> Option<u32> {
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}

#[cfg(test)]
mod test {
    use std::{process::Command, time::Duration};

    use super::*;

    #[test]
    fn the_end_of_a_process_is_told_once_it_comes() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = now(child.id()).unwrap();
        assert_eq!(owner(child.id()), Some(rustix::process::geteuid().as_raw()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (tell, mut deaths) = mpsc::channel(1);
            let _watch = Watch::start(VmId(3), Role::Keeper, process, tell.clone()).unwrap();
            tokio::time::timeout(Duration::from_millis(30), deaths.recv()).await.unwrap_err();
            child.kill().unwrap();
            let death = tokio::time::timeout(Duration::from_secs(10), deaths.recv()).await.unwrap();
            assert_eq!(death, Some(Death { vm: VmId(3), role: Role::Keeper, process }));
            child.wait().unwrap();
            let ended = Watch::start(VmId(3), Role::Vmm, process, tell).unwrap_err();
            assert!(matches!(ended, WatchError::Ended(p) if p == process), "{ended}");
        });
    }

    #[test]
    fn a_number_used_again_is_another_process() {
        let own = now(std::process::id()).unwrap();
        open(own).unwrap();
        let other = ProcessRef { start_time: own.start_time + 1, ..own };
        assert!(matches!(open(other), Err(WatchError::Ended(_))));
        for pid in [0, u32::MAX] {
            assert!(matches!(open(ProcessRef { pid, start_time: 0 }), Err(WatchError::Ended(_))));
        }
    }
}
