//! Messages between the library in a VMM and whoever serves its guest's faults.
//!
//! They go over a Unix socket of type SOCK_SEQPACKET: one message is one packet, so threads of the VMM may send at
//! the same time without a lock. All have [`BYTES`] bytes, numbers in little endian:
//!
//! ```text
//! 0..4 "PPOD"   4..6 version   6..8 kind   8..40 four numbers of 64 bits, by kind; what is not used is 0
//! ```
//!
//! ```text
//! VMM                                          pager
//! Handover + userfaultfd + memory     ->
//!                                     <-       Accepted, or Refused (the VMM ends)
//! Punched, Punched, ...               ->       never answered
//! Unmapped                            ->       never answered
//! ```
//!
//! **Punched is sent after the hole was made, and is not waited for.** The VMM may lie, its messages may come late
//! and fewer than holes were made. So it is nothing but a hint where to look: under the lock of its ledger
//! the pager asks the file itself (SEEK_DATA), and takes a page for gone only if it is. In whatever order
//! a hint and a fault on the same page arrive, what the file says is right, and nothing has to be done
//! again when one of the two processes dies in between. Because the hint is sent before the call returns to the
//! VMM, it lies in the socket before the guest is told that its page was taken: read what lies there before
//! letting a guest wait for room.

use core::fmt;

use crate::agreement::OnPagerLoss;

/// Bytes of every message.
pub const BYTES: usize = 40;
/// The version of this protocol.
pub const VERSION: u16 = 1;
/// How every message begins.
const MAGIC: [u8; 4] = *b"PPOD";
/// What addresses and lengths are multiples of.
const PAGE: u64 = 4096;

const KIND_HANDOVER: u16 = 1;
const KIND_PUNCHED: u16 = 2;
const KIND_UNMAPPED: u16 = 3;
const KIND_ACCEPTED: u16 = 0x81;
const KIND_REFUSED: u16 = 0x82;

/// A piece of the file, in bytes. Its end fits into 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A mapping of the guest's memory in the VMM, watched from its first moment on.
///
/// Decoded, it is of whole pages, not empty, and neither addresses nor offsets overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Where it begins in the VMM.
    pub address: u64,
    /// Its bytes.
    pub length: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Whether the VMM keeps a userfaultfd of its own.
    pub loss: OnPagerLoss,
}

/// What a VMM says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToPager {
    /// The first message. With it come two descriptors: the userfaultfd, then the file.
    Handover(Handover),
    /// Memory of the file was given back, in the VMM, by a call that the kernel tells nobody of.
    Punched {
        /// Where to look; whole pages of it are holes if nothing filled them since.
        extent: Extent,
        /// So many messages before this one could not be sent: look everywhere if it is not 0.
        lost: u64,
    },
    /// A piece of the mapping is no longer mapped. The memory is still in the file.
    Unmapped(Extent),
}

/// What a pager answers to a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToVmm {
    /// The faults are being served.
    Accepted,
    /// The VMM must not run.
    Refused(Refusal),
}

/// Why a pager does not take a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The file is not this VM's memory.
    OtherFile,
    /// It has the memory of this VM already.
    Taken,
    /// The file may change its size, or has not the size of the mapping.
    Size,
    /// What came is not what the protocol says.
    Protocol,
    /// Another reason, which the pager's own log has.
    Other,
}

impl Refusal {
    const ALL: [(Self, u64); 5] =
        [(Self::OtherFile, 1), (Self::Taken, 2), (Self::Size, 3), (Self::Protocol, 4), (Self::Other, 5)];

    fn number(self) -> u64 {
        Self::ALL.iter().find(|(one, _)| *one == self).map_or(0, |(_, number)| *number)
    }

    /// A later version may have more reasons; they are no reason to misunderstand a refusal.
    fn from_number(number: u64) -> Self {
        Self::ALL.iter().find(|(_, one)| *one == number).map_or(Self::Other, |(one, _)| *one)
    }

    /// In words, for a message.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::OtherFile => "the file is not the memory of its VM",
            Self::Taken => "it serves the memory of its VM already, in another mapping",
            Self::Size => "the file may change its size, or is not mapped as a whole",
            Self::Protocol => "it did not understand the library; are both of one version?",
            Self::Other => "its own log says why",
        }
    }
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// Another length than [`BYTES`].
    Length(usize),
    /// It does not begin as a message does.
    NotOurs,
    /// A version that is not spoken here.
    Version(u16),
    /// A kind that does not exist, or not in this direction.
    Kind(u16),
    /// A number that cannot be.
    Number {
        /// Which.
        field: &'static str,
        /// The number.
        found: u64,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(found) => write!(f, "a message of {found} bytes, where all have {BYTES}"),
            Self::NotOurs => f.write_str("a message that does not begin as one"),
            Self::Version(found) => write!(f, "a message of version {found}, where {VERSION} is spoken"),
            Self::Kind(found) => write!(f, "a message of the unknown kind {found}"),
            Self::Number { field, found } => write!(f, "a message with {found} as its {field}"),
        }
    }
}

impl core::error::Error for WireError {}

impl ToPager {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BYTES] {
        match *self {
            Self::Handover(Handover { address, length, offset, loss }) => {
                frame(KIND_HANDOVER, [address, length, offset, u64::from(loss == OnPagerLoss::Open)])
            }
            Self::Punched { extent, lost } => frame(KIND_PUNCHED, [extent.offset, extent.length, lost, 0]),
            Self::Unmapped(extent) => frame(KIND_UNMAPPED, [extent.offset, extent.length, 0, 0]),
        }
    }

    /// Reads one packet. Whatever is in it, nothing but its numbers is believed of it, and those are checked.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        let (kind, numbers @ [first, second, third, _]) = unframe(packet)?;
        match kind {
            KIND_HANDOVER => handover(numbers).map(Self::Handover),
            KIND_PUNCHED => Ok(Self::Punched { extent: extent(first, second)?, lost: third }),
            KIND_UNMAPPED => extent(first, second).map(Self::Unmapped),
            other => Err(WireError::Kind(other)),
        }
    }
}

impl ToVmm {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BYTES] {
        match *self {
            Self::Accepted => frame(KIND_ACCEPTED, [0; 4]),
            Self::Refused(why) => frame(KIND_REFUSED, [why.number(), 0, 0, 0]),
        }
    }

    /// Reads one packet.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        let (kind, [first, ..]) = unframe(packet)?;
        match kind {
            KIND_ACCEPTED => Ok(Self::Accepted),
            KIND_REFUSED => Ok(Self::Refused(Refusal::from_number(first))),
            other => Err(WireError::Kind(other)),
        }
    }
}

fn handover([address, length, offset, loss]: [u64; 4]) -> Result<Handover, WireError> {
    for (field, found) in [("address", address), ("length", length), ("offset", offset)] {
        if found % PAGE != 0 {
            return Err(WireError::Number { field, found });
        }
    }
    if length == 0 || address.checked_add(length).is_none() || offset.checked_add(length).is_none() {
        return Err(WireError::Number { field: "length", found: length });
    }
    let loss = match loss {
        0 => OnPagerLoss::Stall,
        1 => OnPagerLoss::Open,
        found => return Err(WireError::Number { field: "on-pager-loss", found }),
    };
    Ok(Handover { address, length, offset, loss })
}

fn extent(offset: u64, length: u64) -> Result<Extent, WireError> {
    if offset.checked_add(length).is_none() {
        return Err(WireError::Number { field: "length", found: length });
    }
    Ok(Extent { offset, length })
}

fn frame(kind: u16, numbers: [u64; 4]) -> [u8; BYTES] {
    let [v0, v1] = VERSION.to_le_bytes();
    let [k0, k1] = kind.to_le_bytes();
    let [m0, m1, m2, m3] = MAGIC;
    let head = [m0, m1, m2, m3, v0, v1, k0, k1];
    let body = numbers.into_iter().flat_map(u64::to_le_bytes);
    let mut packet = [0; BYTES];
    for (slot, byte) in packet.iter_mut().zip(head.into_iter().chain(body)) {
        *slot = byte;
    }
    packet
}

fn unframe(packet: &[u8]) -> Result<(u16, [u64; 4]), WireError> {
    if packet.len() != BYTES {
        return Err(WireError::Length(packet.len()));
    }
    let mut words = packet.chunks_exact(8).map(|word| word.try_into().unwrap_or([0; 8]));
    let [m0, m1, m2, m3, v0, v1, k0, k1] = words.next().unwrap_or([0; 8]);
    if [m0, m1, m2, m3] != MAGIC {
        return Err(WireError::NotOurs);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let mut numbers = [0; 4];
    for (slot, word) in numbers.iter_mut().zip(words) {
        *slot = u64::from_le_bytes(word);
    }
    Ok((u16::from_le_bytes([k0, k1]), numbers))
}

#[cfg(test)]
mod test {
    use std::string::ToString;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn an_extent() -> impl Strategy<Value = Extent> {
        (any::<u64>(), any::<u64>())
            .prop_map(|(offset, length)| Extent { offset, length: length.min(u64::MAX - offset) })
    }

    fn a_message() -> impl Strategy<Value = ToPager> {
        let pages = 0..u64::MAX / PAGE / 2;
        let loss = prop_oneof![Just(OnPagerLoss::Stall), Just(OnPagerLoss::Open)];
        let handover = (pages.clone(), 1..u64::MAX / PAGE / 2, pages, loss);
        let handover = handover.prop_map(|(address, length, offset, loss)| {
            ToPager::Handover(Handover {
                address: address * PAGE,
                length: length * PAGE,
                offset: offset * PAGE,
                loss,
            })
        });
        prop_oneof![
            handover,
            (an_extent(), any::<u64>()).prop_map(|(extent, lost)| ToPager::Punched { extent, lost }),
            an_extent().prop_map(ToPager::Unmapped),
        ]
    }

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written(message in a_message()) {
            prop_assert_eq!(ToPager::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn what_is_read_of_any_numbers_is_sane(kind in 0..6_u16, numbers: [u64; 4]) {
            match ToPager::decode(&frame(kind, numbers)) {
                Ok(ToPager::Handover(said)) => {
                    prop_assert!(said.length > 0 && said.address.checked_add(said.length).is_some());
                    prop_assert!(said.offset.checked_add(said.length).is_some());
                    prop_assert_eq!((said.address | said.length | said.offset) % PAGE, 0);
                }
                Ok(ToPager::Punched { extent, .. } | ToPager::Unmapped(extent)) => {
                    prop_assert!(extent.offset.checked_add(extent.length).is_some());
                }
                Err(_) => {}
            }
        }

        #[test]
        fn any_bytes_are_refused_or_mean_what_they_say(
            mut packet in proptest::collection::vec(any::<u8>(), 0..64), head: bool,
        ) {
            if head {
                let whole = frame(KIND_PUNCHED, [0; 4]);
                packet.iter_mut().zip(whole.iter().take(6)).for_each(|(byte, one)| *byte = *one);
            }
            if let Ok(message) = ToPager::decode(&packet) {
                prop_assert_eq!(ToPager::decode(&message.encode()), Ok(message));
            }
            prop_assert!(packet.len() == BYTES || ToPager::decode(&packet).is_err());
            prop_assert!(packet.len() == BYTES || ToVmm::decode(&packet).is_err());
        }
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        let reasons = Refusal::ALL.iter().map(|(why, _)| ToVmm::Refused(*why));
        let all: Vec<_> = reasons.chain([ToVmm::Accepted]).collect();
        assert_eq!(all.len(), 6);
        for answer in all {
            assert_eq!(ToVmm::decode(&answer.encode()), Ok(answer));
            assert!(matches!(ToPager::decode(&answer.encode()), Err(WireError::Kind(_))));
        }
        assert_eq!(ToVmm::decode(&frame(KIND_REFUSED, [99, 0, 0, 0])), Ok(ToVmm::Refused(Refusal::Other)));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let good = ToVmm::Accepted.encode();
        let changed = |at: usize| {
            let mut packet = good;
            packet[at] ^= 0x40;
            ToVmm::decode(&packet).unwrap_err().to_string()
        };
        assert_eq!(changed(0), "a message that does not begin as one");
        assert_eq!(changed(4), "a message of version 65, where 1 is spoken");
        assert_eq!(changed(6), "a message of the unknown kind 193");
        assert_eq!(
            ToVmm::decode(&good[1..]).unwrap_err().to_string(),
            "a message of 39 bytes, where all have 40"
        );
        let odd = ToPager::decode(&frame(KIND_HANDOVER, [4096, 100, 0, 0])).unwrap_err();
        assert_eq!(odd.to_string(), "a message with 100 as its length");
    }
}
