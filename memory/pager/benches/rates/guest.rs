//! Memory of a guest that is a thread.
#![expect(unsafe_code, reason = "maps memory and touches it as a guest would")]

use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use plimsoll_uffd::HostRange;
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};
use rustix::mm::{MapFlags, ProtFlags};

/// A mapping that lasts as long as the program, beginning where a huge page may.
pub(crate) struct Mapping {
    start: NonNull<u64>,
    len: usize,
}

impl Mapping {
    pub(crate) fn new(memory: &OwnedFd, len: u64) -> Self {
        let (len, frame) = (index(len), index(FRAME_SIZE));
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len + frame,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }
        .expect("addresses");
        let aligned = reserved.map_addr(|address| address.next_multiple_of(frame));
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: replaces a piece of the mapping just made, which nobody else knows of.
        let start = unsafe { rustix::mm::mmap(aligned, len, access, kind, memory, 0) }.expect("a mapping");
        Self { start: NonNull::new(start.cast()).expect("not at address 0"), len }
    }

    pub(crate) fn range(&self) -> HostRange {
        let bytes = |n: usize| u64::try_from(n).expect("64 bits");
        HostRange::new(bytes(self.start.as_ptr().addr()), bytes(self.len)).expect("whole pages")
    }

    fn words(&self, from: usize) -> impl Iterator<Item = *mut u64> {
        let start = self.start.as_ptr();
        (from..self.len / 8).step_by(index(PAGE_SIZE / 8)).map(move |word| start.wrapping_add(word))
    }

    /// Writes a word to every page.
    pub(crate) fn write(&self, value: u64) {
        for word in self.words(0) {
            // SAFETY: inside the mapping, which is writable, and aligned.
            unsafe { word.write_volatile(value) };
        }
    }

    /// Writes the last word of every page.
    pub(crate) fn write_last(&self, value: u64) {
        for word in self.words(index(PAGE_SIZE / 8) - 1) {
            // SAFETY: inside the mapping, which is writable, and aligned.
            unsafe { word.write_volatile(value) };
        }
    }

    /// Reads a word of every page.
    pub(crate) fn read(&self) {
        for word in self.words(0) {
            // SAFETY: inside the mapping, which is readable, and aligned.
            unsafe { word.read_volatile() };
        }
    }
}

pub(crate) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64 bits")
}
