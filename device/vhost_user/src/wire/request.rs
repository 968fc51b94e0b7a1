//! What a front end wants.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use plimsoll_shm::ShmError;

use super::code::unknown_has_content;
use super::{Code, MAX_REGIONS, Message, Region, WireError, flag};

/// The most bytes of configuration space one message may read or write (`VHOST_USER_MAX_CONFIG_SIZE` of
/// vhost-user.rst), and how much of it there is.
pub const MAX_CONFIG: u32 = 256;

/// Bits of a ring number in the messages that carry a descriptor (vhost-user.rst, "A vring descriptor").
const RING_MASK: u64 = 0xff;

/// The bit that says that no descriptor comes with it.
const NO_FD: u64 = 0x100;

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
    /// See [`Code::SetMemTable`]. At least one region, at most [`MAX_REGIONS`], sane, and none overlaps another.
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
        let fields = Fields { code, bytes: &payload };
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

/// A payload being read.
#[derive(Clone, Copy)]
struct Fields<'a> {
    code: Code,
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn length_error(self) -> WireError {
        WireError::Length { code: self.code.number(), length: self.bytes.len() }
    }

    fn content_error(self, what: &'static str) -> WireError {
        WireError::Content { code: self.code.number(), what }
    }

    fn exactly(self, length: usize) -> Result<(), WireError> {
        if self.bytes.len() == length { Ok(()) } else { Err(self.length_error()) }
    }

    fn empty(self, fds: &[OwnedFd], request: Request) -> Result<Request, WireError> {
        self.no_fds(fds)?.exactly(0).map(|()| request)
    }

    fn word(self, at: usize) -> Result<u32, WireError> {
        let four = at.checked_add(4).and_then(|end| self.bytes.get(at..end));
        let four = four.and_then(|four| <[u8; 4]>::try_from(four).ok()).ok_or_else(|| self.length_error())?;
        Ok(u32::from_ne_bytes(four))
    }

    fn long(self, at: usize) -> Result<u64, WireError> {
        let eight = at.checked_add(8).and_then(|end| self.bytes.get(at..end));
        let eight =
            eight.and_then(|eight| <[u8; 8]>::try_from(eight).ok()).ok_or_else(|| self.length_error())?;
        Ok(u64::from_ne_bytes(eight))
    }

    fn number(self) -> Result<u64, WireError> {
        self.exactly(8)?;
        self.long(0)
    }

    fn fds_error(self, count: usize, wanted: usize) -> WireError {
        WireError::Fds { code: self.code.number(), count, wanted }
    }

    fn no_fds(self, fds: &[OwnedFd]) -> Result<Self, WireError> {
        if fds.is_empty() { Ok(self) } else { Err(self.fds_error(fds.len(), 0)) }
    }

    fn only_fd(self, fds: Vec<OwnedFd>) -> Result<OwnedFd, WireError> {
        let count = fds.len();
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next()) {
            (Some(fd), None) => Ok(fd),
            _ => Err(self.fds_error(count, 1)),
        }
    }

    fn ring_fd(self, fds: Vec<OwnedFd>) -> Result<Request, WireError> {
        let number = self.number()?;
        let ring = u32::try_from(number & RING_MASK).unwrap_or(0);
        let fd = if number & NO_FD == 0 {
            Some(Arc::new(self.only_fd(fds)?))
        } else {
            self.no_fds(&fds)?;
            None
        };
        Ok(Request::SetVringFd { which: self.code, ring, fd })
    }

    fn ring_state(self) -> Result<Request, WireError> {
        self.exactly(8)?;
        let (ring, num) = (self.word(0)?, self.word(4)?);
        match (self.code, num) {
            (Code::SetVringNum, _) => Ok(Request::SetVringNum { ring, num }),
            (Code::GetVringBase, _) => Ok(Request::GetVringBase { ring }),
            (Code::SetVringBase, _) => {
                let base = u16::try_from(num)
                    .map_err(|_| self.content_error("a ring's base has no more than 16 bits"))?;
                Ok(Request::SetVringBase { ring, base })
            }
            (Code::SetVringEnable, 0 | 1) => Ok(Request::SetVringEnable { ring, on: num == 1 }),
            _ => Err(self.content_error("a ring is enabled by 1 and disabled by 0")),
        }
    }

    fn ring_addresses(self) -> Result<Request, WireError> {
        self.exactly(40)?;
        let ring = self.word(0)?;
        // The only flag there is asks for a dirty log, which is not offered.
        if self.word(4)? != 0 {
            return Err(self.content_error("dirty logging was not offered"));
        }
        let at =
            RingAddresses { descriptors: self.long(8)?, used: self.long(16)?, available: self.long(24)? };
        let aligned =
            at.descriptors.is_multiple_of(16) && at.used.is_multiple_of(4) && at.available.is_multiple_of(2);
        if !aligned {
            return Err(self.content_error("a ring's parts are not aligned"));
        }
        Ok(Request::SetVringAddr { ring, at })
    }

    fn config(self) -> Result<Request, WireError> {
        let (offset, length, flags) = (self.word(0)?, self.word(4)?, self.word(8)?);
        let bytes = self.bytes.get(12..).unwrap_or_default();
        if offset.checked_add(length).is_none_or(|end| end > MAX_CONFIG) {
            return Err(self.content_error("the configuration space has 256 bytes"));
        }
        let complete = u32::try_from(bytes.len()).is_ok_and(|carried| carried == length);
        // A question may leave the room for the answer out.
        if self.code == Code::GetConfig && (complete || bytes.is_empty()) {
            Ok(Request::GetConfig { offset, length, flags })
        } else if self.code == Code::SetConfig && complete {
            Ok(Request::SetConfig { offset, flags, bytes: bytes.to_vec() })
        } else {
            Err(self.length_error())
        }
    }

    fn mem_table(self, fds: Vec<OwnedFd>) -> Result<Request, WireError> {
        let count = usize::try_from(self.word(0)?).unwrap_or(usize::MAX);
        if count == 0 || count > MAX_REGIONS {
            return Err(self.content_error("a memory table has 1 to 8 regions"));
        }
        if self.bytes.len() > 8 + Region::BYTES * MAX_REGIONS {
            return Err(self.length_error());
        }
        if fds.len() != count {
            return Err(self.fds_error(fds.len(), count));
        }
        let mut regions: Vec<(Region, Arc<OwnedFd>)> = Vec::with_capacity(count);
        for (index, fd) in fds.into_iter().enumerate() {
            let at = 8 + index * Region::BYTES;
            let region = Region {
                guest: self.long(at)?,
                length: self.long(at + 8)?,
                user: self.long(at + 16)?,
                offset: self.long(at + 24)?,
            };
            if !region.is_sane() {
                return Err(self.content_error("a memory region is empty or wraps around"));
            }
            if regions.iter().any(|(other, _)| other.overlaps(region)) {
                return Err(self.content_error("two memory regions overlap"));
            }
            regions.push((region, Arc::new(fd)));
        }
        Ok(Request::SetMemTable(regions))
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn fd() -> OwnedFd {
        rustix::pipe::pipe().unwrap().0
    }

    fn parse(code: u32, payload: Vec<u8>, fds: usize) -> Result<Request, WireError> {
        Request::parse(Message { code, flags: 1, payload, fds: (0..fds).map(|_| fd()).collect() })
    }

    fn words(list: &[u32]) -> Vec<u8> {
        list.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn longs(list: &[u64]) -> Vec<u8> {
        list.iter().flat_map(|long| long.to_ne_bytes()).collect()
    }

    fn table(regions: &[[u64; 4]]) -> Vec<u8> {
        let mut payload = words(&[u32::try_from(regions.len()).unwrap(), 0]);
        regions.iter().for_each(|region| payload.extend(longs(region)));
        payload
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(code in 0u32..60, payload in prop::collection::vec(any::<u8>(), 0..400), fds in 0usize..9) {
            if let Ok(request) = parse(code, payload.clone(), fds) {
                // What was understood is said again in the same bytes, but for unused room, and means the same.
                let again = request.payload();
                prop_assert!(again.len() <= payload.len().max(12 + 256));
                prop_assert_eq!(parse(code, again.clone(), fds).unwrap().payload(), again);
            }
        }

        #[test]
        fn well_formed_messages_are_said_again_unchanged(ring in 0u32..300, num in any::<u32>(), on in 0u32..2, value in any::<u64>()) {
            for (code, payload) in [
                (2, longs(&[value])),
                (8, words(&[ring, num])),
                (10, words(&[ring, num & 0xffff])),
                (16, longs(&[value])),
                (18, words(&[ring, on])),
                (9, [words(&[ring, 0]), longs(&[value & !15, value & !3, value & !1, 0])].concat()),
                (25, [words(&[4, 4, 0]), words(&[num])].concat()),
                (24, [words(&[num % 200, 8, 1]), vec![0; 8]].concat()),
            ] {
                prop_assert_eq!(parse(code, payload.clone(), 0).unwrap().payload(), payload);
            }
        }
    }

    #[test]
    fn memory_tables() {
        let one = [0x1000, 0x1000, 0x7000_0000, 0];
        let two = [0x2000, 0x1000, 0x8000_0000, 0x1000];
        let request = parse(5, table(&[one, two]), 2).unwrap();
        assert_eq!(request.payload(), table(&[one, two]));
        // User Mode Linux leaves room for a second region and says that there is one.
        let mut uml = table(&[one]);
        uml.resize(72, 0xaa);
        assert_eq!(parse(5, uml, 1).unwrap().payload(), table(&[one]));

        for (payload, fds) in [
            (table(&[]), 0),
            (table(&[one]), 0),
            (table(&[one]), 2),
            (words(&[2, 0]), 2),
            (words(&[u32::MAX, 0]), 0),
            (table(&[one; 9]), 8),
            (table(&[one, one]), 2),
            (table(&[one, [0x1fff, 1, 0x9000_0000, 0]]), 2),
            (table(&[one, [0x9000, 2, 0x7000_0fff, 0]]), 2),
            (table(&[[0, 0, 0, 0]]), 1),
            (table(&[[u64::MAX, 2, 0, 0]]), 1),
            (table(&[[0, 2, u64::MAX, 0]]), 1),
            (table(&[[0, u64::MAX, 0, 1]]), 1),
            (table(&[one])[..20].to_vec(), 1),
            ([table(&[one]), vec![0; 4000]].concat(), 1),
        ] {
            parse(5, payload, fds).unwrap_err();
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for (code, payload, fds) in [
            (1, vec![0], 0),                                          // GET_FEATURES with a payload
            (1, vec![], 1),                                           // and with a descriptor
            (2, vec![0; 7], 0),                                       // SET_FEATURES too short
            (10, words(&[0, 0x1_0000]), 0),                           // a base of 17 bits
            (18, words(&[0, 2]), 0),                                  // enable by 2
            (12, longs(&[0]), 0),                                     // a kick without its descriptor
            (12, longs(&[0]), 2),                                     // with two
            (12, longs(&[0x100]), 1),                                 // with one though it says none
            (9, [words(&[0, 1]), longs(&[0, 0, 0, 0])].concat(), 0),  // dirty log
            (9, [words(&[0, 0]), longs(&[8, 0, 0, 0])].concat(), 0),  // misaligned
            (24, [words(&[250, 8, 0]), vec![0; 8]].concat(), 0),      // past the end
            (24, [words(&[u32::MAX, 8, 0]), vec![0; 8]].concat(), 0), // wrapping
            (25, [words(&[0, 8, 0]), vec![0; 7]].concat(), 0),        // fewer bytes than said
            (21, vec![], 0),                                          // no socket
            (31, vec![], 0),                                          // GET_INFLIGHT_FD, not offered
        ] {
            parse(code, payload, fds).unwrap_err();
        }
        assert!(matches!(parse(19, vec![1; 8], 0), Ok(Request::Unknown(19))));
        assert!(matches!(parse(u32::MAX, vec![], 0), Ok(Request::Unknown(u32::MAX))));
        assert!(matches!(parse(14, longs(&[0x103]), 0), Ok(Request::SetVringFd { ring: 3, fd: None, .. })));
    }
}
