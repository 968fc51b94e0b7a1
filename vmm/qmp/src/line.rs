//! Bytes of a stream, cut into lines.

/// The longest line taken from a peer, in bytes. QEMU's longest reply to what is asked here is a few KiB
/// (`qom-list` of a machine with hundreds of devices).
pub const MAX_LINE: usize = 1 << 20;

/// Above this an empty buffer is given back: one long line shall not be paid for ever after.
const KEPT: usize = 16 << 10;

/// Collects bytes until there is a line.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    bytes: Vec<u8>,
    /// Where the first unread line begins.
    start: usize,
    /// Up to here no line end was found.
    searched: usize,
}

/// A line longer than [`MAX_LINE`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl LineBuffer {
    /// Takes what was read.
    pub(crate) fn extend(&mut self, read: &[u8]) {
        self.bytes.extend_from_slice(read);
    }

    /// The next whole line without its end; `None` if more must be read first.
    pub(crate) fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let unsearched = self.bytes.get(self.searched..).unwrap_or_default();
        let Some(at) = unsearched.iter().position(|b| *b == b'\n') else {
            return self.wait_for_more();
        };
        let line = self.start..self.searched.saturating_add(at);
        if line.len() > MAX_LINE {
            return Err(TooLong);
        }
        self.start = line.end.saturating_add(1);
        self.searched = self.start;
        Ok(self.bytes.get(line).map(|l| l.strip_suffix(b"\r").unwrap_or(l)))
    }

    /// The bytes after the last whole line that was taken.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn wait_for_more(&mut self) -> Result<Option<&[u8]>, TooLong> {
        self.bytes.drain(..self.start.min(self.bytes.len()));
        self.start = 0;
        self.searched = self.bytes.len();
        if self.bytes.len() > MAX_LINE {
            return Err(TooLong);
        }
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
        Ok(None)
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(buffer: &mut LineBuffer) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| buffer.next_line().unwrap().map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut buffer = LineBuffer::default();
        for _ in 0..MAX_LINE / 1024 {
            buffer.extend(&[b'x'; 1024]);
            assert_eq!(buffer.next_line(), Ok(None));
        }
        buffer.extend(b"x");
        assert_eq!(buffer.next_line(), Err(TooLong));
    }

    #[test]
    fn a_long_line_leaves_no_memory_behind() {
        let mut buffer = LineBuffer::default();
        buffer.extend(&vec![b'x'; MAX_LINE]);
        buffer.extend(b"\n");
        assert_eq!(buffer.next_line().unwrap().unwrap().len(), MAX_LINE);
        assert_eq!(buffer.next_line(), Ok(None));
        assert!(buffer.bytes.capacity() <= KEPT);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(text in "[a-z\n\r]{0,200}", cuts in prop::collection::vec(1usize..20, 1..40)) {
            let mut buffer = LineBuffer::default();
            let mut lines = Vec::new();
            let mut rest = text.as_bytes();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                buffer.extend(now);
                lines.extend(lines_of(&mut buffer));
                rest = later;
            }
            let (whole, partial) = text.rsplit_once('\n').map_or((None, text.as_str()), |(w, p)| (Some(w), p));
            let want: Vec<Vec<u8>> = whole.map(|w| w.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l).into()).collect()).unwrap_or_default();
            prop_assert_eq!(lines, want);
            prop_assert_eq!(buffer.rest(), partial.as_bytes());
        }
    }
}
