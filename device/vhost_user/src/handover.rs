//! What a keeper gives a back end when it starts it.
//!
//! The back end's standard input is one end of a pair of Unix sockets; the first and only message on it
//! carries everything as descriptors. So nothing is inherited by accident, no number is passed on a command
//! line, and the end of the keeper is an end of file on standard input.

use std::os::fd::{AsFd, OwnedFd};

use plimsoll_shm::ShmError;

use crate::layout::MAX_DEVICES;

/// What the message says: its version, and that it is one.
const HELLO: &[u8; 12] = b"plimsoll-be1";

/// The same with an agent's line among the descriptors. A VM without one is handed over as before there were any, so that
/// keepers and back ends of both times go together.
const HELLO_WITH_LINE: &[u8; 12] = b"plimsoll-be2";

/// Everything a back end needs of its keeper.
#[derive(Debug)]
pub struct Handover {
    /// The shared memory, see [`crate::layout`].
    pub memory: OwnedFd,
    /// The listening control socket.
    pub control: OwnedFd,
    /// The event counter by which the keeper learns that a configuration space has changed.
    pub poke: OwnedFd,
    /// The host's end of the line from the agent in the guest: a stream socket.
    pub line: Option<OwnedFd>,
    /// One end of a socket for each device, on which the keeper speaks vhost-user.
    pub devices: Vec<OwnedFd>,
}

/// Why there was no handover.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket failed.
    #[error("cannot pass the keeper's descriptors on: {0}")]
    Socket(#[from] ShmError),
    /// Something else is at the other end.
    #[error("standard input is not a keeper of this version; plimsoll-keeper starts this program")]
    NotAKeeper,
}

impl Handover {
    /// Gives everything to the back end at the other end of `socket`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn send(&self, socket: impl AsFd) -> Result<(), HandoverError> {
        let mut fds = vec![self.memory.as_fd(), self.control.as_fd(), self.poke.as_fd()];
        fds.extend(self.line.as_ref().map(AsFd::as_fd));
        fds.extend(self.devices.iter().map(AsFd::as_fd));
        let hello = if self.line.is_some() { HELLO_WITH_LINE } else { HELLO };
        match plimsoll_shm::send(socket, hello, &fds)? {
            sent if sent == hello.len() => Ok(()),
            _ => Err(HandoverError::Socket(ShmError::WouldBlock)),
        }
    }

    /// Takes everything from the keeper at the other end, which has sent it before it started this process.
    ///
    /// # Errors
    /// When nothing of the kind is there.
    pub fn receive(socket: impl AsFd) -> Result<Self, HandoverError> {
        let mut hello = [0; HELLO.len()];
        let received = plimsoll_shm::receive(socket, &mut hello).map_err(|_| HandoverError::NotAKeeper)?;
        let with_line = &hello == HELLO_WITH_LINE;
        if (&hello != HELLO && !with_line) || received.bytes != hello.len() {
            return Err(HandoverError::NotAKeeper);
        }
        let mut fds = received.fds.into_iter();
        let (Some(memory), Some(control), Some(poke)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(HandoverError::NotAKeeper);
        };
        let line = if with_line { fds.next() } else { None };
        let devices: Vec<_> = fds.collect();
        if devices.is_empty() || devices.len() > MAX_DEVICES {
            return Err(HandoverError::NotAKeeper);
        }
        Ok(Self { memory, control, poke, line, devices })
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn everything_arrives() {
        let (keeper, back_end) = UnixStream::pair().unwrap();
        let fd = || OwnedFd::from(UnixStream::pair().unwrap().0);
        for (line, n_devices) in [(false, 2), (true, 2), (true, MAX_DEVICES)] {
            let handover = Handover {
                memory: fd(),
                control: fd(),
                poke: fd(),
                line: line.then(fd),
                devices: (0..n_devices).map(|_| fd()).collect(),
            };
            handover.send(&keeper).unwrap();
            let received = Handover::receive(&back_end).unwrap();
            assert_eq!((received.line.is_some(), received.devices.len()), (line, n_devices));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let (mut other, back_end) = UnixStream::pair().unwrap();
        assert!(matches!(Handover::receive(&back_end), Err(HandoverError::NotAKeeper)));
        other.write_all(HELLO).unwrap();
        assert!(matches!(Handover::receive(&back_end), Err(HandoverError::NotAKeeper)));
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(Handover::receive(&back_end), Err(HandoverError::NotAKeeper)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Handover::receive(&file), Err(HandoverError::NotAKeeper)));
    }
}
