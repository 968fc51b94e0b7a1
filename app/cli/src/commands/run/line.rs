//! The line from the agent in a User Mode Linux guest: a socket pair, one end the guest's first serial line, the other the
//! keeper's.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use anyhow::Context;
use rustix::io::{FdFlags, fcntl_setfd};

/// Both ends. This process never reads or writes either; that it has them too while it shows a console harms nothing.
#[derive(Debug)]
pub(super) struct Line {
    host: OwnedFd,
    guest: OwnedFd,
}

impl Line {
    pub(super) fn new() -> anyhow::Result<Self> {
        let (host, guest) = UnixStream::pair().context("cannot make a line for the agent")?;
        Ok(Self { host: host.into(), guest: guest.into() })
    }

    /// Whether words for the guest's kernel say already where its first serial line goes.
    pub(super) fn is_set_in(words: &str) -> bool {
        words.split_whitespace().any(|word| word.starts_with("ssl0=") || word.starts_with("ssl="))
    }

    /// What tells User Mode Linux of it (arch/um/drivers/ssl.c): in the guest it is /dev/ttyS0.
    pub(super) fn word(&self) -> String {
        format!("ssl0=fd:{}", self.guest.as_raw_fd())
    }

    /// The host's end, as a program's standard input.
    pub(super) fn host(&self) -> anyhow::Result<Stdio> {
        Ok(self.host.try_clone().context("cannot copy a socket")?.into())
    }

    /// The guest's end, which its VMM has to inherit under the number that [`Self::word`] names.
    pub(super) fn guest(&self) -> BorrowedFd<'_> {
        self.guest.as_fd()
    }
}

/// Does `start` while programs that are started inherit `fd`, and no longer.
pub(super) fn inheriting<T>(
    fd: Option<BorrowedFd<'_>>,
    start: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let Some(fd) = fd else { return start() };
    fcntl_setfd(fd, FdFlags::empty()).context("cannot pass a socket on")?;
    let started = start();
    fcntl_setfd(fd, FdFlags::CLOEXEC).context("cannot keep a socket to this process")?;
    started
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::process::Command;

    use super::*;

    #[test]
    fn words_of_the_users_own_are_seen() {
        assert!(Line::is_set_in("quiet ssl0=pty") && Line::is_set_in("ssl=null"));
        assert!(!Line::is_set_in("ssl1=pty xssl0=pty ssl") && !Line::is_set_in(""));
    }

    #[test]
    fn a_program_inherits_the_guests_end_and_the_next_one_does_not() {
        let line = Line::new().unwrap();
        let number = line.word().trim_start_matches("ssl0=fd:").to_string();
        let path = format!("/proc/self/fd/{number}");
        let this = std::fs::read_link(&path).unwrap();
        // What the program has under that number.
        let there = |fd: Option<BorrowedFd<'_>>| {
            let mut readlink = Command::new("readlink");
            let seen = inheriting(fd, || Ok(readlink.arg(&path).output()?.stdout)).unwrap();
            String::from_utf8(seen).unwrap().trim_end().to_string()
        };
        assert_eq!(there(Some(line.guest())), this.to_str().unwrap());
        assert_ne!(there(None), this.to_str().unwrap());

        // The keeper's side of it.
        let mut cat = Command::new("head");
        cat.args(["-c", "3"]).stdin(line.host().unwrap()).stdout(Stdio::piped());
        UnixStream::from(line.guest.try_clone().unwrap()).write_all(b"abc").unwrap();
        assert_eq!(cat.output().unwrap().stdout, b"abc");
    }
}
