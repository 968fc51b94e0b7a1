//! Bytes with file descriptors over a Unix socket (unix(7), SCM_RIGHTS), never waiting.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::ShmError;

/// The most descriptors any message has: a vhost-user memory table of 8 regions
/// (`VHOST_MEMORY_BASELINE_NREGIONS` in QEMU's vhost-user.c).
pub const MAX_FDS: usize = 8;

/// What one read of a socket brought.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes put into the buffer; 0 means that the other side has closed.
    pub bytes: usize,
    /// The descriptors that came with them, closed on exec.
    pub fds: Vec<OwnedFd>,
}

/// Reads what is there, at most `buffer.len()` bytes, and the descriptors that came with it.
///
/// # Errors
/// [`ShmError::WouldBlock`] if nothing is there; [`ShmError::TooManyFds`] if more than [`MAX_FDS`]
/// descriptors came (all of them are closed); else the kernel's refusal.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, ShmError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            other => break other.map_err(|errno| ShmError::kernel("read from a socket", errno))?,
        }
    };
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
        return Err(ShmError::TooManyFds { limit: MAX_FDS });
    }
    Ok(Received { bytes: message.bytes, fds })
}

/// Writes as much of `bytes` as there is room for, the descriptors with the first of them. Returns how many
/// were written: if any, the descriptors are gone too.
///
/// # Errors
/// [`ShmError::WouldBlock`] if there is no room; [`ShmError::TooManyFds`] for more than [`MAX_FDS`]; else
/// the kernel's refusal, for instance because the other side is gone.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, ShmError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS || (!fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(ShmError::TooManyFds { limit: MAX_FDS });
    }
    loop {
        let parts = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(&socket, &parts, &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        {
            Err(Errno::INTR) => {}
            other => return other.map_err(|errno| ShmError::kernel("write to a socket", errno)),
        }
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn open_fds() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (left, right) = UnixStream::pair().unwrap();
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        assert_eq!(send(&left, b"hello", &[write_end.as_fd()]).unwrap(), 5);
        drop(write_end);
        let mut buffer = [0; 3];
        let got = receive(&right, &mut buffer).unwrap();
        assert_eq!((got.bytes, &buffer, got.fds.len()), (3, b"hel", 1));
        rustix::io::write(&got.fds[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&read_end, &mut buffer).unwrap(), 1);
        let got = receive(&right, &mut buffer).unwrap();
        assert_eq!((got.bytes, got.fds.len()), (2, 0));
        assert!(matches!(receive(&right, &mut buffer), Err(ShmError::WouldBlock)));
        drop(left);
        assert_eq!(receive(&right, &mut buffer).unwrap().bytes, 0);
    }

    // Counts this process's descriptors, hence in a process of its own where the runner does so, and tolerant
    // of other tests where it does not: what would leak here is 64 per round.
    #[test]
    fn too_many_descriptors_are_refused_and_none_leaks() {
        let (left, right) = UnixStream::pair().unwrap();
        let (read_end, _write_end) = rustix::pipe::pipe().unwrap();
        let too_many = vec![read_end.as_fd(); MAX_FDS + 1];
        assert!(matches!(send(&left, b"x", &too_many), Err(ShmError::TooManyFds { .. })));
        let before = open_fds();
        for count in [MAX_FDS + 1, 64, 200] {
            let fds = vec![read_end.as_fd(); count];
            let mut space = vec![MaybeUninit::uninit(); 16 + 4 * count + 64];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
            let sent = rustix::net::sendmsg(&left, &[IoSlice::new(b"y")], &mut ancillary, SendFlags::empty());
            assert_eq!(sent, Ok(1));
            let mut buffer = [0; 8];
            assert!(matches!(receive(&right, &mut buffer), Err(ShmError::TooManyFds { .. })));
        }
        assert!(open_fds() < before + 64, "{} descriptors before, {} after", before, open_fds());
    }
}
