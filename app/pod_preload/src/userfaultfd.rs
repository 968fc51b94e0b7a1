//! The userfaultfd of this process's mapping.

use libc::{c_int, c_void};
use plimsoll_uffd_wire::abi::{self, Api, Features, Range, Register};
use plimsoll_uffd_wire::agreement::exit;

use crate::calls::{self, Errno};
use crate::say::Line;

/// Watches the mapping for missing pages and for writes to protected ones; ends the process if that cannot be.
pub(crate) fn watch(start: u64, length: u64) -> c_int {
    let uffd = open();
    let mut api = Api { api: abi::API, features: Features::SHARED_GUEST.0, ioctls: 0 };
    match calls::ioctl(uffd, &mut api) {
        Ok(()) => {}
        Err(libc::EINVAL) => Line::new(
            "this kernel's userfaultfd lacks what it takes to serve a guest's shared memory; it needs ",
        )
        .and("Linux 5.19 or later, with CONFIG_PTE_MARKER_UFFD_WP")
        .end(exit::KERNEL),
        Err(errno) => failed("cannot agree with the kernel on a userfaultfd", errno),
    }
    let range = Range { start, len: length };
    let mode = abi::REGISTER_MISSING | abi::REGISTER_WP;
    let mut register = Register { range, mode, ioctls: 0 };
    match calls::ioctl(uffd, &mut register) {
        Ok(()) if register.can_be_served() => {}
        Ok(()) => Line::new("this kernel can watch the guest's memory and not serve it").end(exit::KERNEL),
        Err(errno) => failed("cannot watch the guest's memory with a userfaultfd", errno),
    }
    keep_from_children(start, length);
    uffd
}

/// A child's copy of the mapping would not be watched, and its faults would be served without limit.
fn keep_from_children(start: u64, length: u64) {
    let address: *mut c_void = core::ptr::with_exposed_provenance_mut(usize::try_from(start).unwrap_or(0));
    let length = usize::try_from(length).unwrap_or(0);
    // SAFETY: the VMM's mapping, which stays as it is in this process.
    if let Err(errno) = unsafe { calls::madvise(address, length, libc::MADV_DONTFORK) } {
        failed("cannot keep the guest's memory from child processes", errno);
    }
}

fn open() -> c_int {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    match calls::userfaultfd(flags) {
        Ok(uffd) => uffd,
        Err(libc::EPERM | libc::EACCES) => by_device(flags).unwrap_or_else(|errno| not_allowed(errno)),
        Err(libc::ENOSYS) => {
            Line::new("this kernel has no userfaultfd: it needs CONFIG_USERFAULTFD=y").end(exit::KERNEL)
        }
        Err(errno) => failed("cannot make a userfaultfd", errno),
    }
}

fn by_device(flags: c_int) -> Result<c_int, Errno> {
    let device = calls::open_device(c"/dev/userfaultfd")?;
    let uffd = calls::ioctl_number(device, abi::DEVICE_NEW, flags);
    calls::close(device);
    uffd
}

fn not_allowed(device: Errno) -> ! {
    Line::new("the kernel gives this process no userfaultfd that also sees the kernel's own accesses: run it with ")
        .and("CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1 (sysctl), or let its user read and write ")
        .and("/dev/userfaultfd (Linux 6.1 and later). One for faults of user mode only would not do: KVM, vhost and ")
        .and("system calls would fail instead of waiting (/dev/userfaultfd")
        .errno(device)
        .and(")")
        .end(exit::KERNEL)
}

fn failed(what: &str, errno: Errno) -> ! {
    Line::new(what).errno(errno).end(exit::KERNEL)
}
