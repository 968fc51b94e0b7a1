//! What a front end wants.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use plimsoll_shm::ShmError;

use super::code::unknown_has_content;
use super::fields::{Fields, NO_FD, RING_MASK};
use super::{Code, Message, Region, WireError, flag};

/// The most bytes of configuration space one message may read or write (`VHOST_USER_MAX_CONFIG_SIZE` of
/// vhost-user.rst), and how much of it there is.
pub const MAX_CONFIG: u32 = 256;

/// Where a ring's three parts are, in the front end's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table; a multiple of 16.
    pub descriptors: u64,
    /// The used ring; a multiple of 4.
    pub used: u64,
    /// The available ring; a multiple of 2.
    pub available: u64,
}

/// A request whose lengths, counts and fields are in range. Descriptors are shared, so that a request can be
/// kept and said again.
#[derive(Clone, Debug)]
pub enum Request {
    /// See [`Code::GetFeatures`].
    GetFeatures,
    /// See [`Code::SetFeatures`].
    SetFeatures(u64),
    /// See [`Code::SetOwner`].
    SetOwner,
    /// See [`Code::ResetOwner`].
    ResetOwner,
    /// See [`Code::SetMemTable`]. At least one region, at most [`super::MAX_REGIONS`], sane, and none overlaps another.
    SetMemTable(Vec<(Region, Arc<OwnedFd>)>),
    /// See [`Code::SetVringNum`].
    SetVringNum {
        /// The ring.
        ring: u32,
        /// Its descriptors.
        num: u32,
    },
    /// See [`Code::SetVringAddr`].
    SetVringAddr {
        /// The ring.
        ring: u32,
        /// Where it is.
        at: RingAddresses,
    },
    /// See [`Code::SetVringBase`].
    SetVringBase {
        /// The ring.
        ring: u32,
        /// The next entry of the available ring.
        base: u16,
    },
    /// See [`Code::GetVringBase`].
    GetVringBase {
        /// The ring.
        ring: u32,
    },
    /// See [`Code::SetVringKick`], [`Code::SetVringCall`] and [`Code::SetVringErr`].
    SetVringFd {
        /// Which of the three.
        which: Code,
        /// The ring.
        ring: u32,
        /// None: there is none.
        fd: Option<Arc<OwnedFd>>,
    },
    /// See [`Code::GetProtocolFeatures`].
    GetProtocolFeatures,
    /// See [`Code::SetProtocolFeatures`].
    SetProtocolFeatures(u64),
    /// See [`Code::GetQueueNum`].
    GetQueueNum,
    /// See [`Code::SetVringEnable`].
    SetVringEnable {
        /// The ring.
        ring: u32,
        /// Start or stop.
        on: bool,
    },
    /// See [`Code::SetBackendReqFd`].
    SetBackendReqFd(Arc<OwnedFd>),
    /// See [`Code::GetConfig`].
    GetConfig {
        /// In bytes from the beginning of the space.
        offset: u32,
        /// How many bytes, at most [`MAX_CONFIG`].
        length: u32,
        /// To be repeated in the answer.
        flags: u32,
    },
    /// See [`Code::SetConfig`].
    SetConfig {
        /// In bytes from the beginning of the space.
        offset: u32,
        /// To be handed through.
        flags: u32,
        /// At most [`MAX_CONFIG`] bytes.
        bytes: Vec<u8>,
    },
    /// A request of a feature that was not offered, to which no content is due.
    Unknown(u32),
}

impl Request {
    /// Looks into a message.
    ///
    /// A memory table may be longer than its regions need: User Mode Linux always sends room for two.
    ///
    /// # Errors
    /// When no front end may send such a message.
    pub fn parse(message: Message) -> Result<Self, WireError> {
        let Some(code) = Code::from_number(message.code) else {
            if unknown_has_content(message.code) {
                return Err(WireError::NotOffered(message.code));
            }
            return Ok(Self::Unknown(message.code));
        };
        let Message { payload, fds, .. } = message;
        let fields = Fields::of(code, &payload);
        match code {
            Code::SetMemTable => fields.mem_table(fds),
            Code::SetVringKick | Code::SetVringCall | Code::SetVringErr => fields.ring_fd(fds),
            Code::SetBackendReqFd => fields.only_fd(fds).map(|fd| Self::SetBackendReqFd(Arc::new(fd))),
            Code::GetFeatures => fields.empty(&fds, Self::GetFeatures),
            Code::SetOwner => fields.empty(&fds, Self::SetOwner),
            Code::ResetOwner => fields.empty(&fds, Self::ResetOwner),
            Code::GetProtocolFeatures => fields.empty(&fds, Self::GetProtocolFeatures),
            Code::GetQueueNum => fields.empty(&fds, Self::GetQueueNum),
            Code::SetFeatures => fields.no_fds(&fds)?.number().map(Self::SetFeatures),
            Code::SetProtocolFeatures => fields.no_fds(&fds)?.number().map(Self::SetProtocolFeatures),
            Code::SetVringAddr => fields.no_fds(&fds)?.ring_addresses(),
            Code::GetConfig | Code::SetConfig => fields.no_fds(&fds)?.config(),
            Code::SetVringNum | Code::SetVringBase | Code::GetVringBase | Code::SetVringEnable => {
                fields.no_fds(&fds)?.ring_state()
            }
        }
    }

    /// What it is a request for. None for what is not known.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        Some(match self {
            Self::GetFeatures => Code::GetFeatures,
            Self::SetFeatures(_) => Code::SetFeatures,
            Self::SetOwner => Code::SetOwner,
            Self::ResetOwner => Code::ResetOwner,
            Self::SetMemTable(_) => Code::SetMemTable,
            Self::SetVringNum { .. } => Code::SetVringNum,
            Self::SetVringAddr { .. } => Code::SetVringAddr,
            Self::SetVringBase { .. } => Code::SetVringBase,
            Self::GetVringBase { .. } => Code::GetVringBase,
            Self::SetVringFd { which, .. } => *which,
            Self::GetProtocolFeatures => Code::GetProtocolFeatures,
            Self::SetProtocolFeatures(_) => Code::SetProtocolFeatures,
            Self::GetQueueNum => Code::GetQueueNum,
            Self::SetVringEnable { .. } => Code::SetVringEnable,
            Self::SetBackendReqFd(_) => Code::SetBackendReqFd,
            Self::GetConfig { .. } => Code::GetConfig,
            Self::SetConfig { .. } => Code::SetConfig,
            Self::Unknown(_) => return None,
        })
    }

    /// The ring it is about, if it is about one.
    #[must_use]
    pub fn ring(&self) -> Option<u32> {
        match self {
            Self::SetVringNum { ring, .. }
            | Self::SetVringAddr { ring, .. }
            | Self::SetVringBase { ring, .. }
            | Self::GetVringBase { ring }
            | Self::SetVringFd { ring, .. }
            | Self::SetVringEnable { ring, .. } => Some(*ring),
            Self::GetFeatures
            | Self::SetFeatures(_)
            | Self::SetOwner
            | Self::ResetOwner
            | Self::SetMemTable(_)
            | Self::GetProtocolFeatures
            | Self::SetProtocolFeatures(_)
            | Self::GetQueueNum
            | Self::SetBackendReqFd(_)
            | Self::GetConfig { .. }
            | Self::SetConfig { .. }
            | Self::Unknown(_) => None,
        }
    }

    /// Sends it whole, asking for an acknowledgement if it has no other answer. For sockets between our own
    /// processes, see [`Message::send`].
    ///
    /// # Errors
    /// When the peer is gone or does not take it.
    pub fn send(&self, socket: impl AsFd) -> Result<(), ShmError> {
        let code = match (self, self.code()) {
            (Self::Unknown(number), _) => *number,
            (_, Some(code)) => code.number(),
            (_, None) => 0,
        };
        let wants = if self.code().is_some_and(Code::has_content) { 0 } else { flag::NEED_REPLY };
        let message =
            Message { code, flags: flag::VERSION | wants, payload: self.payload(), fds: Vec::new() };
        let bytes = message.bytes();
        let mut fds = Vec::new();
        if let Self::SetMemTable(regions) = self {
            fds.extend(regions.iter().map(|(_, fd)| fd.as_fd()));
        } else if let Self::SetVringFd { fd: Some(fd), .. } | Self::SetBackendReqFd(fd) = self {
            fds.push(fd.as_fd());
        }
        let sent = plimsoll_shm::send(socket, &bytes, &fds)?;
        if sent == bytes.len() { Ok(()) } else { Err(ShmError::WouldBlock) }
    }

    /// Its bytes behind the header. A memory table has exactly the length its regions need.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        let mut into = Vec::new();
        let mut words =
            |list: &[u32]| list.iter().for_each(|word| into.extend_from_slice(&word.to_ne_bytes()));
        match self {
            Self::SetFeatures(number) | Self::SetProtocolFeatures(number) => {
                into.extend_from_slice(&number.to_ne_bytes());
            }
            Self::SetMemTable(regions) => {
                words(&[u32::try_from(regions.len()).unwrap_or(0), 0]);
                regions.iter().for_each(|(region, _)| region.encode(&mut into));
            }
            Self::SetVringNum { ring, num } => words(&[*ring, *num]),
            Self::SetVringBase { ring, base } => words(&[*ring, u32::from(*base)]),
            Self::GetVringBase { ring } => words(&[*ring, 0]),
            Self::SetVringEnable { ring, on } => words(&[*ring, u32::from(*on)]),
            Self::SetVringAddr { ring, at } => {
                words(&[*ring, 0]);
                for address in [at.descriptors, at.used, at.available, 0] {
                    into.extend_from_slice(&address.to_ne_bytes());
                }
            }
            Self::SetVringFd { ring, fd, .. } => {
                let none = if fd.is_none() { NO_FD } else { 0 };
                into.extend_from_slice(&(u64::from(*ring) & RING_MASK | none).to_ne_bytes());
            }
            Self::GetConfig { offset, length, flags } => {
                words(&[*offset, *length, *flags]);
                into.resize(into.len() + usize::try_from(*length).unwrap_or(0), 0);
            }
            Self::SetConfig { offset, flags, bytes } => {
                words(&[*offset, u32::try_from(bytes.len()).unwrap_or(0), *flags]);
                into.extend_from_slice(bytes);
            }
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::SetBackendReqFd(_)
            | Self::Unknown(_) => {}
        }
        into
    }
}

#[cfg(test)]
#[path = "request_test.rs"]
mod test;
