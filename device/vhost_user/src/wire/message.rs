//! A message as it is on the wire.

use std::os::fd::{AsFd, OwnedFd};

use plimsoll_shm::ShmError;

use super::{HEADER, MAX_PAYLOAD, WireError};

/// Bits of a header's flags.
pub mod flag {
    /// The protocol's version, in the two lowest bits.
    pub const VERSION: u32 = 1;
    /// The bits of the version.
    pub const VERSION_MASK: u32 = 3;
    /// This is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender wants this acknowledged.
    pub const NEED_REPLY: u32 = 1 << 3;
    /// Every bit that has a meaning.
    pub const KNOWN: u32 = 0xf;
}

/// A whole message, not yet looked into.
#[derive(Debug)]
pub struct Message {
    /// The number of its code.
    pub code: u32,
    /// Its flags.
    pub flags: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
    /// At most [`plimsoll_shm::MAX_FDS`] descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// Whether the sender wants it acknowledged.
    #[must_use]
    pub fn needs_reply(&self) -> bool {
        self.flags & flag::NEED_REPLY != 0
    }

    /// Whether it is a reply.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags & flag::REPLY != 0
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend_from_slice(&header(self.code, self.flags, length));
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Sends it at once and whole. For sockets between our own processes, on which never more than one
    /// message is under way, so that there is always room.
    ///
    /// # Errors
    /// When the peer is gone, or has not taken what was sent before.
    pub fn send(&self, socket: impl AsFd) -> Result<(), ShmError> {
        let bytes = self.bytes();
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        let sent = plimsoll_shm::send(socket, &bytes, &fds)?;
        if sent == bytes.len() { Ok(()) } else { Err(ShmError::WouldBlock) }
    }
}

/// A header's bytes.
pub(crate) fn header(code: u32, flags: u32, length: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    for (at, field) in bytes.chunks_exact_mut(4).zip([code, flags, length]) {
        at.copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// A header's fields: code, flags, payload length in bytes, which is at most [`MAX_PAYLOAD`].
pub(crate) fn parse_header(bytes: [u8; HEADER], replies: bool) -> Result<(u32, u32, usize), WireError> {
    let field = |index: usize| {
        let mut word = [0; 4];
        word.iter_mut().zip(bytes.iter().skip(index * 4)).for_each(|(to, from)| *to = *from);
        u32::from_ne_bytes(word)
    };
    let (code, flags, length) = (field(0), field(1), field(2));
    if flags & !flag::KNOWN != 0 || flags & flag::VERSION_MASK != flag::VERSION {
        return Err(WireError::Flags { code, flags });
    }
    let reply = flags & flag::REPLY != 0;
    if reply != replies {
        return Err(WireError::Direction { code, reply });
    }
    match usize::try_from(length) {
        Ok(payload) if payload <= MAX_PAYLOAD => Ok((code, flags, payload)),
        Ok(_) | Err(_) => Err(WireError::TooLong { code, length }),
    }
}
