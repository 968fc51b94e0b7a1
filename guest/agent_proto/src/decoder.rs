//! Reports out of bytes.

use serde::{Deserialize, Serialize};

use crate::frame::{Frame, VERSION};
use crate::scan::{Found, Scanner};
use crate::{Report, report, tags};

/// What came over a line since its reader began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Reports handed on.
    pub frames: u64,
    /// Beginnings of frames with an impossible length, a wrong checksum, a lost end or half a value.
    pub bad_frames: u64,
    /// Bytes that belong to no frame: noise, and what is left of bad frames.
    pub skipped_bytes: u64,
    /// Frames of a version later than ours: the agent is newer than the host.
    pub newer_versions: u64,
    /// Frames of a version earlier than ours.
    pub older_versions: u64,
    /// Frames of our version that are no reports.
    pub unknown_kinds: u64,
    /// Reports whose number is not above that of the report before in the same session. Not handed on.
    pub out_of_order: u64,
    /// Reports beyond [`crate::REPORTS_PER_SECOND`].
    pub flooded: u64,
    /// Bytes beyond the allowance, thrown away unseen ([`crate::Intake::allowance`]).
    pub dropped_bytes: u64,
}

/// Finds reports in what comes from an agent.
///
/// Holds less than [`crate::MAX_FRAME`] bytes between two calls.
#[derive(Clone, Debug)]
pub struct Decoder {
    scanner: Scanner,
    /// Session and number of the last report handed on.
    last: Option<(u32, u64)>,
    pub(crate) counters: Counters,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { scanner: Scanner::new(), last: None, counters: Counters::default() }
    }

    /// Takes in bytes and hands on the reports that they complete, oldest first.
    pub fn feed(&mut self, bytes: &[u8], mut out: impl FnMut(Report)) {
        let Self { scanner, last, counters } = self;
        scanner.feed(bytes, |found| {
            if let Some(report) = take(found, last, counters) {
                out(report);
            }
        });
    }

    /// What came so far; `flooded` and `dropped_bytes` are 0, they belong to [`crate::Intake`].
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Forgets the frame that is under way. Counters and the order of reports stay.
    pub fn clear(&mut self) {
        self.scanner.clear();
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

pub(crate) const fn add(counter: &mut u64, n: u64) {
    *counter = counter.saturating_add(n);
}

fn take(found: Found<'_>, last: &mut Option<(u32, u64)>, counters: &mut Counters) -> Option<Report> {
    match found {
        Found::Frame(frame) => return take_frame(&frame, last, counters),
        Found::OtherVersion(version) if version > VERSION => add(&mut counters.newer_versions, 1),
        Found::OtherVersion(_) => add(&mut counters.older_versions, 1),
        Found::Bad => add(&mut counters.bad_frames, 1),
        Found::Skipped(n) => add(&mut counters.skipped_bytes, u64::try_from(n).unwrap_or(u64::MAX)),
    }
    None
}

fn take_frame(frame: &Frame<'_>, last: &mut Option<(u32, u64)>, counters: &mut Counters) -> Option<Report> {
    if frame.kind != report::KIND {
        add(&mut counters.unknown_kinds, 1);
        return None;
    }
    let Some(stats) = tags::read(frame.payload) else {
        add(&mut counters.bad_frames, 1);
        return None;
    };
    let Frame { session, seq, urgent, .. } = *frame;
    if last.is_some_and(|(last_session, last_seq)| session == last_session && seq <= last_seq) {
        add(&mut counters.out_of_order, 1);
        return None;
    }
    *last = Some((session, seq));
    add(&mut counters.frames, 1);
    Some(Report { session, seq, urgent, stats })
}

#[cfg(test)]
mod test {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::encode;
    use crate::test_kit::{Rng, any_report, nasty_byte, with_version};

    fn numbered(session: u32, seq: u64) -> Report {
        Report { session, seq, ..Report::default() }
    }

    fn fed(decoder: &mut Decoder, reports: &[Report]) -> Vec<(u32, u64)> {
        let mut line = Vec::new();
        reports.iter().for_each(|report| encode(report, &mut line));
        let mut taken = Vec::new();
        decoder.feed(&line, |report| taken.push((report.session, report.seq)));
        taken
    }

    #[test]
    fn old_reports_are_dropped_and_a_restarted_agent_begins_anew() {
        let mut decoder = Decoder::new();
        let sent = [(1, 5), (1, 5), (1, 4), (1, 9), (2, 1), (2, 1), (2, 2)];
        let taken = fed(&mut decoder, &sent.map(|(session, seq)| numbered(session, seq)));
        assert_eq!(taken, [(1, 5), (1, 9), (2, 1), (2, 2)]);
        assert_eq!((decoder.counters().out_of_order, decoder.counters().frames), (3, 4));
    }

    #[test]
    fn other_versions_and_kinds_are_counted_and_harm_nothing() {
        let mut line = Vec::new();
        encode(&numbered(1, 1), &mut line);
        let newer = with_version(&line, 2);
        let older = with_version(&line, 0);
        let mut pace = Vec::new();
        crate::encode_pace(1000, &mut pace);
        let mut decoder = Decoder::new();
        let mut taken = Vec::new();
        decoder.feed(&[newer, older, pace, line].concat(), |report| taken.push(report));
        assert_eq!(taken, vec![numbered(1, 1)]);
        let expected = Counters {
            frames: 1,
            newer_versions: 1,
            older_versions: 1,
            unknown_kinds: 1,
            ..Counters::default()
        };
        assert_eq!(decoder.counters(), expected);
    }

    #[test]
    fn a_frame_with_half_a_value_is_bad() {
        let mut line = Vec::new();
        let payload = [0; 10];
        Frame { kind: report::KIND, urgent: false, session: 1, seq: 1, payload: &payload }.write(&mut line);
        let mut decoder = Decoder::new();
        decoder.feed(&line, |report| panic!("{report:?}"));
        assert_eq!(decoder.counters(), Counters { bad_frames: 1, ..Counters::default() });
    }

    /// What happens to bytes on a bad line. What comes out need not hold the frame that went in.
    fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
        match rng.below(8) {
            0 => bytes.truncate(rng.index(bytes.len())),
            1 => drop(bytes.drain(..rng.index(bytes.len()))),
            2 => {
                let at = rng.index(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
            3 => *bytes = (0..rng.index(700)).map(|_| rng.byte()).collect(),
            4 => drop(bytes.splice(0..0, *b"[   12.345678] Out of memory: Killed process 7\r\n")),
            _ => {}
        }
    }

    /// Whether a fresh reader finds the report in these bytes.
    fn intact(bytes: &[u8], report: &Report) -> bool {
        let mut found = false;
        Decoder::new().feed(bytes, |have| found |= have == *report);
        found
    }

    /// A long stream of frames that lose bytes, have bits changed, and noise put between. Whatever was not touched
    /// arrives, and nothing arrives that was never sent. (A little more may arrive: two halves can make a whole.)
    #[test]
    fn a_damaged_line_loses_only_what_was_damaged() {
        let mut rng = Rng::new(0x0BAD_5EED);
        let mut decoder = Decoder::new();
        let (mut whole, mut taken) = (Vec::new(), Vec::new());
        let mut sent = vec![Report::default()];
        for seq in 1..20_000u64 {
            let stats = plimsoll_model::AgentStats { swap_in: Some(rng.next()), ..Default::default() };
            let report = Report { session: 1, seq, urgent: false, stats };
            sent.push(report);
            let mut bytes = Vec::new();
            encode(&report, &mut bytes);
            damage(&mut bytes, &mut rng);
            if intact(&bytes, &report) {
                whole.push(seq);
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(1 + rng.index(rest.len()));
                decoder.feed(piece, |report| taken.push(report));
                rest = after;
            }
        }
        let unsent = taken.iter().find(|report| sent[usize::try_from(report.seq).expect("fits")] != **report);
        assert_eq!(unsent, None);
        let arrived: Vec<_> = taken.iter().map(|report| report.seq).collect();
        let lost = whole.iter().find(|seq| arrived.binary_search(seq).is_err());
        assert_eq!(lost, None);
        assert!(whole.len() > 8000 && arrived.len() - whole.len() < 100, "{} {}", whole.len(), arrived.len());
        assert!(decoder.counters().bad_frames > 100 && decoder.counters().skipped_bytes > 100_000);
    }

    proptest! {
        #[test]
        fn reports_come_back(mut reports in prop::collection::vec(any_report(), 1..10), size in 1usize..600) {
            for (n, report) in (1..).zip(&mut reports) {
                (report.session, report.seq) = (3, n);
            }
            let mut line = Vec::new();
            reports.iter().for_each(|report| encode(report, &mut line));
            let (mut decoder, mut taken) = (Decoder::new(), Vec::new());
            for piece in line.chunks(size) {
                decoder.feed(piece, |report| taken.push(report));
            }
            prop_assert_eq!(&taken, &reports);
            prop_assert_eq!(decoder.counters(), Counters { frames: u64::try_from(reports.len()).expect("few"), ..Counters::default() });
        }

        #[test]
        fn any_bytes_are_survived_and_accounted_for(
            bytes in prop::collection::vec(nasty_byte(), 0..4000), size in 1usize..600,
        ) {
            let mut decoder = Decoder::new();
            for piece in bytes.chunks(size) {
                decoder.feed(piece, |_| {});
            }
            let skipped = usize::try_from(decoder.counters().skipped_bytes).expect("few");
            prop_assert!(skipped <= bytes.len() && bytes.len() - skipped < crate::MAX_FRAME);
        }
    }
}
