//! Who is alive, and ending processes without ending the wrong ones.
//!
//! A process is known by number and start time. It is signalled through a pidfd that was opened before the
//! start time was compared, so a number that was used again is never hit.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use plimsoll_api::http::ProcessRef;
use plimsoll_procfs::{Pidfd, ProcError, ProcessId, Procfs};

/// How often is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(20);

fn id(process: ProcessRef) -> ProcessId {
    ProcessId { pid: process.pid, start_time: process.start_time }
}

/// A process that runs with this number now.
pub(crate) fn reference(pid: u32) -> Option<ProcessRef> {
    let ProcessId { pid, start_time } = Procfs::new().identify(pid).ok()?;
    Some(ProcessRef { pid, start_time })
}

/// Whether the very process still runs; one that has ended and was not yet waited for does not.
pub(crate) fn is_alive(process: ProcessRef) -> bool {
    Procfs::new().is_alive(id(process)).unwrap_or(false)
}

/// A process that is certainly the one that was meant.
#[derive(Debug)]
pub(crate) struct Handle(Pidfd);

impl Handle {
    /// Opens the process; `None` if it has ended.
    pub(crate) fn open(process: ProcessRef) -> anyhow::Result<Option<Self>> {
        match Pidfd::open(&mut Procfs::new(), id(process)) {
            Ok(pidfd) => Ok(Some(Self(pidfd))),
            Err(ProcError::NoProcess { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Asks it to end (SIGTERM); one that has ended meanwhile is no error.
    pub(crate) fn terminate(&self) -> anyhow::Result<()> {
        unless_gone(self.0.terminate())
    }

    /// Ends it (SIGKILL); one that has ended meanwhile is no error.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        unless_gone(self.0.kill())
    }

    /// Waits until it has ended; `false` if it has not within `deadline`.
    pub(crate) async fn ended(&self, deadline: Duration) -> anyhow::Result<bool> {
        let begin = Instant::now();
        loop {
            if self.0.has_exited()? {
                return Ok(true);
            }
            let left = deadline.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }
}

fn unless_gone(outcome: Result<(), ProcError>) -> anyhow::Result<()> {
    match outcome {
        Ok(()) | Err(ProcError::NoProcess { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Ends what is left of the session of a VMM that has ended: killed User Mode Linux leaves threads of its own
/// behind as processes, and they hold the guest's memory. Only processes that run the VMM's very program are
/// touched, for the number of a session that is long over may have come to be used again.
pub(crate) fn end_session(leader: u32, program: &Path) -> anyhow::Result<()> {
    let mut proc = Procfs::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let name = entry.context("cannot read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes come and go meanwhile: whoever cannot be opened has gone.
        let Ok(process) = proc.identify(pid) else { continue };
        let Ok(pidfd) = Pidfd::open(&mut proc, process) else { continue };
        let in_session =
            fs::read(format!("/proc/{pid}/stat")).is_ok_and(|stat| session(&stat) == Some(leader));
        let same_program = || fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        if in_session && same_program() {
            unless_gone(pidfd.kill())?;
        }
    }
    Ok(())
}

/// Field 6 of `/proc/PID/stat` (proc_pid_stat(5)); 0 for kernel threads.
fn session(stat: &[u8]) -> Option<u32> {
    // The name, field 2, is in parentheses and may hold anything, parentheses included.
    let after = stat.iter().rposition(|&b| b == b')')?.checked_add(1)?;
    std::str::from_utf8(stat.get(after..)?).ok()?.split_whitespace().nth(3)?.parse().ok()
}

/// The real user of a process.
pub(crate) fn user(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().next()?.parse().ok()
}

/// The paths at which somebody listens for stream connections, by `/proc/net/unix` (its `Flags` column has
/// bit 16, `__SO_ACCEPTCON` of include/linux/net.h, for a listener). Asking so does not connect.
pub(crate) fn is_listening(path: &Path) -> bool {
    let Ok(table) = fs::read(UNIX_TABLE) else { return false };
    listens_in(&table, path)
}

const UNIX_TABLE: &str = "/proc/net/unix";

fn listens_in(table: &[u8], path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    const ACCEPTS: &[u8] = b"00010000";
    let suffix = [b" ", path.as_os_str().as_bytes()].concat();
    table.split(|&b| b == b'\n').any(|line| {
        line.ends_with(&suffix)
            && line.split(|&b| b == b' ').filter(|f| !f.is_empty()).nth(3) == Some(ACCEPTS)
    })
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_mislead() {
        assert_eq!(session(b"42 (a) R 1) S 1 42 40 0 -1 4194560 1 2"), Some(40));
        assert_eq!(session(b"2 (kthreadd) S 0 0 0 0 -1"), Some(0));
        assert_eq!(session(b"42 (a S 1 42"), None);
    }

    /// A session of two sleepers: the child to be waited for, the leader and the other.
    fn sleepers() -> (std::process::Child, ProcessRef, ProcessRef) {
        let mut command = std::process::Command::new("setsid");
        command.args(["--wait", "sh", "-c", "sleep 600 >&2 & echo $$ $!; exec sleep 600 >&2"]);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        (child, reference(pids[0]).unwrap(), reference(pids[1]).unwrap())
    }

    #[test]
    fn only_the_session_and_program_meant_are_ended() {
        let program = fs::canonicalize("/usr/bin/sleep").or_else(|_| fs::canonicalize("/bin/sleep")).unwrap();
        let ((mut one, leader, other), (mut two, bystander, its_other)) = (sleepers(), sleepers());
        end_session(leader.pid, Path::new("/bin/no-such-program")).unwrap();
        assert!(is_alive(leader) && is_alive(other));
        // Each becomes a sleeper a moment after its number was known.
        let end = |session: ProcessRef, member: ProcessRef| {
            let begin = Instant::now();
            while is_alive(session) || is_alive(member) {
                assert!(begin.elapsed() < Duration::from_secs(10), "not ended");
                end_session(session.pid, &program).unwrap();
            }
        };
        end(leader, other);
        assert!(is_alive(bystander) && is_alive(its_other));
        end(bystander, its_other);
        one.wait().unwrap();
        two.wait().unwrap();
    }

    #[test]
    fn this_process_is_alive_and_its_number_with_another_start_time_is_not() {
        let me = reference(std::process::id()).unwrap();
        assert!(is_alive(me));
        assert!(!is_alive(ProcessRef { start_time: me.start_time + 1, ..me }));
        assert_eq!(user(me.pid), Some(rustix::process::getuid().as_raw()));
    }

    #[tokio::test]
    async fn a_handle_ends_the_process_it_was_opened_for() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let it = reference(child.id()).unwrap();
        let wrong = ProcessRef { start_time: it.start_time + 1, ..it };
        assert!(Handle::open(wrong).unwrap().is_none());
        let handle = Handle::open(it).unwrap().unwrap();
        assert!(!handle.ended(Duration::from_millis(10)).await.unwrap());
        handle.kill().unwrap();
        assert!(handle.ended(Duration::from_secs(5)).await.unwrap());
        assert!(!is_alive(it));
        child.wait().unwrap();
        assert!(Handle::open(it).unwrap().is_none());
    }

    #[test]
    fn only_listeners_listen() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000: 00000002 00000000 00010000 0001 01 100 /run/a.sock\n\
            0000: 00000003 00000000 00000000 0001 03 101 /run/b.sock\n";
        assert!(listens_in(table, Path::new("/run/a.sock")));
        assert!(!listens_in(table, Path::new("/run/b.sock")));
        assert!(!listens_in(table, Path::new("run/a.sock")));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = session(&text);
            prop_assert!(!listens_in(&text, Path::new("/a/path/that/long")) || text.len() > 16);
        }
    }
}
