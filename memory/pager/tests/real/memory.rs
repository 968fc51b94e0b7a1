//! A guest's memory, mapped in this process, and its accesses.
#![expect(unsafe_code, reason = "maps memory and touches it as a guest would")]

use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Words of a page.
pub(crate) const WORDS: u64 = PAGE_SIZE / 8;

/// Memory mapped once, beginning where a huge page may.
pub(crate) struct Mapped {
    reserved: NonNull<u8>,
    reserved_len: usize,
    start: NonNull<u64>,
    len: u64,
}

// SAFETY: all access is by volatile words, of memory that lives as long as this.
unsafe impl Send for Mapped {}
// SAFETY: as above; who shares a page with another thread expects either's words.
unsafe impl Sync for Mapped {}

impl Mapped {
    pub(crate) fn new(memfd: &OwnedFd, len: u64) -> Self {
        let frame = usize::try_from(FRAME_SIZE).unwrap();
        let map_len = usize::try_from(len).unwrap();
        let reserved_len = map_len + frame;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                reserved_len,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }
        .unwrap();
        let aligned = reserved.map_addr(|address| address.next_multiple_of(frame));
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: replaces a piece of the mapping just made, which nobody else knows of.
        let start = unsafe { rustix::mm::mmap(aligned, map_len, access, kind, memfd, 0) }.unwrap();
        Self {
            reserved: NonNull::new(reserved.cast()).unwrap(),
            reserved_len,
            start: NonNull::new(start.cast()).unwrap(),
            len,
        }
    }

    pub(crate) fn address(&self) -> u64 {
        u64::try_from(self.start.as_ptr().addr()).unwrap()
    }

    fn at(&self, page: u64, word: u64) -> *mut u64 {
        let offset = page * PAGE_SIZE + word * 8;
        assert!(word < WORDS && offset < self.len);
        self.start.as_ptr().wrapping_add(usize::try_from(offset / 8).unwrap())
    }

    pub(crate) fn read(&self, page: u64, word: u64) -> u64 {
        // SAFETY: inside the mapping, which is readable, and aligned.
        unsafe { self.at(page, word).read_volatile() }
    }

    pub(crate) fn write(&self, page: u64, word: u64, value: u64) {
        // SAFETY: inside the mapping, which is writable, and aligned.
        unsafe { self.at(page, word).write_volatile(value) };
    }

    pub(crate) fn advise(&self, page: u64, pages: u64, advice: Advice) {
        let len = usize::try_from(pages * PAGE_SIZE).unwrap();
        assert!((page + pages) * PAGE_SIZE <= self.len);
        // SAFETY: inside the mapping; nobody holds a reference into it.
        unsafe { rustix::mm::madvise(self.at(page, 0).cast(), len, advice) }.unwrap();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what `new` reserved; the last user drops it.
        unsafe { rustix::mm::munmap(self.reserved.as_ptr().cast(), self.reserved_len) }.unwrap();
    }
}

/// A descriptor that this process was started with.
pub(crate) fn inherited(number: &str) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: whoever started this process passed it for us alone.
    unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) }
}
