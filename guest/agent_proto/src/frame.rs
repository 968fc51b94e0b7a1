//! One frame: its layout, written and looked at.

use alloc::vec::Vec;

/// The version written, and the only one read.
pub const VERSION: u8 = 1;
/// The longest frame: what a reader must be able to hold.
pub const MAX_FRAME: usize = HEAD + MAX_BODY + CHECKSUM;

/// Begins every frame. 0xF5 and 0xFA occur in no UTF-8 text, and no byte occurs twice, so that a magic cannot begin
/// inside a magic.
pub(crate) const MAGIC: [u8; 4] = [0xF5, b'P', b'l', 0xFA];
/// Magic, version, kind, length: the same in every version.
pub(crate) const HEAD: usize = 8;
/// Flags, session, sequence number: the beginning of the body.
pub(crate) const PREAMBLE: usize = 16;
/// The longest body of any version.
pub(crate) const MAX_BODY: usize = 520;
/// The checksum behind the body.
pub(crate) const CHECKSUM: usize = 4;
/// What the body holds behind its preamble.
pub(crate) const MAX_PAYLOAD: usize = MAX_BODY - PREAMBLE;

/// Bit 0 of the flags: sent out of turn, because the guest is short of memory.
const URGENT: u32 = 1;

/// A frame of our version whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) urgent: bool,
    pub(crate) session: u32,
    pub(crate) seq: u64,
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    /// Appends the frame. The payload is at most [`MAX_PAYLOAD`] long.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        debug_assert!(self.payload.len() <= MAX_PAYLOAD, "a payload of {} bytes", self.payload.len());
        let body_length = u16::try_from(self.payload.len().saturating_add(PREAMBLE)).unwrap_or(u16::MAX);
        let checked_from = out.len().saturating_add(MAGIC.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.kind]);
        out.extend_from_slice(&body_length.to_le_bytes());
        out.extend_from_slice(&if self.urgent { URGENT } else { 0 }.to_le_bytes());
        out.extend_from_slice(&self.session.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(self.payload);
        let checksum = crc32fast::hash(out.get(checked_from..).unwrap_or_default());
        out.extend_from_slice(&checksum.to_le_bytes());
    }
}

/// What begins at a magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look<'a> {
    /// A frame, and how long it is.
    Frame(Frame<'a>, usize),
    /// A frame of another version, and how long it is.
    OtherVersion(u8, usize),
    /// No frame: impossible length or wrong checksum.
    Bad,
    /// More bytes are needed to tell.
    Incomplete,
}

/// Looks at bytes that begin with [`MAGIC`].
pub(crate) fn look(bytes: &[u8]) -> Look<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Look::Incomplete };
    let [_, _, _, _, version, kind, length @ ..] = *head;
    let length = usize::from(u16::from_le_bytes(length));
    if !(PREAMBLE..=MAX_BODY).contains(&length) {
        return Look::Bad;
    }
    let Some((body, rest)) = rest.split_at_checked(length) else { return Look::Incomplete };
    let Some((checksum, _)) = rest.split_first_chunk::<CHECKSUM>() else { return Look::Incomplete };
    let checked = HEAD.saturating_add(length);
    let sum = crc32fast::hash(bytes.get(MAGIC.len()..checked).unwrap_or_default());
    if sum != u32::from_le_bytes(*checksum) {
        return Look::Bad;
    }
    let whole = checked.saturating_add(CHECKSUM);
    if version != VERSION {
        return Look::OtherVersion(version, whole);
    }
    frame(kind, body).map_or(Look::Bad, |frame| Look::Frame(frame, whole))
}

fn frame(kind: u8, body: &[u8]) -> Option<Frame<'_>> {
    let (flags, body) = body.split_first_chunk()?;
    let (session, body) = body.split_first_chunk()?;
    let (seq, payload) = body.split_first_chunk()?;
    Some(Frame {
        kind,
        urgent: u32::from_le_bytes(*flags) & URGENT != 0,
        session: u32::from_le_bytes(*session),
        seq: u64::from_le_bytes(*seq),
        payload,
    })
}

#[cfg(test)]
mod test {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn written(frame: &Frame<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        bytes
    }

    /// The wire, byte for byte: what an agent of this version in a guest has sent must be read for ever.
    #[test]
    fn the_layout_is_as_documented() {
        let frame = Frame { kind: 1, urgent: true, session: 0x0403_0201, seq: 0x0807_0605, payload: &[9, 1] };
        let bytes = written(&frame);
        let head =
            [0xF5, b'P', b'l', 0xFA, 1, 1, 18, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 9, 1];
        assert_eq!(bytes[..26], head);
        assert_eq!(bytes.len(), 30);
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926, "the checksum is CRC-32 of IEEE 802.3");
        assert_eq!(bytes[26..], crc32fast::hash(&head[4..]).to_le_bytes());
    }

    #[test]
    fn lengths_that_cannot_be_are_bad_at_once() {
        for length in [0u16, 15, 521, 65535] {
            let mut bytes = [MAGIC.as_slice(), &[VERSION, 1]].concat();
            bytes.extend(length.to_le_bytes());
            assert_eq!(look(&bytes), Look::Bad, "length {length}");
        }
    }

    #[test]
    fn other_versions_are_recognised_whole() {
        for version in [0, 2, 255] {
            let mut bytes = written(&Frame { kind: 1, urgent: false, session: 1, seq: 1, payload: &[0; 90] });
            bytes[4] = version;
            let end = bytes.len() - CHECKSUM;
            let sum = crc32fast::hash(&bytes[4..end]).to_le_bytes();
            bytes[end..].copy_from_slice(&sum);
            assert_eq!(look(&bytes), Look::OtherVersion(version, bytes.len()));
        }
    }

    proptest! {
        #[test]
        fn a_frame_is_read_as_written(
            kind: u8, urgent: bool, session: u32, seq: u64,
            payload in prop::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD),
            more in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let frame = Frame { kind, urgent, session, seq, payload: &payload };
            let mut bytes = written(&frame);
            let length = bytes.len();
            prop_assert!(length <= MAX_FRAME);
            for cut in 0..length {
                prop_assert_eq!(look(&bytes[..cut]), Look::Incomplete);
            }
            bytes.extend(more);
            prop_assert_eq!(look(&bytes), Look::Frame(frame, length));
        }

        #[test]
        fn a_changed_bit_is_noticed(seq: u64, payload in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = written(&Frame { kind: 1, urgent: false, session: 1, seq, payload: &payload });
            let at = MAGIC.len() + at.index(bytes.len() - MAGIC.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(matches!(look(&bytes), Look::Bad | Look::Incomplete));
        }
    }
}
