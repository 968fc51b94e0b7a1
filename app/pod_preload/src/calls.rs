//! The system calls. Those of the hooked names are made without the C library's functions, which are hooked.

use core::ffi::CStr;

use libc::{c_int, c_long, c_void};
use plimsoll_uffd_wire::agreement::FileId;

/// An error number of the kernel.
pub(crate) type Errno = c_int;

/// The arguments of mmap(2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mmap {
    pub(crate) address: *mut c_void,
    pub(crate) length: usize,
    pub(crate) protection: c_int,
    pub(crate) flags: c_int,
    pub(crate) fd: c_int,
    pub(crate) offset: i64,
}

/// What statx(2) says of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    pub(crate) id: FileId,
    pub(crate) size: u64,
}

/// This thread's errno.
pub(crate) fn errno() -> Errno {
    // SAFETY: has no preconditions.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the C library gives every thread a place of its own that is always valid.
    unsafe { *place }
}

/// Sets this thread's errno.
pub(crate) fn set_errno(errno: Errno) {
    // SAFETY: has no preconditions.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as in `errno`; nobody else has a reference to it.
    unsafe { *place = errno }
}

/// What the C library's functions answer: -1 means that errno says why.
fn checked<T: PartialEq + From<i8>>(answer: T) -> Result<T, Errno> {
    if answer == T::from(-1) { Err(errno()) } else { Ok(answer) }
}

/// # Safety
/// As mmap(2): with MAP_FIXED it replaces what is mapped there.
pub(crate) unsafe fn mmap(call: &Mmap) -> Result<usize, Errno> {
    let (protection, flags, fd) =
        (c_long::from(call.protection), c_long::from(call.flags), c_long::from(call.fd));
    // SAFETY: the caller's arguments, on the caller's promise.
    let answer = unsafe {
        libc::syscall(libc::SYS_mmap, call.address, call.length, protection, flags, fd, call.offset)
    };
    checked(answer).map(|address| usize::try_from(address).unwrap_or(0))
}

/// # Safety
/// As munmap(2).
pub(crate) unsafe fn munmap(address: *mut c_void, length: usize) -> Result<(), Errno> {
    // SAFETY: the caller's arguments, on the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_munmap, address, length) }).map(|_| ())
}

/// # Safety
/// As mremap(2).
pub(crate) unsafe fn mremap(
    old: *mut c_void,
    old_length: usize,
    length: usize,
    flags: c_int,
    new: *mut c_void,
) -> Result<usize, Errno> {
    let flags = c_long::from(flags);
    // SAFETY: the caller's arguments, on the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_mremap, old, old_length, length, flags, new) };
    checked(answer).map(|address| usize::try_from(address).unwrap_or(0))
}

/// # Safety
/// As madvise(2): some advice takes memory away.
pub(crate) unsafe fn madvise(address: *mut c_void, length: usize, advice: c_int) -> Result<(), Errno> {
    // SAFETY: the caller's arguments, on the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_madvise, address, length, c_long::from(advice)) }).map(|_| ())
}

/// mprotect(2), of a mapping that nobody but this library knows of yet.
pub(crate) fn mprotect(address: usize, length: usize, protection: c_int) -> Result<(), Errno> {
    let address: *mut c_void = core::ptr::with_exposed_provenance_mut(address);
    // SAFETY: no reference into the mapping exists that could be broken.
    checked(unsafe { libc::mprotect(address, length, protection) }).map(|_| ())
}

pub(crate) fn fallocate(fd: c_int, mode: c_int, offset: i64, length: i64) -> Result<(), Errno> {
    let (fd, mode) = (c_long::from(fd), c_long::from(mode));
    // SAFETY: no pointers.
    checked(unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, offset, length) }).map(|_| ())
}

/// Which file a descriptor is of; `None` for what is none.
pub(crate) fn file(fd: c_int) -> Option<File> {
    // SAFETY: integers and arrays of them, for which all zeros are a value.
    let mut found: libc::statx = unsafe { core::mem::zeroed() };
    let mask = libc::STATX_INO | libc::STATX_SIZE;
    // SAFETY: an empty path, a descriptor of the caller's, and a structure of the kernel's to write into.
    let answer = unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut found) };
    checked(answer).ok()?;
    let id = FileId { major: found.stx_dev_major, minor: found.stx_dev_minor, inode: found.stx_ino };
    Some(File { id, size: found.stx_size })
}

pub(crate) fn process_id() -> c_int {
    // SAFETY: has no preconditions.
    unsafe { libc::getpid() }
}

/// Milliseconds of a clock that only goes forward.
pub(crate) fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a structure of ours to write into. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let within = u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
    seconds.saturating_mul(1000).saturating_add(within)
}

/// Closes a descriptor; what is none is left alone.
pub(crate) fn close(fd: c_int) {
    if fd >= 0 {
        // SAFETY: a descriptor that this library made and uses no more.
        unsafe { libc::close(fd) };
    }
}

pub(crate) fn open_device(path: &CStr) -> Result<c_int, Errno> {
    // SAFETY: a path that ends; no file is made, so there is no third argument.
    checked(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })
}

/// Writes what can be written at once to standard error.
pub(crate) fn write_error(bytes: &[u8]) {
    // SAFETY: reads no more than the slice has. That it fails can be told to nobody.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

/// Ends the process at once, without its exit handlers, which might touch memory that nobody serves.
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: has no preconditions.
    unsafe { libc::_exit(code) }
}

#[cfg(all(panic = "abort", not(test)))]
pub(crate) fn abort() -> ! {
    // SAFETY: has no preconditions.
    unsafe { libc::abort() }
}

/// userfaultfd(2).
pub(crate) fn userfaultfd(flags: c_int) -> Result<c_int, Errno> {
    // SAFETY: no pointers.
    let answer = checked(unsafe { libc::syscall(libc::SYS_userfaultfd, c_long::from(flags)) })?;
    c_int::try_from(answer).map_err(|_| libc::EBADF)
}

/// ioctl(2) with a number as its argument.
pub(crate) fn ioctl_number(fd: c_int, code: u32, argument: c_int) -> Result<c_int, Errno> {
    // SAFETY: the request is to a device of the kernel's that takes a number.
    checked(unsafe { libc::ioctl(fd, libc::Ioctl::from(code), c_long::from(argument)) })
}

/// ioctl(2) with the structure that belongs to the request.
pub(crate) fn ioctl<R: plimsoll_uffd_wire::abi::Request>(fd: c_int, argument: &mut R) -> Result<(), Errno> {
    // SAFETY: `R` is what the kernel's header gives for this request; all its bytes may be written.
    checked(unsafe { libc::ioctl(fd, libc::Ioctl::from(R::CODE), core::ptr::from_mut(argument)) }).map(|_| ())
}

/// A new socket for whole messages that never blocks.
pub(crate) fn socket() -> Result<c_int, Errno> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    checked(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })
}

pub(crate) fn connect(socket: c_int, address: &libc::sockaddr_un) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).unwrap_or(0);
    // SAFETY: an address of that length.
    checked(unsafe { libc::connect(socket, core::ptr::from_ref(address).cast(), length) }).map(|_| ())
}

/// The most control data that is sent: two descriptors (cmsg(3)).
#[repr(C)]
struct Rights {
    length: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; 2],
}

/// Sends one message, with two descriptors if there are any.
pub(crate) fn send(socket: c_int, message: &[u8], fds: Option<[c_int; 2]>) -> Result<(), Errno> {
    let mut part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    let mut rights = Rights {
        length: size_of::<Rights>(),
        level: libc::SOL_SOCKET,
        kind: libc::SCM_RIGHTS,
        fds: fds.unwrap_or([-1; 2]),
    };
    let control = if fds.is_some() { size_of::<Rights>() } else { 0 };
    let header = libc::msghdr {
        msg_name: core::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: &raw mut part,
        msg_iovlen: 1,
        msg_control: (&raw mut rights).cast(),
        msg_controllen: control,
        msg_flags: 0,
    };
    // SAFETY: the header and what it points to live until the call returns, and are only read.
    checked(unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
        .map(|_| ())
}

/// Receives one message, as many bytes of it as there is room for.
pub(crate) fn receive(socket: c_int, room: &mut [u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: writes no more than the slice has.
    let answer = unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), flags) };
    checked(answer).map(|bytes| usize::try_from(bytes).unwrap_or(0))
}

/// Waits until a socket is ready (POLLIN or POLLOUT), at most so long. Interrupted, it returns early.
pub(crate) fn wait(socket: c_int, events: libc::c_short, milliseconds: u64) {
    let mut one = libc::pollfd { fd: socket, events, revents: 0 };
    let limit = c_int::try_from(milliseconds).unwrap_or(c_int::MAX);
    // SAFETY: one structure of ours. A descriptor below 0 is waited for in vain, which is a sleep.
    unsafe { libc::poll(&raw mut one, 1, limit) };
}
