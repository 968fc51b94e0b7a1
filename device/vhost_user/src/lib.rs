//! The vhost-user transport: messages and rings, and nothing of what they carry.
//!
//! Place in the map: `device/`. A device plugs in by the trait [`Device`]; a [`Session`] gives it buffers
//! and carries its answers back. What the wire and the rings are made of stays here.
//!
//! * [`wire`]: the messages. The keeper uses this part alone.
//! * [`layout`]: what a keeper and its back end share, so that a back end may be killed between any two
//!   stores and its successor goes on.
#![forbid(unsafe_code)]

mod device;
pub mod handover;
pub mod layout;
mod memory;
mod ring;
mod session;
mod throttle;
pub mod wire;

pub use device::{Chain, Device, Outcome};
pub use memory::{MappedRegion, Memory, MemoryError};
pub use ring::{Ring, RingError, RingPlace};
pub use session::{Session, SessionError};
pub use throttle::Throttle;
