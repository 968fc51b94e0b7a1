//! What the agent inside a guest and the host say to each other: bounded, versioned frames on a byte stream.
//!
//! Place in the map: `guest/`, depends on `core/units` and `core/model`; used by the agent, which writes
//! [`Report`]s, and by the back end and the daemon, which read them through an [`Intake`]. No I/O, no clock (the
//! caller gives the time), `no_std`.
//!
//! What it does not do: judge. A report's values are the guest's word and may be any number; the arbiter bounds them
//! by what the host knows.
//!
//! # The line
//!
//! A serial line or a virtio-serial port: bytes in order, but any of them may be missing, at the beginning or in the
//! middle, and bytes of others (the kernel's messages, a login prompt, an attacker) may lie between. Whoever reads
//! finds the next frame by its magic and believes it by its checksum; everything else is skipped and counted.
//! Every byte value occurs. So the agent puts a terminal into raw mode (cfmakeraw(3): no echo, no translation, no
//! flow control by characters); a virtio port needs nothing.
//!
//! # The frame
//!
//! Numbers are little endian.
//!
//! | at | length | what |
//! | --- | --- | --- |
//! | 0 | 4 | magic `F5 50 6C FA` (two of these bytes occur in no UTF-8 text) |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | kind: 1 a report (guest to host), 2 a pace (host to guest) |
//! | 6 | 2 | length of what lies between here and the checksum, 16 to 520 |
//! | 8 | 4 | flags: bit 0 urgent; others 0, not looked at |
//! | 12 | 4 | session: a number that the sender drew when it started |
//! | 16 | 8 | sequence number, rising within a session |
//! | 24 | 9 each | tag (1), value (8), at most 56 times |
//! | last | 4 | CRC-32 (IEEE 802.3) of everything after the magic |
//!
//! # Versions
//!
//! Within a version tags, kinds and flags may be added, never changed: a reader passes over those it does not know,
//! and what a writer leaves out is `None`. Anything else is a new version. Frames of other versions are refused and
//! counted; every version keeps the first eight bytes and the checksum as they are, so that such a frame is
//! recognised and passed over as a whole.
//!
//! ```
//! use plimsoll_agent_proto::{Intake, Report, encode};
//! use plimsoll_model::AgentStats;
//! use plimsoll_units::Bytes;
//!
//! let stats = AgentStats { available: Some(Bytes::mib(96)), ..AgentStats::default() };
//! let report = Report { session: 7, seq: 1, urgent: true, stats };
//! let mut line = b"login: ".to_vec();
//! encode(&report, &mut line);
//!
//! let mut intake = Intake::new();
//! let now_ms = 1000;
//! assert!(line.len() <= intake.allowance(now_ms));
//! intake.feed(now_ms, &line);
//! assert_eq!(intake.latest(), Some((report, now_ms)));
//! assert!(intake.take_urgent() && !intake.take_urgent());
//! assert_eq!(intake.counters().skipped_bytes, 7);
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

extern crate alloc;

mod bucket;
mod decoder;
mod frame;
mod intake;
mod pace;
mod report;
mod scan;
mod tags;
#[cfg(test)]
mod test_kit;

pub use decoder::{Counters, Decoder};
pub use frame::{MAX_FRAME, VERSION};
pub use intake::{BURST_BYTES, BYTES_PER_SECOND, Intake, LEAST_READ, REPORTS_PER_SECOND};
pub use pace::{LONGEST_PACE_MS, PaceDecoder, SHORTEST_PACE_MS, encode_pace};
pub use report::{Report, encode};

/// The name of the virtio-serial port between agent and host: `virtserialport,name=...` on the host, found under
/// `/dev/virtio-ports` or in `/sys/class/virtio-ports/*/name` in the guest.
pub const PORT_NAME: &str = "org.plimsoll.agent.0";
