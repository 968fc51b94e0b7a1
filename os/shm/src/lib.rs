//! Shared memory between a keeper and its back end, and the few system calls that go with it: passing
//! file descriptors, event counters, the word of the kernel who is at the other end, the end of a process.
//!
//! Place in the map: `os/`. It knows nothing of rings or balloons; what the words mean is laid down by
//! whoever shares them. What it does not do: no allocation inside the words, no locks, no waiting.
//!
//! ```
//! use std::sync::atomic::Ordering;
//! use plimsoll_shm::SharedWords;
//!
//! let (words, memfd) = SharedWords::create("example", 16)?;
//! words[3].store(7, Ordering::SeqCst);
//! // Another process gets the descriptor and sees the same words.
//! let same = SharedWords::attach(memfd, 16)?;
//! assert_eq!(same[3].load(Ordering::SeqCst), 7);
//! # Ok::<(), plimsoll_shm::ShmError>(())
//! ```

mod error;
mod notify;
mod pass;
mod process;
mod words;

pub use error::ShmError;
pub use notify::Notifier;
pub use pass::{MAX_FDS, Received, receive, send};
pub use process::{Peer, die_with_parent, ended, is_broken, is_ready, peer, process_handle};
pub use words::SharedWords;
