//! What is left of a UML that was killed.
//!
//! A UML is several processes: the kernel, one or two helpers for its disks and interrupts, one for each address
//! space of the guest. When it ends by itself it takes them along. When the kernel process is killed (SIGKILL,
//! out of memory) the others stay, and with them the guest's memory and its sockets: nothing is given back to the
//! host, and no back end sees a disconnect. They are all in one process group, [`Invocation::command`]'s own.
//!
//! [`Invocation::command`]: crate::Invocation::command

use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process_group};

/// How many processes are left of the UML that was started, as the leader of a process group, as process `pid` with
/// that `umid`: the kernel process itself included while it runs.
///
/// Reads all of `/proc`: for the moment when a UML is to be ended or was found dead, not for every second.
pub fn remains(pid: u32, umid: &str) -> io::Result<usize> {
    let members = members(pid)?;
    // The number of a group whose last process has ended may come to mean another group.
    let known = members.iter().any(|member| has_umid(*member, umid));
    Ok(if known { members.len() } else { 0 })
}

/// Ends (SIGKILL) all that is left of a UML, the kernel process included, and returns how many processes that
/// were. They are gone a moment later: ask [`remains`] until it says 0.
pub fn kill_remains(pid: u32, umid: &str) -> io::Result<usize> {
    let left = remains(pid, umid)?;
    if left == 0 {
        return Ok(0);
    }
    match i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| kill_process_group(pid, Signal::KILL)) {
        None | Some(Err(rustix::io::Errno::SRCH)) => Ok(0),
        Some(Ok(())) => Ok(left),
        Some(Err(err)) => Err(err.into()),
    }
}

/// The processes of a group that have not ended.
fn members(group: u32) -> io::Result<Vec<u32>> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Gone since it was listed, or not ours to read: not a member either way.
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { continue };
        if running_in(&stat) == Some(group) {
            members.push(pid);
        }
    }
    Ok(members)
}

/// The process group in `/proc/PID/stat` (proc_pid_stat(5), field 5) unless the process is a zombie.
fn running_in(stat: &[u8]) -> Option<u32> {
    let end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(stat.get(end.checked_add(1)?..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let (state, group) = (fields.next()?, fields.nth(1)?);
    if matches!(state, "Z" | "X") { None } else { group.parse().ok() }
}

fn has_umid(pid: u32, umid: &str) -> bool {
    let wanted = format!("umid={umid}");
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    cmdline.split(|b| *b == 0).any(|word| word == wanted.as_bytes())
}

#[cfg(test)]
mod test {
    use std::{
        os::unix::process::CommandExt,
        process::{Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_group_of_others_is_left_alone() {
        let mut other =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn().unwrap();
        let pid = other.id();
        let got = (remains(pid, "web").unwrap(), kill_remains(pid, "web").unwrap(), members(pid).unwrap());
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(got, (0, 0, vec![pid]));
        for never in [0, u32::MAX] {
            assert_eq!(kill_remains(never, "web").unwrap(), 0);
        }
    }

    #[test]
    fn zombies_do_not_count() {
        assert_eq!(running_in(b"7 (a) b) S 1 99 99 0"), Some(99));
        assert_eq!(running_in(b"7 (x) Z 1 99 99 0"), None);
        assert_eq!(running_in(b"7 (x) S"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = running_in(&text);
        }
    }
}
