//! What can be wrong with what a pager is given, and with what is asked of it.

use plimsoll_frames::SpaceError;
use plimsoll_shm::ShmError;
use plimsoll_uffd::{HostRange, UffdError};
use rustix::io::Errno;

/// Why a pager cannot serve a guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file could not be asked.
    #[error("cannot ask the guest's memory for its {what}: {errno}")]
    File {
        /// What was asked.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// On another file system holes are not told apart from memory, or faults are not told of.
    #[error(
        "the guest's memory is on a file system of type {found:#x}, not on tmpfs: populate-on-demand needs a memfd \
         without huge pages of hugetlb, or a file on tmpfs"
    )]
    FileSystem {
        /// `f_type` of statfs(2).
        found: u64,
    },
    /// The mapping is not of the whole file, or the file is empty or not of whole pages.
    #[error("the VMM maps {range}, {} bytes, of a memory of {size} bytes: it must be whole, and of whole pages", range.len())]
    NotWhole {
        /// Where it is mapped.
        range: HostRange,
        /// The file's bytes.
        size: u64,
    },
    /// The ledger does not take the file.
    #[error("the ledger does not take the guest's memory: {0}")]
    Space(#[from] SpaceError),
    /// The faults cannot be served.
    #[error("cannot take over the guest's faults: {0}")]
    Uffd(#[from] UffdError),
    /// Something needed for waiting cannot be had.
    #[error("cannot prepare the threads of a pager: {0}")]
    Shm(#[from] ShmError),
    /// A thread cannot be started.
    #[error("cannot start a thread of a pager: {0}")]
    Thread(std::io::Error),
    /// So many fault threads make no sense.
    #[error("a pager has 1 to {most} fault threads, not {wanted}", most = crate::config::MOST_FAULT_THREADS)]
    FaultThreads {
        /// How many were asked for.
        wanted: usize,
    },
    /// See [`Scrub`](crate::Scrub).
    #[error("a scrub pattern other than zero {why}")]
    Pattern {
        /// What stands against it.
        why: &'static str,
    },
    /// What the process before left protected could not be lifted, or its memory could not be looked through.
    #[error("cannot take over from the pager before: {what}")]
    Recovery {
        /// What was tried.
        what: &'static str,
    },
}

/// Why pages could not be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Not pages of the guest's memory.
    #[error("pages {first} to {end} are not all the guest's memory, which has {pages}")]
    Outside {
        /// The first page named.
        first: u64,
        /// One past the last.
        end: u64,
        /// How many there are.
        pages: u64,
    },
    /// There was no memory for all of them in time.
    #[error("no memory for page {page} within {waited_ms} ms; the guest's target does not let it have more")]
    NoRoom {
        /// The first page without.
        page: u64,
        /// How long was waited.
        waited_ms: u64,
    },
}

/// Why not all of a guest's memory was taken back for its new start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{left} pages of the guest are still in use after {waited_ms} ms of waiting for its reboot; ask again"
)]
pub struct ResetError {
    /// Pages that are not outstanding yet.
    pub left: u64,
    /// How long was waited.
    pub waited_ms: u64,
}
