//! The ledger of guest memory: which page is in use, which has been given up, what may be discarded, and what may be populated.
//!
//! Place in the map: pure code of the innermost layer. It calls no kernel and reads no clock. Events come in
//! ([`Ledger::inflate`], [`Ledger::deflate`], [`Ledger::report`], [`Ledger::reset`], [`Ledger::unpin`], [`Ledger::fault`],
//! [`Ledger::removed`], [`Ledger::swept`]), [`Discard`]s and [`Fault::Populate`] go out, and whoever embeds it carries them out.
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
//! # Two kinds of spaces
//! Of an ordinary space ([`Ledger::add_space`]) nobody tells which pages were ever touched. All of it begins as `Present`, and
//! `Reported` is an upper bound.
//!
//! A space *on demand* ([`Ledger::add_space_on_demand`]) begins as `Outstanding`, without memory, and every fault on it comes to
//! [`Ledger::fault`], which gives memory out while the guest has less than its target. For such a space the ledger is exact: it knows
//! which pages have memory behind them, and how many.
//!
//! | from | to | by |
//! | --- | --- | --- |
//! | `Outstanding`, `Ballooned`, `Reported` | `Present` | a fault |
//! | any | `Ballooned`, `Reported` | inflate, report; the VMM removed memory for them |
//! | `Ballooned`, `Reported` | `Outstanding` | deflate, reset |
//! | the same, if the memory never went (I/O) | `Present` | deflate, reset, a fault |
//! | `Present` | `Outstanding` | a sweep; memory removed by others; populating failed; a reboot |
//!
//! * A state is recorded *before* memory moves, and changes no account of memory. What leaves `Present` counts as resident until its
//!   [`Discard`] has been answered ([`Ledger::discarded`], [`Ledger::discard_failed`]): room comes with the answer, not before.
//!   Until then a fault there waits, so that no memory is discarded that came meanwhile. What is to be populated counts at once.
//!   So [`Residency::resident`] is never less than what the kernel counts, and with it the limit is kept at any instant, whatever number
//!   of threads carry actions out, as long as each event is given to the ledger by one at a time.
//! * Populating counts as I/O: until it has been answered ([`Ledger::populated`], [`Ledger::populate_failed`]) such pages are neither
//!   discarded nor swept.
//! * The rest of what is under way (pins, populating, discards, the open batch of a sweep) is known to this process only. After
//!   an attach the kernel is asked where memory is ([`Ledger::correct`]).
//!
//! # What it does not do
//! It discards and populates nothing itself, reads no guest memory, and knows no guest physical addresses. It takes no lock. It trusts its
//! caller: memory that is put into or taken out of a space on demand by anybody else has to be told, and
//! [`Ledger::audit_resident`] is how one notices that it was not.
//!
//! # Examples
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
//!
//! On demand, told of 8 MiB and granted 4:
//! ```
//! use std::sync::atomic::AtomicU64;
//! use plimsoll_frames::{Batch, Extent, Fault, Granule, Ledger, Reuse, SpaceKey};
//! use plimsoll_units::{Bytes, MemTarget, PageCount};
//!
//! let words: Vec<AtomicU64> =
//!     (0..Ledger::words_needed(4, 4).unwrap()).map(|_| AtomicU64::new(0)).collect();
//! let mut ledger = Ledger::format(words, 4, 4).unwrap();
//! let key = SpaceKey { device: 1, inode: 7 };
//! let space = ledger.add_space_on_demand(key, PageCount(2048), Granule::Page).unwrap();
//! ledger.set_target(MemTarget(Bytes::mib(4)));
//!
//! let mut discards = Vec::new();
//! for page in [5, 512] {
//!     let Fault::Populate(frame) = ledger.fault(space, page) else { panic!() };
//!     assert_eq!(frame.count, 512); // fallocate 2 MiB, wake, then:
//!     ledger.populated(frame, Reuse::AtOnce, &mut discards);
//! }
//! let Fault::Exhausted(numbers) = ledger.fault(space, 1024) else { panic!() };
//! assert_eq!(numbers.resident, numbers.limit());
//!
//! ledger.begin_sweep();
//! let mut look_at = Vec::new();
//! assert_eq!(ledger.next_batch(1, &mut look_at), Batch::Scan);
//! assert_eq!(look_at, [Extent { space, first: 512, count: 512 }]); // populated last
//! // Protect ledger.protected() against writes, read these pages; say they are all zero:
//! ledger.swept(&look_at, PageCount(1), &mut discards);
//! for discard in discards.drain(..) {
//!     ledger.discarded(discard); // after punching a hole
//! }
//! ledger.end_batch(); // after lifting the protection
//! assert!(matches!(ledger.fault(space, 1024), Fault::Populate(_)));
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

extern crate alloc;

mod audit;
mod bits;
mod correct;
mod discard;
mod error;
mod events;
mod giving;
mod layout;
mod ledger;
mod maps;
mod pins;
mod populate;
mod reboot;
mod recover;
mod residency;
mod space;
mod state;
mod sweep;
mod table;
mod transit;
mod walk;

#[cfg(test)]
mod test;

pub use correct::Corrected;
pub use discard::{Discard, Extent, RemovedBy, Reuse, Tally};
pub use error::{AuditError, LedgerError, SpaceError};
pub use layout::{MAX_SPACES, peek_counts, peek_residency};
pub use ledger::Ledger;
pub use populate::{Fault, WriteFault};
pub use reboot::Reboot;
pub use recover::Repairs;
pub use residency::{Residency, Totals};
pub use space::{Granule, SpaceId, SpaceKey};
pub use state::{Counts, PageState};
pub use sweep::{Batch, SweepTally};
