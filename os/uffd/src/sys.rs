//! The system calls, and all the unsafe code of this crate.
#![expect(unsafe_code, reason = "ioctl(2) on a userfaultfd has no safe call in rustix")]

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use plimsoll_uffd_wire::abi::{self, Request};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::UserfaultfdFlags;

/// A new userfaultfd from the system call, closed on exec, that does not block readers.
pub(crate) fn by_system_call() -> Result<OwnedFd, Errno> {
    // SAFETY: what makes the call unsafe is what may be done with the descriptor: pages that are missing appear.
    // This crate can fill them with zeros only, which is what the kernel would do without it, and cannot
    // change or take away what is there.
    unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }
}

/// The same from /dev/userfaultfd.
pub(crate) fn by_device() -> Result<OwnedFd, Errno> {
    let device = rustix::fs::open(abi::DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let new = New { flags: usize::try_from(flags.bits()).map_err(|_| Errno::INVAL)? };
    // SAFETY: the device answers this request with a descriptor; other files answer ENOTTY.
    unsafe { rustix::ioctl::ioctl(&device, new) }
}

/// Carries out a request. The kernel may have written into `argument`, also when it refuses.
pub(crate) fn request<R: Request>(uffd: impl AsFd, argument: &mut R) -> Result<(), Errno> {
    // SAFETY: `R` is the argument that the kernel's header gives for this request (`plimsoll_uffd_wire::abi`; its
    // tests compare sizes and numbers). What requests may do to memory: see `by_system_call`.
    unsafe { rustix::ioctl::ioctl(uffd, Call(argument)) }
}

/// A request whose argument is a structure.
struct Call<'a, R>(&'a mut R);

// SAFETY: the pointer is to a live structure of the size that the number says, and all its bytes may be written:
// they are integers.
unsafe impl<R: Request> Ioctl for Call<'_, R> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        R::CODE
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut rustix::ffi::c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// The request to /dev/userfaultfd. Its argument is a number where others have a pointer.
struct New {
    flags: usize,
}

// SAFETY: the kernel does not use the argument as an address, and answers with a new descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        abi::DEVICE_NEW
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::without_provenance_mut(self.flags)
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut rustix::ffi::c_void) -> Result<OwnedFd, Errno> {
        if fd < 0 {
            return Err(Errno::BADF);
        }
        // SAFETY: the kernel has just made this descriptor for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
