//! Taking over from a VMM: its guest's memory, the userfaultfd that watches it, and what it says of it later.
//!
//! The other side is the library that is preloaded into the VMM (`app/pod_preload`). The VMM may have been taken
//! over by its guest, so everything that comes is checked, no message grows anything here, and nothing is
//! waited for. The protocol, and why a hint is only a hint: [`plimsoll_uffd_wire::handover`].
//!
//! ```no_run
//! use plimsoll_uffd::handover::{Heard, PodListener, ToVmm};
//! use plimsoll_uffd::agreement::FileId;
//! # fn main() -> Result<(), plimsoll_uffd::handover::HandoverError> {
//! let listener = PodListener::bind("/run/plimsoll/web/pod".as_ref())?;
//! // ... poll for POLLIN ...
//! let told = FileId { major: 0, minor: 1, inode: 28559 };
//! if let Some(vmm) = listener.accept()? {
//!     match vmm.hear()? {
//!         Heard::Handover(taken) => match taken.check(told) {
//!             Ok(()) => vmm.answer(ToVmm::Accepted)?,
//!             Err(error) => vmm.answer(ToVmm::Refused(error.refusal()))?,
//!         },
//!         Heard::Punched { extent, lost } => { /* ask the file what is there, with SEEK_DATA */ }
//!         Heard::Unmapped(_) | Heard::Nothing | Heard::Closed => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::fs::Permissions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use plimsoll_shm::ShmError;
use plimsoll_uffd_wire::handover::BYTES;
pub use plimsoll_uffd_wire::handover::{Extent, Handover, Refusal, ToPager, ToVmm, WireError};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::agreement::FileId;
use crate::{HostRange, Uffd, UffdError};

/// Connections that may wait to be accepted; a VMM makes one.
const BACKLOG: i32 = 8;
/// The guest's memory may neither shrink under whoever maps it, nor grow beyond what was admitted (fcntl(2)).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Why a handover failed, or what a VMM says is not listened to.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket could not be made.
    #[error("cannot listen for a VMM at {}: {errno}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A message could not be read or written.
    #[error("cannot speak with a VMM: {0}")]
    Socket(#[from] ShmError),
    /// It did not fit, so the VMM does not read its answer.
    #[error("a VMM does not read the answer it is given")]
    NotRead,
    /// No message of the protocol.
    #[error("a VMM's library sent {0}")]
    Wire(#[from] WireError),
    /// Another number of descriptors than the message has.
    #[error("a VMM's library sent {found} descriptors with a message that has {wanted}")]
    Descriptors {
        /// How many belong to it.
        wanted: usize,
        /// How many came.
        found: usize,
    },
    /// What should be a userfaultfd is none, or the mapping is no range of memory.
    #[error("a VMM's library handed over its faults: {0}")]
    Uffd(#[from] UffdError),
    /// The file could not be asked.
    #[error("cannot ask a VMM's memory for its {what}: {errno}")]
    File {
        /// What was asked.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Another file than the VM's.
    #[error("a VMM handed over the file {found} as its memory, where {wanted} was made for it")]
    OtherFile {
        /// The VM's memory.
        wanted: FileId,
        /// What came.
        found: FileId,
    },
    /// Not the whole of it.
    #[error("a VMM maps {mapped} bytes from {offset} of its memory, which has {size} bytes")]
    NotWhole {
        /// Where the mapping begins in the file.
        offset: u64,
        /// Its bytes.
        mapped: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// Its size may change under us.
    #[error("a VMM's memory {file} is not sealed against shrinking and growing (F_SEAL_SHRINK, F_SEAL_GROW)")]
    NotSealed {
        /// Which file.
        file: FileId,
    },
}

impl HandoverError {
    /// What to tell the VMM, which then ends with a message.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::OtherFile { .. } => Refusal::OtherFile,
            Self::NotWhole { .. } | Self::NotSealed { .. } => Refusal::Size,
            Self::Wire(_) | Self::Descriptors { .. } => Refusal::Protocol,
            Self::Uffd(_) | Self::File { .. } => Refusal::Other,
            Self::Listen { .. } | Self::Socket(_) | Self::NotRead => Refusal::Other,
        }
    }
}

/// Where VMMs come to hand over.
#[derive(Debug)]
pub struct PodListener {
    socket: OwnedFd,
}

impl PodListener {
    /// Listens at `path`, which must not exist; only its owner can connect. Whoever made it removes it.
    ///
    /// # Errors
    /// [`HandoverError::Listen`].
    pub fn bind(path: &Path) -> Result<Self, HandoverError> {
        let failed = |errno| HandoverError::Listen { path: path.to_owned(), errno };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        rustix::net::bind(&socket, &address).map_err(failed)?;
        // Before listening, so that nobody else ever gets in.
        std::fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
        Ok(Self { socket })
    }

    /// The next VMM that has connected, if there is one. Who it is: [`plimsoll_shm::peer`].
    ///
    /// # Errors
    /// [`HandoverError::Socket`].
    pub fn accept(&self) -> Result<Option<VmmSocket>, HandoverError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.socket, flags) {
            Ok(socket) => Ok(Some(VmmSocket { socket })),
            // Nobody, or somebody who went away again.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(ShmError::Kernel { action: "accept a VMM's connection", errno }.into()),
        }
    }
}

impl AsFd for PodListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A listening socket that somebody else made, of the type SOCK_SEQPACKET and not blocking.
impl From<OwnedFd> for PodListener {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

/// The connection to the library in one VMM. Poll it for POLLIN; it may be passed to another process at any time.
#[derive(Debug)]
pub struct VmmSocket {
    socket: OwnedFd,
}

/// What a VMM's library said.
#[derive(Debug)]
pub enum Heard {
    /// Nothing just now.
    Nothing,
    /// The VMM has ended, or unmapped its memory.
    Closed,
    /// It hands over, and waits for [`VmmSocket::answer`].
    Handover(Box<HandedOver>),
    /// Memory was given back: a hint where to look.
    Punched {
        /// Where.
        extent: Extent,
        /// So many hints before this one were lost: look everywhere if it is not 0.
        lost: u64,
    },
    /// A piece is no longer mapped; what is in the file stays.
    Unmapped(Extent),
}

impl VmmSocket {
    /// The next message. Never waits.
    ///
    /// # Errors
    /// [`HandoverError`]. After any the VMM does not keep to the protocol: what it says further is worth nothing.
    pub fn hear(&self) -> Result<Heard, HandoverError> {
        // One byte more than a message has, so that a longer one is not mistaken for one.
        let mut packet = [0; BYTES + 1];
        let received = match plimsoll_shm::receive(&self.socket, &mut packet) {
            Ok(received) => received,
            Err(ShmError::WouldBlock) => return Ok(Heard::Nothing),
            Err(ShmError::Kernel { errno: Errno::CONNRESET, .. }) => return Ok(Heard::Closed),
            Err(error) => return Err(error.into()),
        };
        if received.bytes == 0 {
            return Ok(Heard::Closed);
        }
        let message = ToPager::decode(packet.get(..received.bytes).unwrap_or_default())?;
        let fds = received.fds;
        match message {
            ToPager::Handover(said) => Ok(Heard::Handover(Box::new(HandedOver::new(said, fds)?))),
            ToPager::Punched { extent, lost } => none(&fds).map(|()| Heard::Punched { extent, lost }),
            ToPager::Unmapped(extent) => none(&fds).map(|()| Heard::Unmapped(extent)),
        }
    }

    /// Answers a handover.
    ///
    /// # Errors
    /// [`HandoverError::Socket`] when the VMM is gone; [`HandoverError::NotRead`].
    pub fn answer(&self, answer: ToVmm) -> Result<(), HandoverError> {
        match plimsoll_shm::send(&self.socket, &answer.encode(), &[]) {
            Ok(_) => Ok(()),
            Err(ShmError::WouldBlock) => Err(HandoverError::NotRead),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for VmmSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One that another process accepted.
impl From<OwnedFd> for VmmSocket {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<VmmSocket> for OwnedFd {
    fn from(vmm: VmmSocket) -> Self {
        vmm.socket
    }
}

fn none(fds: &[OwnedFd]) -> Result<(), HandoverError> {
    if fds.is_empty() { Ok(()) } else { Err(HandoverError::Descriptors { wanted: 0, found: fds.len() }) }
}

/// A guest's memory and its faults, as a VMM handed them over.
#[derive(Debug)]
pub struct HandedOver {
    /// Where its faults are told of.
    pub uffd: Uffd,
    /// The file that is its memory.
    pub memory: OwnedFd,
    /// Where the memory is mapped in the VMM.
    pub range: HostRange,
    /// What the VMM said of it.
    pub said: Handover,
}

impl HandedOver {
    fn new(said: Handover, fds: Vec<OwnedFd>) -> Result<Self, HandoverError> {
        let found = fds.len();
        let Ok([uffd, memory]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(HandoverError::Descriptors { wanted: 2, found });
        };
        let range = HostRange::new(said.address, said.length)?;
        Ok(Self { uffd: Uffd::adopt(uffd)?, memory, range, said })
    }

    /// Whether it is the whole of the file that was made for this VM, and cannot change its size. A file that passes
    /// can be mapped without fear of SIGBUS.
    ///
    /// # Errors
    /// What is wrong with it; [`HandoverError::refusal`] says it to the VMM.
    pub fn check(&self, wanted: FileId) -> Result<(), HandoverError> {
        let (found, size) = file_id(&self.memory)?;
        if found != wanted {
            return Err(HandoverError::OtherFile { wanted, found });
        }
        let (offset, mapped) = (self.said.offset, self.said.length);
        if offset != 0 || mapped != size {
            return Err(HandoverError::NotWhole { offset, mapped, size });
        }
        match rustix::fs::fcntl_get_seals(&self.memory) {
            Ok(seals) if seals.contains(SEALS) => Ok(()),
            // EINVAL: a file system without seals.
            Ok(_) | Err(Errno::INVAL) => Err(HandoverError::NotSealed { file: found }),
            Err(errno) => Err(HandoverError::File { what: "seals", errno }),
        }
    }
}

/// Which file a descriptor is of, and its size in bytes: what to tell the library with
/// [`agreement::FILE`](crate::agreement::FILE).
///
/// # Errors
/// [`HandoverError::File`].
pub fn file_id(file: impl AsFd) -> Result<(FileId, u64), HandoverError> {
    let stat = rustix::fs::fstat(file).map_err(|errno| HandoverError::File { what: "size", errno })?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    Ok((FileId { major, minor, inode: stat.st_ino }, u64::try_from(stat.st_size).unwrap_or(0)))
}
