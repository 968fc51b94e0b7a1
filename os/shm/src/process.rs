//! Who is at the other end, and whether it still lives.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::ShmError;

/// The process at the other end of a Unix socket, as it was when it connected (unix(7), SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

impl Peer {
    /// Whether it runs as root or as the user of this process: those who could do to this process whatever
    /// they like anyway.
    #[must_use]
    pub fn is_trusted_user(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// Who connected a socket.
///
/// # Errors
/// When the kernel does not say, or the peer is in a process namespace that this one cannot see (its number
/// is then 0).
pub fn peer(socket: impl AsFd) -> Result<Peer, ShmError> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)
        .map_err(|errno| ShmError::kernel("ask who is at the other end of a socket", errno))?;
    let pid = u32::try_from(credentials.pid.as_raw_pid()).unwrap_or(0);
    Ok(Peer { pid, uid: credentials.uid.as_raw() })
}

/// A handle on a process (pidfd_open(2)) that becomes readable when the process has ended.
///
/// # Errors
/// When there is no such process.
pub fn process_handle(pid: u32) -> Result<OwnedFd, ShmError> {
    let none = || ShmError::kernel("find a process", rustix::io::Errno::SRCH);
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(none)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|errno| ShmError::kernel("open a handle on a process", errno))
}

/// Whether the process behind a handle has ended. It may still be a zombie.
pub fn ended(handle: impl AsFd) -> bool {
    is_ready(handle, PollFlags::IN)
}

/// Whether one of these can be done on a descriptor right now, or it is broken.
pub fn is_ready(fd: impl AsFd, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, what)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
}

/// Whether the other end of a pipe or socket is gone.
pub fn is_broken(fd: impl AsFd) -> bool {
    // Errors and hang-ups are told whether they are asked for or not (poll(2)).
    is_ready(fd, PollFlags::empty())
}

/// Asks the kernel to kill this process when its parent ends (PR_SET_PDEATHSIG), so that a back end never
/// outlives its keeper.
///
/// # Errors
/// When the kernel refuses.
pub fn die_with_parent() -> Result<(), ShmError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| ShmError::kernel("ask to end with the parent", errno))
}

#[cfg(test)]
mod test {
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_broken_pipe_is_known_without_writing_to_it() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(!is_broken(&writer) && is_ready(&writer, PollFlags::OUT));
        drop(reader);
        assert!(is_broken(&writer));
        let counter = crate::Notifier::new().unwrap();
        counter.poke();
        assert!(!is_broken(&counter) && is_ready(&counter, PollFlags::IN));
    }

    #[test]
    fn a_peer_is_known_and_an_end_is_seen() {
        let (left, _right) = UnixStream::pair().unwrap();
        let peer = peer(&left).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert!(peer.is_trusted_user());
        assert!(!Peer { pid: 1, uid: u32::MAX - 7 }.is_trusted_user());

        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let handle = process_handle(child.id()).unwrap();
        assert!(!ended(&handle));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended(&handle));
        process_handle(0).unwrap_err();
        process_handle(u32::MAX).unwrap_err();
    }
}
