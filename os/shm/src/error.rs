//! What can go wrong.

use rustix::io::Errno;

/// Why shared memory or a descriptor could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ShmError {
    /// The kernel refused.
    #[error("{action}: {errno}")]
    Kernel {
        /// What was tried, on what.
        action: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The other side's memory is not of the size agreed on.
    #[error("shared memory has {found} bytes where {wanted} were agreed on")]
    Size {
        /// Bytes expected.
        wanted: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The memory could be truncated under our hands, which would end this process by SIGBUS.
    #[error("shared memory is not sealed against shrinking and growing")]
    NotSealed,
    /// More words than this machine can address.
    #[error("{0} words of shared memory are more than this machine can map")]
    TooLarge(usize),
    /// A message came with more descriptors than any message of the protocol has.
    #[error("a message came with more than {limit} file descriptors")]
    TooManyFds {
        /// The most allowed.
        limit: usize,
    },
    /// Nothing to read, or no room to write, just now.
    #[error("the socket is not ready")]
    WouldBlock,
}

impl ShmError {
    /// Wraps the kernel's answer, telling "not now" from the rest.
    pub(crate) fn kernel(action: &'static str, errno: Errno) -> Self {
        if errno == Errno::AGAIN { Self::WouldBlock } else { Self::Kernel { action, errno } }
    }
}
