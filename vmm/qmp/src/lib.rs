//! A typed client for QEMU's machine protocol (QMP) over a Unix socket.
//!
//! Place in the map: `vmm/`, beside the other VMM interfaces; used by the daemon, the command line and the
//! testbed. It speaks the dozen commands Plimsoll needs (QEMU's `docs/interop/qmp-spec.rst`, QEMU 7.2 to 11)
//! and hands on a few events. It decides nothing, keeps no thread and spawns no task: whoever owns a
//! [`QmpClient`] drives it by calling it.
//!
//! A VMM is trusted no further than its guest, which may have taken it over. Lines are limited to
//! [`MAX_LINE`], kept texts to a few hundred characters, queued events to [`MAX_EVENTS`], unanswered commands to
//! [`MAX_OUTSTANDING`]; every call ends within its time-out; numbers of the guest that are no numbers become
//! `None` or an error.
//!
//! What it does not do: out-of-band commands, passing file descriptors, migration, reconnecting by itself
//! ([`Backoff`] says how long to wait, the owner connects anew and asks for everything anew).
//!
//! ```no_run
//! # async fn example() -> Result<(), plimsoll_qmp::QmpError> {
//! use std::{path::Path, time::Duration};
//! use plimsoll_qmp::QmpSocket;
//! use plimsoll_units::{Bytes, MemTarget};
//!
//! let socket = QmpSocket::connect(Path::new("/run/vm/qmp.sock"), Duration::from_secs(2)).await?;
//! let owner = socket.peer()?.uid; // known before a byte is sent or read
//! # let _ = owner;
//! let mut qemu = socket.handshake(Duration::from_secs(2)).await?;
//! let balloon = qemu.find_balloon().await?;
//! qemu.set_stats_interval(&balloon, 1).await?;
//! qemu.set_target(MemTarget(Bytes::mib(192))).await?;
//! println!("{}", qemu.query_balloon().await?);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod backoff;
mod client;
mod commands;
mod error;
mod event;
mod line;
mod socket;
mod stats;
mod wire;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use backoff::Backoff;
pub use client::{DEFAULT_TIMEOUT, MAX_OUTSTANDING, QmpClient};
pub use commands::{BalloonDevice, MemorySize, RunState};
pub use error::QmpError;
pub use event::{Event, MAX_EVENTS};
pub use line::MAX_LINE;
pub use socket::{Peer, QmpSocket};
pub use stats::BalloonStats;
pub use wire::QemuVersion;
