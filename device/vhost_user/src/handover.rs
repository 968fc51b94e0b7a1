//! What a keeper gives a back end when it starts it.
//!
//! The back end's standard input is one end of a pair of Unix sockets; the first and only message on it
//! carries everything as descriptors. So nothing is inherited by accident, no number is passed on a command
//! line, and the end of the keeper is an end of file on standard input. The other way goes one word: that the back end
//! serves ([`say_serving`]).
//!
//! ```text
//! "plimsoll-be1"            shared memory, control, poke, devices...
//! "plimsoll-be2"            shared memory, control, poke, agent's line, devices...
//! "plimsoll-be3" address    shared memory, control, guest's memory, and, with a VMM, userfaultfd, VMM's connection
//! ```

use std::os::fd::{AsFd, OwnedFd};

use plimsoll_shm::ShmError;

use crate::layout::MAX_DEVICES;

/// What the message says: its version, and that it is one.
const HELLO: &[u8; 12] = b"plimsoll-be1";

/// The same with an agent's line among the descriptors. A VM without one is handed over as before there were any, so that
/// keepers and back ends of both times go together.
const HELLO_WITH_LINE: &[u8; 12] = b"plimsoll-be2";

/// The same for memory that is populated on demand. The address of the VMM's mapping follows, in little endian; 0 without one.
const HELLO_ON_DEMAND: &[u8; 12] = b"plimsoll-be3";

/// Bytes of the longest message.
const LONGEST: usize = HELLO.len() + 8;

/// What a back end says when it serves.
const SERVING: &[u8; 1] = b"s";

/// Everything a back end needs of its keeper.
#[derive(Debug)]
pub struct Handover {
    /// The shared memory, see [`crate::layout`].
    pub memory: OwnedFd,
    /// The listening control socket.
    pub control: OwnedFd,
    /// What it is to serve.
    pub work: Work,
}

/// What a back end serves.
#[derive(Debug)]
pub enum Work {
    /// A VM's devices.
    Devices {
        /// The event counter by which the keeper learns that a configuration space has changed.
        poke: OwnedFd,
        /// The host's end of the line from the agent in the guest: a stream socket.
        line: Option<OwnedFd>,
        /// One end of a socket for each device, on which the keeper speaks vhost-user.
        sockets: Vec<OwnedFd>,
    },
    /// A VM's memory, populated on demand.
    OnDemand {
        /// The file that is the guest's memory.
        guest: OwnedFd,
        /// Who has it mapped, once somebody has.
        vmm: Option<Mapping>,
    },
}

/// A VMM's mapping of its guest's memory.
#[derive(Debug)]
pub struct Mapping {
    /// Tells of its faults.
    pub uffd: OwnedFd,
    /// The connection on which the VMM tells of memory that it has given back.
    pub connection: OwnedFd,
    /// Where it begins, in the VMM's address space. It is of the whole file.
    pub address: u64,
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
    /// The back end is gone, or is none of this version.
    #[error("the back end does not say that it serves")]
    NotServing,
}

impl Handover {
    /// Gives everything to the back end at the other end of `socket`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn send(&self, socket: impl AsFd) -> Result<(), HandoverError> {
        let mut hello = Vec::with_capacity(LONGEST);
        let mut fds = vec![self.memory.as_fd(), self.control.as_fd()];
        match &self.work {
            Work::Devices { poke, line, sockets } => {
                hello.extend(if line.is_some() { HELLO_WITH_LINE } else { HELLO });
                fds.push(poke.as_fd());
                fds.extend(line.as_ref().map(AsFd::as_fd));
                fds.extend(sockets.iter().map(AsFd::as_fd));
            }
            Work::OnDemand { guest, vmm } => {
                hello.extend(HELLO_ON_DEMAND);
                hello.extend(vmm.as_ref().map_or(0, |vmm| vmm.address).to_le_bytes());
                fds.push(guest.as_fd());
                fds.extend(vmm.iter().flat_map(|vmm| [vmm.uffd.as_fd(), vmm.connection.as_fd()]));
            }
        }
        match plimsoll_shm::send(socket, &hello, &fds)? {
            sent if sent == hello.len() => Ok(()),
            _ => Err(HandoverError::Socket(ShmError::WouldBlock)),
        }
    }

    /// Takes everything from the keeper at the other end, which has sent it before it started this process.
    ///
    /// # Errors
    /// When nothing of the kind is there.
    pub fn receive(socket: impl AsFd) -> Result<Self, HandoverError> {
        let mut bytes = [0; LONGEST];
        let received = plimsoll_shm::receive(socket, &mut bytes).map_err(|_| HandoverError::NotAKeeper)?;
        let message = bytes.get(..received.bytes).unwrap_or_default();
        let (hello, rest) = message.split_at_checked(HELLO.len()).ok_or(HandoverError::NotAKeeper)?;
        let mut fds = received.fds.into_iter();
        let (Some(memory), Some(control), Some(third)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(HandoverError::NotAKeeper);
        };
        let work = if hello == HELLO_ON_DEMAND {
            on_demand(third, fds, rest)
        } else if rest.is_empty() && (hello == HELLO || hello == HELLO_WITH_LINE) {
            devices(third, fds, hello == HELLO_WITH_LINE)
        } else {
            None
        };
        Ok(Self { memory, control, work: work.ok_or(HandoverError::NotAKeeper)? })
    }
}

fn devices(poke: OwnedFd, mut fds: impl Iterator<Item = OwnedFd>, with_line: bool) -> Option<Work> {
    let line = if with_line { Some(fds.next()?) } else { None };
    let sockets: Vec<_> = fds.collect();
    let possible = 1..=MAX_DEVICES;
    possible.contains(&sockets.len()).then_some(Work::Devices { poke, line, sockets })
}

fn on_demand(guest: OwnedFd, mut fds: impl Iterator<Item = OwnedFd>, address: &[u8]) -> Option<Work> {
    let address = u64::from_le_bytes(address.try_into().ok()?);
    let vmm = match (fds.next(), fds.next()) {
        (Some(uffd), Some(connection)) => Some(Mapping { uffd, connection, address }),
        (None, _) => None,
        (Some(_), None) => return None,
    };
    fds.next().is_none().then_some(Work::OnDemand { guest, vmm })
}

/// Tells the keeper that everything it has handed over is being served.
///
/// # Errors
/// When the keeper is gone.
pub fn say_serving(keeper: impl AsFd) -> Result<(), HandoverError> {
    plimsoll_shm::send(keeper, SERVING, &[])?;
    Ok(())
}

/// Whether the back end at the other end has said that it serves. Never waits.
///
/// # Errors
/// [`HandoverError::NotServing`]: it will not say so.
pub fn hears_serving(back_end: impl AsFd) -> Result<bool, HandoverError> {
    let mut word = [0; SERVING.len()];
    match plimsoll_shm::receive(back_end, &mut word) {
        Ok(received) if received.bytes == SERVING.len() && &word == SERVING => Ok(true),
        Err(ShmError::WouldBlock) => Ok(false),
        Ok(_) | Err(_) => Err(HandoverError::NotServing),
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn fd() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    #[test]
    fn everything_arrives() {
        let (keeper, back_end) = UnixStream::pair().unwrap();
        for (with_line, n_devices) in [(false, 2), (true, 2), (true, MAX_DEVICES)] {
            let sockets = (0..n_devices).map(|_| fd()).collect();
            let work = Work::Devices { poke: fd(), line: with_line.then(fd), sockets };
            Handover { memory: fd(), control: fd(), work }.send(&keeper).unwrap();
            let received = Handover::receive(&back_end).unwrap();
            let Work::Devices { line, sockets, .. } = received.work else { panic!("{received:?}") };
            assert_eq!((line.is_some(), sockets.len()), (with_line, n_devices));
        }
        for address in [None, Some(0x7fff_ffff_f000)] {
            let vmm = address.map(|address| Mapping { uffd: fd(), connection: fd(), address });
            let work = Work::OnDemand { guest: fd(), vmm };
            Handover { memory: fd(), control: fd(), work }.send(&keeper).unwrap();
            let received = Handover::receive(&back_end).unwrap();
            let Work::OnDemand { vmm, .. } = received.work else { panic!("{received:?}") };
            assert_eq!(vmm.map(|vmm| vmm.address), address);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let (mut other, back_end) = UnixStream::pair().unwrap();
        let refused = || matches!(Handover::receive(&back_end), Err(HandoverError::NotAKeeper));
        assert!(refused());
        other.write_all(HELLO).unwrap();
        assert!(refused());
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(refused());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Handover::receive(&file), Err(HandoverError::NotAKeeper)));
        let some = fd();
        let with_address = [HELLO_ON_DEMAND.as_slice(), &[0; 8]].concat();
        for (message, n_fds) in [
            (&HELLO[..], 3),
            (HELLO, 8),
            (HELLO_WITH_LINE, 4),
            (&HELLO_ON_DEMAND[..], 3),
            (&with_address, 2),
            (&with_address, 4),
            (&with_address, 6),
            (&with_address[..19], 5),
        ] {
            plimsoll_shm::send(&other, message, &vec![some.as_fd(); n_fds]).unwrap();
            assert!(refused(), "{n_fds} descriptors with {}", message.escape_ascii());
        }
    }

    #[test]
    fn who_serves_says_so_once() {
        let (keeper, back_end) = UnixStream::pair().unwrap();
        assert!(!hears_serving(&keeper).unwrap());
        say_serving(&back_end).unwrap();
        assert!(hears_serving(&keeper).unwrap());
        assert!(!hears_serving(&keeper).unwrap());
        (&back_end).write_all(b"x").unwrap();
        hears_serving(&keeper).unwrap_err();
        drop(back_end);
        hears_serving(&keeper).unwrap_err();
    }
}
