//! Sizes, addresses and times as types, so that a balloon is never mistaken for a target.
//!
//! Place in the map: the innermost crate. It depends on nothing of ours, knows no I/O and no clock.
//!
//! Two quantities of this field are opposites and are both called "balloon size" somewhere:
//! [`BalloonSize`] counts pages *inside* the balloon (virtio `num_pages`), [`MemTarget`] counts bytes
//! *left to the guest* (QMP `balloon`, Xen's memory target). One turns into the other only by the two
//! functions here, which need the guest's `maxmem` to do it.
//!
//! ```
//! use plimsoll_units::{BalloonSize, Bytes, MemTarget, PageCount};
//! let maxmem = Bytes::mib(256);
//! let balloon = BalloonSize(PageCount(16384)); // 64 MiB
//! assert_eq!(MemTarget::from_balloon(maxmem, balloon), MemTarget(Bytes::mib(192)));
//! assert_eq!(MemTarget(Bytes::mib(192)).balloon(maxmem), balloon);
//! assert_eq!("1.5GiB".parse::<Bytes>().unwrap().to_string(), "1536M");
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

extern crate alloc;

mod addr;
mod bytes;
mod parse;
mod ratio;
mod time;

pub use addr::{BalloonPfn, FrameIndex, Gfn, Gpa};
pub use bytes::{BalloonSize, Bytes, MemTarget, PageCount};
pub use parse::ParseSizeError;
pub use ratio::Ppm;
pub use time::MonoTime;

/// Bytes in a page: what the guest's balloon driver counts in
/// (`VIRTIO_BALLOON_PFN_SHIFT` = 12, virtio 1.3 section 5.5.6), whatever the guest's own page size.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes in a frame: the unit of the ledger, and x86-64's huge page.
pub const FRAME_SIZE: u64 = 2 * 1024 * 1024;

/// Pages in a frame.
pub const PAGES_PER_FRAME: u64 = FRAME_SIZE / PAGE_SIZE;
