//! The vhost-user transport: messages and rings, and nothing of what they carry.
//!
//! Place in the map: `device/`. A device plugs in by the trait [`Device`]; a [`Session`] gives it buffers
//! and carries its answers back. What the wire and the rings are made of stays here.
//!
//! * [`wire`]: the messages. The keeper uses this part alone.
//! * [`layout`]: what a keeper and its back end share, so that a back end may be killed between any two
//!   stores and its successor goes on.
//! * [`handover`]: what a keeper gives a back end to begin with, also one that serves no device.
//!
//! What it does not do: it knows no device, opens nothing, and never waits; whoever owns a [`Session`] polls
//! the descriptors it names.
//!
//! ```
//! use plimsoll_vhost_user::wire::{Message, Request, flag};
//!
//! let payload = [0u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat();
//! let message = Message { code: 18, flags: flag::VERSION, payload, fds: Vec::new() };
//! assert!(matches!(Request::parse(message)?, Request::SetVringEnable { ring: 0, on: true }));
//!
//! let cut_short = Message { code: 18, flags: flag::VERSION, payload: vec![0; 7], fds: Vec::new() };
//! assert!(Request::parse(cut_short).is_err());
//! # Ok::<(), plimsoll_vhost_user::wire::WireError>(())
//! ```
#![forbid(unsafe_code)]

mod device;
pub mod handover;
pub mod layout;
mod memory;
mod polls;
mod ring;
mod session;
mod slot;
mod throttle;
pub mod wire;

pub use device::{Chain, Device, Outcome};
pub use memory::{MappedRegion, Memory, MemoryError};
pub use polls::Polls;
pub use ring::{Ring, RingError, RingPlace};
pub use session::{Session, SessionError};
pub use throttle::Throttle;
