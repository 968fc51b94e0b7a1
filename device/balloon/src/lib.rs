//! The virtio memory balloon, free of any transport.
//!
//! Place in the map: `device`. It stands on `plimsoll-frames` (the ledger) and the rust-vmm crates `virtio-queue` and
//! `vm-memory`; a transport (vhost-user, or a VMM's own virtio) pops descriptor chains, hands each to
//! [`Balloon::handle`], and puts on the used ring what comes back.
//!
//! Implements virtio 1.3, section 5.5: inflation, deflation, statistics (with all sixteen tags of Linux'
//! `include/uapi/linux/virtio_balloon.h`), `MUST_TELL_HOST`, `DEFLATE_ON_OOM`, `PAGE_POISON` and `PAGE_REPORTING`. Free page
//! hinting is not offered. See [`Features`] for what is, and why some bits never are.
//!
//! # What it promises
//! * **Only what was named is discarded.** A page is given back to the host only while the guest waits for the answer to a
//!   chain that names it, or joined to a whole 2 MiB frame out of pages that the guest has promised not to touch
//!   (`plimsoll-frames` has the rules). Page 0 is never taken as named, see [`Counters::zero_pfns`].
//! * **Discarded before answered.** [`Balloon::handle`] returns after the kernel has; nothing is discarded later
//!   but by [`Balloon::unpin`], by that same promise.
//! * **Everything is answered.** Whatever is wrong with a chain is counted in [`Counters`] and the chain completed, so that
//!   no driver waits for ever. The one exception is the statistics buffer, which the device holds by design.
//! * **A guest cannot make it panic, loop, or grow.** A chain can name at most twice the guest's pages, and
//!   2^20 in all; the rest of it is ignored.
//!
//! # What lasts
//! Configuration ([`SharedConfig`]) and ledger live in words of the caller's. A device made anew over the same words, with
//! the same memory and features, goes on where the other was killed; chains that were in flight are handled
//! again, which is harmless: pages count once, and the guest still waits for them.
//!
//! ```
//! use std::sync::atomic::AtomicU64;
//! use plimsoll_balloon::{Balloon, Features, FileDiscarder, FileRegion, Role, SharedConfig};
//! use plimsoll_frames::Ledger;
//! use plimsoll_units::{BalloonSize, Bytes, Gpa, PageCount};
//!
//! fn words(n: usize) -> Vec<AtomicU64> {
//!     (0..n).map(|_| AtomicU64::new(0)).collect()
//! }
//!
//! let memory = Bytes::mib(64);
//! let frames = Ledger::frames_for(memory);
//! let ledger = Ledger::format(words(Ledger::words_needed(frames, frames)?), frames, frames)?;
//! let config = SharedConfig::new(words(SharedConfig::WORDS))?;
//! let mut balloon = Balloon::new(config, ledger, FileDiscarder::default(), Features::DEFAULT);
//!
//! let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?;
//! rustix::fs::ftruncate(&file, memory.0)?;
//! balloon.replace_memory(vec![FileRegion { gpa: Gpa(0), len: memory, offset: Bytes::ZERO, file }])?;
//! balloon.set_acked_features(Features::DEFAULT.0);
//! balloon.config().set_num_pages(BalloonSize(PageCount(256))); // then tell the driver that the configuration changed
//! assert_eq!(balloon.role(0), Some(Role::Inflate));
//! // ... for each chain popped from queue 0: balloon.handle(Role::Inflate, chain)
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

mod anonymous;
mod config;
mod counters;
mod device;
mod discard;
mod engine;
mod features;
mod file;
mod memory;
mod pages;
mod stats;

#[cfg(test)]
mod test;

pub use anonymous::{AnonymousDiscarder, AnonymousError};
pub use config::{Accepted, ConfigError, SharedConfig};
pub use counters::Counters;
pub use device::{Balloon, Outcome};
pub use discard::{DiscardError, Discarder};
pub use features::{Features, Role, queue_count, queue_role};
pub use file::{FileDiscarder, FileError, FileFacts, FileRegion, ReplaceError};
pub use memory::{Lookup, MapError, MemoryMap, Region};
pub use stats::{Stats, TAG_NAMES};
