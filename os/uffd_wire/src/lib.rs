//! userfaultfd without the standard library: the kernel's layouts, and how a VMM hands one over.
//!
//! Place in the map: `os/`, beside `plimsoll-uffd`, which does the calls and the receiving. This crate is apart
//! because it is also linked into the library that is preloaded into VMMs, which must stay as small as it gets:
//! it has no dependencies, no allocation and no system calls.
//!
//! * [`abi`]: structures, requests and features of the kernel's `linux/userfaultfd.h`;
//! * [`handover`]: messages between that library and whoever serves the faults;
//! * [`agreement`]: how the library is told what to do, and how it says why it ended its process.
//!
//! ```
//! use plimsoll_uffd_wire::handover::{Extent, ToPager};
//! let message = ToPager::Punched { extent: Extent { offset: 8192, length: 4096 }, lost: 0 };
//! assert_eq!(ToPager::decode(&message.encode()), Ok(message));
//! assert!(ToPager::decode(b"anything else").is_err());
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod agreement;
pub mod handover;
