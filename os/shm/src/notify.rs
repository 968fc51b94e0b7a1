//! An event counter (eventfd(2)) by which one process pokes another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

use crate::ShmError;

/// One side of an event counter. Poking never waits; pokes that nobody has taken yet count as one.
#[derive(Debug)]
pub struct Notifier(OwnedFd);

impl Notifier {
    /// A new counter, at nothing.
    ///
    /// # Errors
    /// The kernel's refusal: too many open files, no memory.
    pub fn new() -> Result<Self, ShmError> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|errno| ShmError::kernel("create an event counter", errno))
    }

    /// The counter behind a descriptor that came from another process.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Wakes the other side. A counter that is full already does.
    pub fn poke(&self) {
        // The only refusals are EAGAIN (full: the other side has yet to look) and a descriptor that is no
        // event counter; in neither case is there anything to be done here.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes all pokes so far; whether there were any.
    pub fn take(&self) -> bool {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.0, &mut count) {
                Err(Errno::INTR) => {}
                read => return read == Ok(count.len()),
            }
        }
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pokes_are_taken_once() {
        let one = Notifier::new().unwrap();
        let other = Notifier::from_fd(one.as_fd().try_clone_to_owned().unwrap());
        assert!(!other.take());
        one.poke();
        one.poke();
        assert!(other.take());
        assert!(!other.take());
    }
}
