//! Waiting until one of several descriptors is ready.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// Descriptors to wait for, and what it means when one of them is ready. Made anew for each wait.
#[derive(Debug)]
pub struct Polls<'a, E> {
    fds: Vec<PollFd<'a>>,
    events: Vec<E>,
}

impl<E> Default for Polls<'_, E> {
    fn default() -> Self {
        Self { fds: Vec::new(), events: Vec::new() }
    }
}

impl<'a, E> Polls<'a, E> {
    /// Waits for this too. Without flags only for its end, which is told in any case (poll(2)).
    pub fn add(&mut self, fd: BorrowedFd<'a>, flags: PollFlags, event: E) {
        self.fds.push(PollFd::from_borrowed_fd(fd, flags));
        self.events.push(event);
    }

    /// Waits until something is ready or a moment has come, and tells what is ready, in the order of adding. May return early with
    /// nothing.
    ///
    /// # Errors
    /// The kernel's refusal: too many descriptors, no memory.
    pub fn wait(mut self, until: Option<Instant>) -> Result<Vec<E>, Errno> {
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).unwrap_or_default());
        match rustix::event::poll(&mut self.fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = self.fds.iter().zip(self.events).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map(|(_, event)| event).collect())
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_ready_is_told_and_nothing_else() {
        let (quiet, _open) = UnixStream::pair().unwrap();
        let (loud, mut speaker) = UnixStream::pair().unwrap();
        let (ended, end) = UnixStream::pair().unwrap();
        let ready = |until| {
            let mut polls = Polls::default();
            polls.add(quiet.as_fd(), PollFlags::IN, 'q');
            polls.add(loud.as_fd(), PollFlags::IN, 'l');
            polls.add(ended.as_fd(), PollFlags::empty(), 'e');
            polls.wait(until).unwrap()
        };
        let begun = Instant::now();
        assert!(ready(Some(begun + Duration::from_millis(20))).is_empty());
        assert!(begun.elapsed() >= Duration::from_millis(20));
        assert!(ready(Some(begun)).is_empty(), "a moment that has passed is not waited for");
        speaker.write_all(b"x").unwrap();
        drop(end);
        assert_eq!(ready(None), ['l', 'e']);
    }
}
