//! Waiting for descriptors of other kinds than sockets in the event loop.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a duplicate of `fd` with the event loop. The duplicate shares what the kernel reports: both are
/// the same open file (dup(2)).
pub(crate) fn watch(fd: &impl AsFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    #[expect(
        deprecated,
        reason = "deprecated because a careless AsRawFd could name a closed descriptor; an OwnedFd never does, \
                  and what replaces it is unsafe"
    )]
    AsyncFd::with_interest(fd, interest)
}
