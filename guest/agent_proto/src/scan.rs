//! Finds frames in a stream of anything.

use alloc::vec::Vec;

use crate::frame::{Frame, Look, MAGIC, MAX_FRAME, look};

/// How much is looked at in one go: bounds the buffer.
const CHUNK: usize = 1024;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// A frame of our version.
    Frame(Frame<'a>),
    /// A frame of another version.
    OtherVersion(u8),
    /// A magic, and behind it no frame.
    Bad,
    /// So many bytes that belong to no frame.
    Skipped(usize),
}

/// Holds the beginning of a frame until its end arrives; less than `MAX_FRAME` bytes between two calls.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    pending: Vec<u8>,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self { pending: Vec::with_capacity(MAX_FRAME.saturating_add(CHUNK)) }
    }

    /// Forgets what is held.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
    }

    /// Takes in bytes. Work is linear in their number: each magic costs at most one checksum of `MAX_FRAME` bytes,
    /// and one more where it lies inside of what an earlier one claims to be its own.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(Found<'_>)) {
        for chunk in bytes.chunks(CHUNK) {
            self.pending.extend_from_slice(chunk);
            let done = scan(&self.pending, &mut found);
            self.pending.drain(..done);
        }
    }
}

/// Looks through the bytes and returns how many are done with.
fn scan(bytes: &[u8], found: &mut impl FnMut(Found<'_>)) -> usize {
    let mut done = 0usize;
    loop {
        let rest = bytes.get(done..).unwrap_or_default();
        let offset = magic_in(rest);
        skip(offset, found);
        done = done.saturating_add(offset);
        let rest = bytes.get(done..).unwrap_or_default();
        if rest.len() < MAGIC.len() {
            return done;
        }
        let step = match look(rest) {
            Look::Frame(frame, length) => {
                found(Found::Frame(frame));
                length
            }
            Look::OtherVersion(version, length) => {
                found(Found::OtherVersion(version));
                length
            }
            Look::Bad => {
                found(Found::Bad);
                skip(MAGIC.len(), found);
                MAGIC.len()
            }
            // A beginning whose end was lost must not hold up the frames behind it until enough of them have come.
            Look::Incomplete => match whole_frame_inside(rest) {
                Some(offset) => {
                    found(Found::Bad);
                    skip(offset, found);
                    offset
                }
                None => return done,
            },
        };
        done = done.saturating_add(step);
    }
}

fn skip(n: usize, found: &mut impl FnMut(Found<'_>)) {
    if n > 0 {
        found(Found::Skipped(n));
    }
}

/// Where the first magic begins, or what may become one at the end; the length if there is none.
fn magic_in(bytes: &[u8]) -> usize {
    let [first, ..] = MAGIC;
    let mut at = 0usize;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(offset) = rest.iter().position(|byte| *byte == first) else { return bytes.len() };
        at = at.saturating_add(offset);
        let here = bytes.get(at..).unwrap_or_default();
        if here.iter().zip(MAGIC).all(|(have, want)| *have == want) {
            return at;
        }
        at = at.saturating_add(1);
    }
}

/// The offset of a whole frame that begins after the magic at the beginning.
fn whole_frame_inside(bytes: &[u8]) -> Option<usize> {
    let mut at = MAGIC.len();
    loop {
        let rest = bytes.get(at..)?;
        at = at.saturating_add(magic_in(rest));
        let rest = bytes.get(at..).filter(|rest| rest.len() >= MAGIC.len())?;
        if matches!(look(rest), Look::Frame(..) | Look::OtherVersion(..)) {
            return Some(at);
        }
        at = at.saturating_add(MAGIC.len());
    }
}

#[cfg(test)]
mod test {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn frame_bytes(seq: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Frame { kind: 1, urgent: false, session: 1, seq, payload }.write(&mut bytes);
        bytes
    }

    /// The sequence numbers found, and the number of bytes that were accounted for as skipped.
    fn found(pieces: &[&[u8]]) -> (Vec<u64>, usize) {
        let (mut scanner, mut seqs, mut skipped) = (Scanner::new(), Vec::new(), 0);
        for piece in pieces {
            scanner.feed(piece, |found| match found {
                Found::Frame(frame) => seqs.push(frame.seq),
                Found::Skipped(n) => skipped += n,
                Found::Bad | Found::OtherVersion(_) => {}
            });
            assert!(scanner.pending.len() < MAX_FRAME, "holds {}", scanner.pending.len());
            assert!(scanner.pending.capacity() <= MAX_FRAME + CHUNK);
        }
        (seqs, skipped)
    }

    #[test]
    fn a_frame_behind_a_lost_end_is_found_at_once() {
        let long = frame_bytes(1, &[7; 400]);
        let whole = frame_bytes(2, &[8; 90]);
        assert_eq!(found(&[&long[..100], &whole]), (vec![2], 100));
    }

    #[test]
    fn many_beginnings_of_frames_hide_no_frame() {
        let beginning = [MAGIC.as_slice(), &[1, 1, 0x08, 0x02]].concat();
        let mut bytes = beginning.repeat(1000);
        bytes.extend(frame_bytes(3, &[]));
        assert_eq!(found(&[&bytes]), (vec![3], 8000));
    }

    #[test]
    fn the_beginning_of_a_magic_is_kept() {
        let bytes = frame_bytes(4, &[1, 2, 3]);
        for cut in 0..bytes.len() {
            assert_eq!(found(&[b"noise", &bytes[..cut], &bytes[cut..]]), (vec![4], 5), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn a_frame_after_any_garbage_is_found_with_its_last_byte(
            garbage in prop::collection::vec(crate::test_kit::nasty_byte(), 0..3000),
            payload in prop::collection::vec(any::<u8>(), 0..500),
            pieces in 1usize..400,
        ) {
            let mut bytes = garbage;
            bytes.extend(frame_bytes(77, &payload));
            let pieces: Vec<_> = bytes.chunks(pieces).collect();
            prop_assert!(found(&pieces).0.contains(&77));
        }

        #[test]
        fn how_the_stream_is_cut_makes_no_difference_to_whole_frames(
            seqs in prop::collection::vec(any::<u64>(), 0..20), size in 1usize..700,
        ) {
            let bytes: Vec<u8> = seqs.iter().flat_map(|seq| frame_bytes(*seq, &seq.to_le_bytes())).collect();
            let pieces: Vec<_> = bytes.chunks(size).collect();
            prop_assert_eq!(found(&pieces), (seqs, 0));
        }
    }
}
