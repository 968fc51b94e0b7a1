//! The ledger of guest memory: which page is in use, which has been given up, and what may be discarded.
//!
//! Place in the map: pure code of the innermost layer. It calls no kernel and reads no clock. Events come in
//! ([`Ledger::inflate`], [`Ledger::deflate`], [`Ledger::report`], [`Ledger::reset`], [`Ledger::unpin`]),
//! [`Discard`]s go out, and whoever embeds it carries them out.
//!
//! The ledger's lasting state is an array of words which the caller supplies: shared memory that outlives
//! this process. It has a fixed layout (`layout` module), offsets instead of pointers, and one writer. The writer
//! may be killed between any two stores; [`Ledger::attach`] then finds every page in the state it had before or
//! after the event that was under way.
//!
//! # Words
//! A *space* is one backing file of guest memory, known by device and inode. A *page* is 4 KiB of it, a
//! *frame* 2 MiB, both aligned in the file. A frame's pages mostly share a state, so a frame has one word;
//! only while its pages differ does it borrow a *map* with two bits a page from a pool.
//!
//! # What may be discarded when
//! A page that the present event names may be discarded, because the guest waits for the answer. A page named
//! *earlier* is another matter, and only whole-frame joining ever asks for one:
//!
//! * `Ballooned` earlier, and the guest promised to tell before re-use ([`Reuse::TellsFirst`]): it is still given up,
//!   or else a deflation would have come first. It may be discarded again.
//! * `Ballooned` earlier without that promise: the guest may use it before it says so. Never.
//! * `Reported` earlier: the guest re-uses reported pages without ever saying so. The state only means that the page
//!   was free when it was last heard of. Never, promise or not.
//!
//! # What it does not do
//! It discards nothing itself, knows no guest physical addresses, and does not notice when a guest re-uses a reported
//! page: `Reported` is an upper bound.
//!
//! ```
//! use std::sync::atomic::AtomicU64;
//! use plimsoll_frames::{Extent, Granule, Ledger, Reuse, SpaceKey};
//! use plimsoll_units::{Bytes, PageCount};
//!
//! let words: Vec<AtomicU64> =
//!     (0..Ledger::words_needed(4, 4).unwrap()).map(|_| AtomicU64::new(0)).collect();
//! let mut ledger = Ledger::format(words, 4, 4).unwrap();
//! let space = ledger.add_space(SpaceKey { device: 1, inode: 7 }, PageCount(2048), Granule::Page).unwrap();
//!
//! let mut discards = Vec::new();
//! let first_half = Extent { space, first: 0, count: 256 };
//! let second_half = Extent { space, first: 256, count: 256 };
//! ledger.inflate(&[first_half], Reuse::TellsFirst, &mut discards);
//! assert_eq!(discards[0].len, Bytes::mib(1));
//! discards.clear();
//! ledger.inflate(&[second_half], Reuse::TellsFirst, &mut discards);
//! assert_eq!(discards[0].len, Bytes::mib(2)); // the frame is whole: a huge page can come back
//! assert_eq!(ledger.counts().ballooned, PageCount(512));
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

extern crate alloc;

mod bits;
mod discard;
mod error;
mod events;
mod layout;
mod ledger;
mod pins;
mod recover;
mod space;
mod state;

#[cfg(test)]
mod test;

pub use discard::{Discard, Extent, Reuse, Tally};
pub use error::{AuditError, LedgerError, SpaceError};
pub use layout::{MAX_SPACES, peek_counts};
pub use ledger::Ledger;
pub use recover::Repairs;
pub use space::{Granule, SpaceId, SpaceKey};
pub use state::{Counts, PageState};
