//! The one thing the host may tell an agent: how often to report. An agent that never hears it keeps its own pace.

use alloc::vec::Vec;

use crate::frame::Frame;
use crate::scan::{Found, Scanner};
use crate::tags;

/// The shortest time between two regular reports, in milliseconds.
pub const SHORTEST_PACE_MS: u32 = 100;
/// The longest time between two regular reports, in milliseconds.
pub const LONGEST_PACE_MS: u32 = 60_000;

const KIND: u8 = 2;
const INTERVAL_MS: u8 = 1;

/// Appends the frame that asks for a report every `interval_ms`; what is outside [`SHORTEST_PACE_MS`] to
/// [`LONGEST_PACE_MS`] is brought inside.
pub fn encode_pace(interval_ms: u32, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    let interval_ms = interval_ms.clamp(SHORTEST_PACE_MS, LONGEST_PACE_MS);
    tags::push(&mut payload, INTERVAL_MS, u64::from(interval_ms));
    Frame { kind: KIND, urgent: false, session: 0, seq: 0, payload: &payload }.write(out);
}

/// Finds paces in what comes from the host.
#[derive(Clone, Debug)]
pub struct PaceDecoder {
    scanner: Scanner,
}

impl PaceDecoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { scanner: Scanner::new() }
    }

    /// Takes in bytes and returns the last interval asked for, in milliseconds, brought inside the bounds.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<u32> {
        let mut asked = None;
        self.scanner.feed(bytes, |found| {
            if let Found::Frame(Frame { kind: KIND, payload, .. }) = found {
                asked = interval_in(payload).or(asked);
            }
        });
        asked
    }
}

impl Default for PaceDecoder {
    fn default() -> Self {
        Self::new()
    }
}

fn interval_in(payload: &[u8]) -> Option<u32> {
    let (_, interval) = tags::pairs(payload)?.filter(|(tag, _)| *tag == INTERVAL_MS).last()?;
    Some(u32::try_from(interval).unwrap_or(u32::MAX).clamp(SHORTEST_PACE_MS, LONGEST_PACE_MS))
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;
    use crate::{Report, encode};

    #[test]
    fn the_last_pace_counts_and_reports_are_none() {
        let mut line = b"# ".to_vec();
        encode_pace(250, &mut line);
        encode(&Report::default(), &mut line);
        encode_pace(2000, &mut line);
        let mut decoder = PaceDecoder::new();
        assert_eq!(decoder.feed(&line), Some(2000));
        assert_eq!(decoder.feed(b"more"), None);
    }

    proptest! {
        #[test]
        fn every_pace_comes_back_within_bounds(interval: u32) {
            let mut line = Vec::new();
            encode_pace(interval, &mut line);
            prop_assert_eq!(PaceDecoder::new().feed(&line), Some(interval.clamp(100, 60_000)));
        }

        #[test]
        fn garbage_sets_no_pace(bytes in prop::collection::vec(crate::test_kit::nasty_byte(), 0..2000)) {
            prop_assert_eq!(PaceDecoder::new().feed(&bytes), None);
        }
    }
}
