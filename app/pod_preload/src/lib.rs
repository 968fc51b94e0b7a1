//! Preloaded into an unmodified VMM (LD_PRELOAD), so that a pager serves the faults of its guest's memory.
//!
//! Place in the map: `app/`, next to the programs. `plimsoll run` puts it into a VMM whose guest is told of more
//! memory than it is granted. It sees the VMM map one file, which it was told of by device and inode: its guest's
//! memory. It then watches the mapping with a userfaultfd, hands that and the file over to the pager, and lets
//! mmap(2) return when the pager has accepted. From then on it passes on which memory the VMM gives back
//! by calls that the kernel tells nobody of. Every other file it leaves alone.
//!
//! | the VMM calls | on its guest's memory |
//! | --- | --- |
//! | mmap | the whole of it, shared, once: watched. Anything else ends the process: its faults would not be seen. Wishes to fill it at once (MAP_POPULATE, MAP_LOCKED, an earlier mlockall) are not fulfilled: it is filled as it is touched, and locked then |
//! | fallocate | a hole is made and told of; anything else is refused (EOPNOTSUPP), for it would fill memory |
//! | madvise | MADV_REMOVE is told of. MADV_DONTNEED gives nothing of a shared mapping back, and is not |
//! | munmap | told of. After the whole was unmapped it may be mapped again |
//! | mremap | refused (EINVAL): the kernel would stop watching |
//! | fork | the child does not have the mapping (MADV_DONTFORK): its faults would not be seen |
//!
//! How it is told: [`plimsoll_uffd_wire::agreement`]. What it says to the pager, and why it does not wait for an answer
//! when memory is given back: [`plimsoll_uffd_wire::handover`]. What a person must know goes to standard error,
//! after `plimsoll-pod: `.
//!
//! A mlockall(2) or mlock(2) *after* the mapping touches all of it, and waits for the pager as any other touch does:
//! beyond the limit, for ever.
//!
//! What it does not do: it serves no fault, sees no call that does not go through the C library's function of that
//! name, and does not see a second process map the same file. The pager compares its ledger with the file for
//! what slips through.
//!
//! It is code in somebody else's process, on every call of these names: no allocation, no lock, no panic, errno as the
//! call left it, and no state but a few atomics. It does without the standard library: in a build with
//! `panic = "abort"`, which is how it ships (`--profile agent`). A build that unwinds, for tests, links it because
//! a library without it cannot be built to unwind; nothing here uses it.
//!
//! **QEMU's memory backend.** The file must be known before QEMU runs. Tried with QEMU 7.2:
//!
//! | backend | |
//! | --- | --- |
//! | `memory-backend-file,share=on,align=2M,mem-path=/proc/self/fd/N` on an inherited, sealed memfd | works; mapped once; what is used |
//! | the same without `align=2M` | works, but QEMU maps it at an odd page, where no huge page fits |
//! | `mem-path=/dev/fdset/N` with `-add-fd` | refused: this backend opens the path itself |
//! | `memory-backend-memfd` | QEMU makes the file, whose inode nobody knows before |
//!
//! The memfd must have its size before (else QEMU sets it, which the seals forbid) and must be inherited, that is, not
//! be closed on exec.
//!
//! LD_PRELOAD is forgotten when the mapping was handed over and not before, so that it survives programs that start
//! the VMM by execve(2), such as nice(1) or a shell.
#![cfg_attr(all(panic = "abort", not(test)), no_std)]
#![expect(unsafe_code, reason = "it stands in for functions of the C library and calls the kernel")]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
compile_error!("this library stands in for functions of glibc on 64-bit Linux");

mod calls;
mod environment;
pub mod hooks;
mod mapping;
mod pager;
mod say;
mod told;
mod userfaultfd;

/// Nothing here panics; if it did, there would be nobody to tell.
#[cfg(all(panic = "abort", not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    calls::abort()
}
