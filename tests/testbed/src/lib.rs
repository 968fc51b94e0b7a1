//! Boots real guests and puts everything back afterwards.
//!
//! Place in the map: `tests/`. Used by the end-to-end tests, by `cargo xtask` and by whoever measures.
//! It starts User Mode Linux and QEMU guests from images it builds itself ([`images`]), talks to the workload that
//! runs in them over their console ([`guest::Console`]), reads the host's own counters ([`host`]), and gives back
//! processes, control groups, swap and files whatever happens to the test ([`guard`]).
//!
//! What it does not do: it starts no Plimsoll programs of its own accord (it only finds them, [`bins`]), installs
//! nothing (`cargo xtask setup` does) and takes no figure from Plimsoll, so that Plimsoll can be measured with it.
//!
//! ```no_run
//! use std::time::Duration;
//! use plimsoll_testbed::{guest::UmlSpec, images};
//! use plimsoll_units::Bytes;
//!
//! # fn main() -> Result<(), plimsoll_testbed::BedError> {
//! let guest = UmlSpec::new("example", Bytes::mib(128), images::uml()?).boot()?;
//! let before = guest.resident()?;
//! guest.send("fill 64M", Duration::from_secs(30))?;
//! assert!(guest.resident()?.minus(before) > Bytes::mib(60));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod bins;
mod error;
pub mod guard;
pub mod guest;
pub mod host;
pub mod images;
pub mod paths;
pub mod skip;
pub mod wait;

pub use error::BedError;
