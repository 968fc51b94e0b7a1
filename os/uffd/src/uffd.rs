//! A userfaultfd and what can be asked of it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use plimsoll_uffd_wire::abi::{self, Api, Features};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::{Event, Events, HostRange, UffdError, sys};

/// What /proc/self/fd shows for a userfaultfd (`anon_inode_getfd_secure` in the kernel's fs/userfaultfd.c).
const LINK: &str = "anon_inode:[userfaultfd]";

/// A userfaultfd. Reading never waits; poll it for POLLIN.
///
/// When the last copy of it, in whichever process, is closed, all ranges stop being watched and all who wait go on:
/// the kernel gives them zero pages, without any limit.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

/// What to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Faults on pages that are not in the file.
    Missing,
    /// The same, and writes to what [`Uffd::write_protect`] protects.
    MissingAndWrites,
}

/// Whether those who wait for what was just done are let go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// They are.
    Yes,
    /// They wait on, for [`Uffd::wake`].
    No,
}

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Filled {
    /// Bytes from the start of the range that are filled now, by this request.
    pub bytes: u64,
    /// Why it did not come further; `None` if all is done.
    pub stopped: Option<Stop>,
}

/// Why filling stopped early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The kernel was interrupted, or the process is just changing its mappings: ask again for the rest, not at once
    /// for ever. Also said when something was filled and then a page was there: asked again, it is [`Stop::Exists`].
    Again,
    /// The next page is there already. Nobody who waits for it was woken.
    Exists,
}

/// Whether protection was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Protection {
    /// On the whole range.
    Changed,
    /// The process is just changing its mappings: ask again, not at once for ever. Some of the range may be done.
    Again,
}

impl Uffd {
    /// A new one for this process, by the system call or, where that is not allowed, from /dev/userfaultfd.
    ///
    /// # Errors
    /// [`UffdError::NotAllowed`] and [`UffdError::Absent`] name the missing setting, [`UffdError::Lacks`] names what
    /// this kernel cannot do of `wanted`.
    pub fn open(wanted: Features) -> Result<Self, UffdError> {
        let missing = wanted.without(Self::offered()?);
        if missing != Features::NONE {
            return Err(UffdError::Lacks { missing });
        }
        let (uffd, _) = Self::made_with(wanted)?;
        Ok(uffd)
    }

    /// What this kernel can do.
    ///
    /// # Errors
    /// [`UffdError::NotAllowed`] and [`UffdError::Absent`].
    pub fn offered() -> Result<Features, UffdError> {
        // The handshake can be made once per descriptor, and one that asks too much spoils it.
        Self::made_with(Features::NONE).map(|(_, offered)| offered)
    }

    fn made_with(wanted: Features) -> Result<(Self, Features), UffdError> {
        let uffd = Self { fd: create()? };
        let mut api = Api { api: abi::API, features: wanted.0, ioctls: 0 };
        sys::request(&uffd.fd, &mut api)
            .map_err(UffdError::kernel("agree with the kernel on a userfaultfd"))?;
        Ok((uffd, Features(api.features)))
    }

    /// Takes over a descriptor that somebody passed who is not trusted: it must be a userfaultfd, and does not block
    /// readers from here on. (It is shared: whoever passed it can make it block again, and so halt who reads it.)
    ///
    /// # Errors
    /// [`UffdError::NotUserfaultfd`]; [`UffdError::Kernel`] without /proc.
    pub fn adopt(fd: OwnedFd) -> Result<Self, UffdError> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let found = rustix::fs::readlink(link, Vec::new())
            .map_err(UffdError::kernel("ask /proc what a descriptor is"))?;
        if found.as_bytes() != LINK.as_bytes() {
            let found = Path::new(found.to_string_lossy().as_ref()).to_owned();
            return Err(UffdError::NotUserfaultfd { fd: fd.as_raw_fd(), found });
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(UffdError::kernel("read a userfaultfd's flags"))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
            .map_err(UffdError::kernel("make a userfaultfd not block"))?;
        Ok(Self { fd })
    }

    /// Another descriptor of the same: as long as one is open somewhere, those who wait wait.
    ///
    /// # Errors
    /// [`UffdError::Kernel`] when there are too many descriptors.
    pub fn copy(&self) -> Result<Self, UffdError> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0);
        Ok(Self { fd: fd.map_err(UffdError::kernel("copy a userfaultfd"))? })
    }

    /// Watches a shared mapping of this process; all of it must be mapped.
    ///
    /// # Errors
    /// [`UffdError::Kernel`]; [`UffdError::Lacks`] where the kernel can watch the range but not serve it.
    pub fn register(&self, range: HostRange, watch: Watch) -> Result<(), UffdError> {
        let mode = match watch {
            Watch::Missing => abi::REGISTER_MISSING,
            Watch::MissingAndWrites => abi::REGISTER_MISSING | abi::REGISTER_WP,
        };
        let mut register = abi::Register { range: range.raw(), mode, ioctls: 0 };
        sys::request(&self.fd, &mut register).map_err(UffdError::kernel("watch a range of memory"))?;
        if watch == Watch::MissingAndWrites && !register.can_be_served() {
            return Err(UffdError::Lacks { missing: Features::SHARED_GUEST });
        }
        Ok(())
    }

    /// Watches the range no longer; who waits goes on, protection is lifted.
    ///
    /// # Errors
    /// [`UffdError::Kernel`].
    pub fn unregister(&self, range: HostRange) -> Result<(), UffdError> {
        let mut raw = abi::Unregister(range.raw());
        sys::request(&self.fd, &mut raw).map_err(UffdError::kernel("watch a range of memory no longer"))
    }

    /// Puts zero pages into the file where the range has none, and lets those go on who wait for what was filled.
    /// Small pages always; for huge ones, fallocate(2) and [`Uffd::wake`].
    ///
    /// # Errors
    /// [`UffdError::Gone`] when the process has ended; [`UffdError::Kernel`] when the range is not watched (ENOENT),
    /// the file ends before (EFAULT), or memory is short (ENOMEM).
    pub fn zeropage(&self, range: HostRange, woken: Woken) -> Result<Filled, UffdError> {
        let mode = if woken == Woken::Yes { 0 } else { abi::ZEROPAGE_DONTWAKE };
        let mut zeropage = abi::Zeropage { range: range.raw(), mode, done: 0 };
        let answer = sys::request(&self.fd, &mut zeropage);
        // Below zero it is an error number, which `answer` has too.
        let bytes = u64::try_from(zeropage.done).unwrap_or(0);
        let stopped = match answer {
            Ok(()) => None,
            Err(Errno::AGAIN | Errno::INTR) => Some(Stop::Again),
            Err(Errno::EXIST) => Some(Stop::Exists),
            Err(errno) => return Err(UffdError::kernel("fill a range with zero pages")(errno)),
        };
        Ok(Filled { bytes, stopped })
    }

    /// Lets all go on who wait on the range: whose page is still missing or protected comes back with a new fault.
    /// That includes those whose fault was read by a process that died since.
    ///
    /// # Errors
    /// [`UffdError::Kernel`].
    pub fn wake(&self, range: HostRange) -> Result<(), UffdError> {
        let mut raw = abi::Wake(range.raw());
        sys::request(&self.fd, &mut raw).map_err(UffdError::kernel("wake who waits on a range"))
    }

    /// Protects the range: whoever writes to it from now on waits, and a fault of the kind
    /// [`FaultKind::WriteProtected`](crate::FaultKind::WriteProtected) tells of it. Pages that are not there are
    /// told of as missing first. (Memory that a device writes to directly, pinned by O_DIRECT, io_uring or VFIO, is
    /// not protected from it.)
    ///
    /// # Errors
    /// [`UffdError::Gone`]; [`UffdError::Kernel`] when the range is not watched for writes (ENOENT).
    pub fn write_protect(&self, range: HostRange) -> Result<Protection, UffdError> {
        self.change_protection(range, abi::PROTECT, "write-protect a range")
    }

    /// Lifts protection.
    ///
    /// # Errors
    /// As [`Uffd::write_protect`].
    pub fn lift_protection(&self, range: HostRange, woken: Woken) -> Result<Protection, UffdError> {
        let mode = if woken == Woken::Yes { 0 } else { abi::LIFT_DONTWAKE };
        self.change_protection(range, mode, "lift the write protection of a range")
    }

    fn change_protection(
        &self,
        range: HostRange,
        mode: u64,
        action: &'static str,
    ) -> Result<Protection, UffdError> {
        let mut raw = abi::WriteProtect { range: range.raw(), mode };
        match sys::request(&self.fd, &mut raw) {
            Ok(()) => Ok(Protection::Changed),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Protection::Again),
            Err(errno) => Err(UffdError::kernel(action)(errno)),
        }
    }

    /// The events there are, as many as `room` has room for. None is not an error.
    ///
    /// An event is read once, by one reader: one who reads a fault and dies leaves a thread that nobody knows of; see
    /// [`Uffd::wake`].
    ///
    /// # Errors
    /// [`UffdError::Kernel`]; [`UffdError::OddRead`].
    pub fn read<'a>(
        &self,
        room: &'a mut Events,
    ) -> Result<impl ExactSizeIterator<Item = Event> + 'a, UffdError> {
        let bytes = match rustix::io::read(&self.fd, room.room()) {
            Ok(bytes) => bytes,
            // Interrupted with nothing read: whoever polls comes back.
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(UffdError::kernel("read a userfaultfd")(errno)),
        };
        room.parse(bytes)
    }
}

/// One from a process that is trusted; else see [`Uffd::adopt`].
impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.fd
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A full userfaultfd, by whichever way is open.
fn create() -> Result<OwnedFd, UffdError> {
    match sys::by_system_call() {
        Ok(fd) => Ok(fd),
        Err(Errno::NOSYS) => Err(UffdError::Absent),
        Err(syscall @ (Errno::PERM | Errno::ACCESS)) => {
            sys::by_device().map_err(|device| UffdError::NotAllowed { syscall, device })
        }
        Err(errno) => Err(UffdError::kernel("make a userfaultfd")(errno)),
    }
}

#[cfg(test)]
mod test {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_a_userfaultfd_is_taken_over() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let number = pipe.as_raw_fd();
        let error = Uffd::adopt(pipe).unwrap_err();
        let UffdError::NotUserfaultfd { fd, found } = &error else { panic!("{error}") };
        assert_eq!(*fd, number);
        assert!(found.to_string_lossy().starts_with("pipe:"), "{}", found.display());
    }

    // Whatever the machine allows: asking for what no kernel has must name it, not spoil the handshake.
    #[test]
    fn features_that_do_not_exist_are_named() {
        let nonsense = Features(1 << 63);
        match Uffd::open(nonsense) {
            Err(UffdError::Lacks { missing }) => assert_eq!(missing, nonsense),
            Err(UffdError::NotAllowed { .. } | UffdError::Absent) => {}
            other => panic!("{other:?}"),
        }
    }
}
