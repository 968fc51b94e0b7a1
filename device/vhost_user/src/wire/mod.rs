//! vhost-user messages: what goes over the socket, and nothing of what is done with it.
//!
//! The format is that of QEMU's `docs/interop/vhost-user.rst`: a header of 12 bytes in the machine's byte
//! order (code, flags, payload length), a payload, and file descriptors beside it. [`Framer`] finds the
//! messages in the stream, [`Request`] says what a front end wants, [`Answer`] what it is told.
//!
//! Everything a front end sends is hostile: a length is checked before anything is read or allocated, and
//! a request that came through [`Request::parse`] is in range as far as can be known without the device.

mod answer;
mod code;
mod error;
mod fields;
mod framer;
mod message;
mod region;
mod request;

pub use answer::Answer;
pub use code::Code;
pub use error::WireError;
pub use framer::{Framer, Progress};
pub use message::{Message, flag};
pub use region::{MAX_REGIONS, Region};
pub use request::{MAX_CONFIG, Request, RingAddresses};

/// The largest payload of a message, in bytes: a configuration space of 256 bytes and a memory table of 8
/// regions are both far below; the `vhost` crate has the same bound.
pub const MAX_PAYLOAD: usize = 4096;

/// Bytes in a message's header.
pub const HEADER: usize = 12;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: bit 30 of the virtio features means that protocol features are spoken.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VIRTIO_F_VERSION_1` (virtio 1.3 section 6): bit 32.
pub const F_VERSION_1: u64 = 1 << 32;

/// Protocol features (vhost-user.rst, "Protocol features").
pub mod protocol {
    /// `VHOST_USER_PROTOCOL_F_MQ`: the number of queues can be asked for.
    pub const MQ: u64 = 1 << 0;
    /// `VHOST_USER_PROTOCOL_F_REPLY_ACK`: a message may ask to be acknowledged.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// `VHOST_USER_PROTOCOL_F_BACKEND_REQ`: the front end takes requests on a socket of its own.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// `VHOST_USER_PROTOCOL_F_CONFIG`: the configuration space goes through messages.
    pub const CONFIG: u64 = 1 << 9;
}

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, the one message a device of ours sends by itself, on the socket
/// of `SET_BACKEND_REQ_FD`: code 2, version 1 and no wish for a reply, no payload.
#[must_use]
pub fn config_change() -> [u8; HEADER] {
    message::header(2, flag::VERSION, 0)
}
