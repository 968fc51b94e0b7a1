//! The datagrams of the management console (`arch/um/drivers/mconsole.h`), in the host's byte order.

/// `MCONSOLE_MAGIC`.
const MAGIC: u32 = 0xcafe_babe;
/// `MCONSOLE_VERSION`.
const VERSION: u32 = 2;
/// `MCONSOLE_MAX_DATA`, a final NUL included.
pub(crate) const MAX_DATA: usize = 512;
/// Three 32-bit numbers before the data, both ways.
const HEADER: usize = 12;
/// The longest datagram.
pub(crate) const MAX_DATAGRAM: usize = HEADER + MAX_DATA;

/// A request: magic, version, length, text. `None` if the text is too long.
pub(crate) fn request(command: &str) -> Option<Vec<u8>> {
    if command.len() >= MAX_DATA {
        return None;
    }
    let length = u32::try_from(command.len()).ok()?;
    let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
    for word in [MAGIC, VERSION, length] {
        datagram.extend_from_slice(&word.to_ne_bytes());
    }
    datagram.extend_from_slice(command.as_bytes());
    // The kernel wants the whole structure's header and counts on a NUL after the text.
    datagram.push(0);
    Some(datagram)
}

/// One datagram of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply<'a> {
    /// The command failed; the text says why.
    pub(crate) failed: bool,
    /// More datagrams follow.
    pub(crate) more: bool,
    /// Text, without the final NUL.
    pub(crate) text: &'a [u8],
}

/// Reads a reply; `None` if it is none.
pub(crate) fn reply(datagram: &[u8]) -> Option<Reply<'_>> {
    let word = |at: usize| {
        let bytes = datagram.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let length = usize::try_from(word(8)?).ok()?;
    let text = datagram.get(HEADER..HEADER.checked_add(length)?)?;
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    Some(Reply { failed: word(0)? != 0, more: word(4)? != 0, text })
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn datagram(err: u32, more: u32, len: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [err, more, len].iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = request("version").unwrap();
        assert_eq!(bytes[..4], 0xcafe_babe_u32.to_ne_bytes());
        assert_eq!(bytes[4..12], [2u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat());
        assert_eq!(&bytes[12..], b"version\0");
        assert_eq!(request(&"x".repeat(512)), None);
    }

    #[test]
    fn a_reply_ends_where_it_says() {
        let got = datagram(0, 1, 4, b"abc\0rest");
        assert_eq!(reply(&got), Some(Reply { failed: false, more: true, text: b"abc" }));
        assert_eq!(reply(&datagram(1, 0, 9, b"abc")), None, "longer than the datagram");
        assert_eq!(reply(&datagram(0, 0, u32::MAX, b"")), None);
        assert_eq!(reply(b""), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = reply(&bytes);
        }

        #[test]
        fn replies_are_read_back(err in any::<u32>(), more in any::<u32>(), text in prop::collection::vec(1u8.., 0..511)) {
            let len = u32::try_from(text.len() + 1).unwrap();
            let bytes = datagram(err, more, len, &[text.as_slice(), b"\0"].concat());
            prop_assert_eq!(reply(&bytes), Some(Reply { failed: err != 0, more: more != 0, text: &text }));
        }
    }
}
