//! Reads a request's payload, and checks that it is in range.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Code, MAX_CONFIG, MAX_REGIONS, Region, Request, RingAddresses, WireError};

/// Bits of a ring number in the messages that carry a descriptor (vhost-user.rst, "A vring descriptor").
pub(super) const RING_MASK: u64 = 0xff;

/// The bit that says that no descriptor comes with it.
pub(super) const NO_FD: u64 = 0x100;

/// A payload being read.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    code: Code,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The payload of a request of this code.
    pub(super) fn of(code: Code, bytes: &'a [u8]) -> Self {
        Self { code, bytes }
    }

    fn length_error(self) -> WireError {
        WireError::Length { code: self.code.number(), length: self.bytes.len() }
    }

    fn content_error(self, what: &'static str) -> WireError {
        WireError::Content { code: self.code.number(), what }
    }

    fn exactly(self, length: usize) -> Result<(), WireError> {
        if self.bytes.len() == length { Ok(()) } else { Err(self.length_error()) }
    }

    pub(super) fn empty(self, fds: &[OwnedFd], request: Request) -> Result<Request, WireError> {
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

    pub(super) fn number(self) -> Result<u64, WireError> {
        self.exactly(8)?;
        self.long(0)
    }

    fn fds_error(self, count: usize, wanted: usize) -> WireError {
        WireError::Fds { code: self.code.number(), count, wanted }
    }

    pub(super) fn no_fds(self, fds: &[OwnedFd]) -> Result<Self, WireError> {
        if fds.is_empty() { Ok(self) } else { Err(self.fds_error(fds.len(), 0)) }
    }

    pub(super) fn only_fd(self, fds: Vec<OwnedFd>) -> Result<OwnedFd, WireError> {
        let count = fds.len();
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next()) {
            (Some(fd), None) => Ok(fd),
            _ => Err(self.fds_error(count, 1)),
        }
    }

    pub(super) fn ring_fd(self, fds: Vec<OwnedFd>) -> Result<Request, WireError> {
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

    pub(super) fn ring_state(self) -> Result<Request, WireError> {
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

    pub(super) fn ring_addresses(self) -> Result<Request, WireError> {
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

    pub(super) fn config(self) -> Result<Request, WireError> {
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

    pub(super) fn mem_table(self, fds: Vec<OwnedFd>) -> Result<Request, WireError> {
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
