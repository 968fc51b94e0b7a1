//! The functions of the C library that this one stands in for. Each does what the original does, by the same system
//! call, and looks at the arguments or tells of the result where they concern the guest's memory.
//!
//! None can be reached by name from Rust in tests of this crate, whose program would otherwise use them itself.

use libc::{c_int, c_void, off64_t, size_t};
use plimsoll_uffd_wire::handover::Extent;

use crate::calls::{self, Errno, Mmap};
use crate::mapping;
use crate::say::Line;
use crate::told::{Told, told};

/// mmap(2).
///
/// # Safety
/// As the original.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    let before = calls::errno();
    let call = Mmap { address, length, protection, flags, fd, offset };
    // SAFETY: the caller's arguments, on the caller's promise.
    let mapped = unsafe { map(&call) };
    address_or_errno(mapped, before)
}

/// mmap64, which on 64-bit machines is mmap(2).
///
/// # Safety
/// As the original.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    // SAFETY: the caller's arguments, on the caller's promise.
    unsafe { mmap(address, length, protection, flags, fd, offset) }
}

/// munmap(2).
///
/// # Safety
/// As the original.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn munmap(address: *mut c_void, length: size_t) -> c_int {
    let before = calls::errno();
    let piece = mapping::piece(address.addr(), length);
    // SAFETY: the caller's arguments, on the caller's promise.
    let unmapped = unsafe { calls::munmap(address, length) };
    if let (Ok(()), Some(piece), Some(told)) = (unmapped, piece, told()) {
        mapping::unmapped(told, piece);
    }
    zero_or_errno(unmapped, before)
}

/// mremap(2), whose fifth argument is only there with some flags; it is passed on whatever it is.
///
/// # Safety
/// As the original.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mremap(
    old: *mut c_void,
    old_length: size_t,
    length: size_t,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    let before = calls::errno();
    // With an old length of 0 a shared mapping is not moved but made a second time.
    if mapping::piece(old.addr(), old_length.max(1)).is_some() {
        Line::new(
            "refused: this process wants to move its guest's memory by mremap, out of its pager's sight",
        )
        .print();
        return address_or_errno(Err(libc::EINVAL), before);
    }
    // SAFETY: the caller's arguments, on the caller's promise.
    address_or_errno(unsafe { calls::mremap(old, old_length, length, flags, new) }, before)
}

/// madvise(2).
///
/// # Safety
/// As the original.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn madvise(address: *mut c_void, length: size_t, advice: c_int) -> c_int {
    let before = calls::errno();
    // SAFETY: the caller's arguments, on the caller's promise.
    let advised = unsafe { calls::madvise(address, length, advice) };
    let removed = advised.is_ok() && advice == libc::MADV_REMOVE;
    if let (true, Some(piece), Some(told)) = (removed, mapping::piece(address.addr(), length), told()) {
        mapping::punched(told, piece);
    }
    zero_or_errno(advised, before)
}

/// fallocate(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    let before = calls::errno();
    zero_or_errno(allocate(fd, mode, offset, length), before)
}

/// fallocate64, which on 64-bit machines is fallocate(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    fallocate(fd, mode, offset, length)
}

/// What to do with a descriptor, and the size of its file, if it is the guest's memory.
fn guest_memory(fd: c_int) -> Option<(&'static Told, u64)> {
    let told = told()?;
    let file = calls::file(fd)?;
    (file.id == told.file).then_some((told, file.size))
}

unsafe fn map(call: &Mmap) -> Result<usize, Errno> {
    let has_file = call.fd >= 0 && call.flags & libc::MAP_ANONYMOUS == 0;
    if let Some((told, size)) = has_file.then(|| guest_memory(call.fd)).flatten() {
        // SAFETY: the caller's arguments, on the caller's promise.
        return unsafe { mapping::map(told, call, size) };
    }
    // What is mapped where guest memory was takes its place.
    let replaced = (call.flags & libc::MAP_FIXED != 0)
        .then(|| mapping::piece(call.address.addr(), call.length))
        .flatten();
    // SAFETY: the caller's arguments, on the caller's promise.
    let mapped = unsafe { calls::mmap(call) };
    if let (Ok(_), Some(piece), Some(told)) = (mapped, replaced, told()) {
        mapping::unmapped(told, piece);
    }
    mapped
}

fn allocate(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> Result<(), Errno> {
    let Some((told, _)) = guest_memory(fd) else { return calls::fallocate(fd, mode, offset, length) };
    if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 {
        return Err(libc::EOPNOTSUPP);
    }
    calls::fallocate(fd, mode, offset, length)?;
    // The kernel takes neither below zero.
    if let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) {
        mapping::punched(told, Extent { offset, length });
    }
    Ok(())
}

/// What such a function returns; errno is as the call left it, whatever else was done.
fn zero_or_errno(outcome: Result<(), Errno>, before: Errno) -> c_int {
    calls::set_errno(outcome.err().unwrap_or(before));
    if outcome.is_ok() { 0 } else { -1 }
}

fn address_or_errno(outcome: Result<usize, Errno>, before: Errno) -> *mut c_void {
    calls::set_errno(outcome.err().unwrap_or(before));
    outcome.map_or(libc::MAP_FAILED, core::ptr::with_exposed_provenance_mut)
}
