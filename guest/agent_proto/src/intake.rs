//! The host's end of one guest's line: what the agent said last, at a cost that the guest cannot raise.

use crate::bucket::Bucket;
use crate::decoder::add;
use crate::{Counters, Decoder, MAX_FRAME, Report};

/// Bytes taken from a line each second. A report is less than 200 bytes long and an agent sends at most 11 a second,
/// a thirtieth of this; 64 KiB of the most expensive garbage cost a few milliseconds.
pub const BYTES_PER_SECOND: u32 = 64 << 10;
/// Bytes taken at once after a rest.
pub const BURST_BYTES: u32 = 16 << 10;
/// An allowance is at least this much or nothing, so that a guest that floods cannot cause a wake-up per byte.
pub const LEAST_READ: u32 = 1 << 10;
/// Reports a second that may be urgent, with as many kept from quiet times. An agent sends half of it.
pub const REPORTS_PER_SECOND: u32 = 20;

// A frame fits into the least allowance, or it might never be completed.
const _: () = assert!(MAX_FRAME < 1 << 10);

/// Reads one guest's line.
///
/// How to use it, with a clock of milliseconds that starts anywhere:
///
/// 1. wait until the line is readable, but not before [`Intake::wait_ms`] has passed,
/// 2. read at most [`Intake::allowance`] bytes and leave the others where they are: once the line is full the
///    guest's own writes wait, so that a flood costs the guest and not the host,
/// 3. [`Intake::feed`] them.
///
/// The latest report is always the one that came last, however many come. Beyond [`REPORTS_PER_SECOND`] they are
/// counted as flooded and none of them is taken for urgent, so that they wake nobody.
#[derive(Clone, Debug)]
pub struct Intake {
    decoder: Decoder,
    bytes: Bucket,
    reports: Bucket,
    latest: Option<(Report, u64)>,
    urgent: bool,
    flooded: u64,
    dropped_bytes: u64,
}

impl Intake {
    /// The beginning of a line.
    #[must_use]
    pub fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            bytes: Bucket::new(BYTES_PER_SECOND, BURST_BYTES),
            reports: Bucket::new(REPORTS_PER_SECOND, REPORTS_PER_SECOND),
            latest: None,
            urgent: false,
            flooded: 0,
            dropped_bytes: 0,
        }
    }

    /// How many bytes may be read now: none, or [`LEAST_READ`] to [`BURST_BYTES`].
    #[must_use]
    pub fn allowance(&self, now_ms: u64) -> usize {
        let tokens = self.bytes_at(now_ms).tokens();
        if tokens < LEAST_READ { 0 } else { usize::try_from(tokens).unwrap_or(0) }
    }

    /// Milliseconds until [`Intake::allowance`] is more than nothing; 0 when it is already. At most 16.
    #[must_use]
    pub fn wait_ms(&self, now_ms: u64) -> u64 {
        self.bytes_at(now_ms).wait_ms(LEAST_READ)
    }

    /// Takes in what was read. Bytes beyond the allowance are thrown away and counted.
    pub fn feed(&mut self, now_ms: u64, bytes: &[u8]) {
        self.bytes.refill(now_ms);
        self.reports.refill(now_ms);
        let allowed = usize::try_from(self.bytes.tokens()).unwrap_or(0).min(bytes.len());
        let (taken, dropped) = bytes.split_at_checked(allowed).unwrap_or((bytes, &[]));
        self.bytes.take(u32::try_from(allowed).unwrap_or(u32::MAX));
        add(&mut self.dropped_bytes, u64::try_from(dropped.len()).unwrap_or(u64::MAX));
        let Self { decoder, reports, latest, urgent, flooded, .. } = self;
        decoder.feed(taken, |report| {
            *latest = Some((report, now_ms));
            if reports.tokens() == 0 {
                add(flooded, 1);
                return;
            }
            reports.take(1);
            *urgent |= report.urgent;
        });
    }

    /// The report that came last, and when.
    #[must_use]
    pub const fn latest(&self) -> Option<(Report, u64)> {
        self.latest
    }

    /// Whether an urgent report has come since this was asked last.
    pub const fn take_urgent(&mut self) -> bool {
        core::mem::replace(&mut self.urgent, false)
    }

    /// What came so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        Counters { flooded: self.flooded, dropped_bytes: self.dropped_bytes, ..self.decoder.counters() }
    }

    /// The guest was rebooted: what its last life said counts no longer. Counters and limits stay.
    pub fn forget(&mut self) {
        self.decoder.clear();
        self.latest = None;
        self.urgent = false;
    }

    fn bytes_at(&self, now_ms: u64) -> Bucket {
        let mut bytes = self.bytes;
        bytes.refill(now_ms);
        bytes
    }
}

impl Default for Intake {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod test {
    extern crate std;

    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::encode;
    use crate::test_kit::{nasty_byte, with_version};

    fn frame(seq: u64, urgent: bool) -> Vec<u8> {
        let mut line = Vec::new();
        encode(&Report { session: 1, seq, urgent, ..Report::default() }, &mut line);
        line
    }

    #[test]
    fn a_flood_of_reports_wakes_nobody_and_the_last_counts() {
        let mut intake = Intake::new();
        let mut wakes = 0;
        for seq in 1..=500 {
            intake.feed(seq * 2, &frame(seq, true));
            wakes += u32::from(intake.take_urgent());
        }
        // One second: what was kept, and what came in.
        assert!((20..=40).contains(&wakes), "{wakes}");
        assert_eq!(intake.latest().map(|(report, at)| (report.seq, at)), Some((500, 1000)));
        let counters = intake.counters();
        assert_eq!(counters.frames, 500);
        assert_eq!(counters.flooded, 500 - u64::from(wakes));
        intake.feed(3000, &frame(501, true));
        assert!(intake.take_urgent(), "an agent that has calmed down is heard");
    }

    #[test]
    fn an_agent_at_its_own_limit_is_never_flooding() {
        let mut intake = Intake::new();
        for seq in 1..=1000 {
            intake.feed(seq * 90, &frame(seq, true));
            assert!(intake.take_urgent());
        }
        assert_eq!(intake.counters(), Counters { frames: 1000, ..Counters::default() });
    }

    #[test]
    fn a_flood_of_bytes_costs_its_allowance_and_no_more() {
        let mut intake = Intake::new();
        let garbage = [0xF5; 64 << 10];
        let (mut read, mut reads) = (0, 0);
        for now_ms in 0..=10_000 {
            let allowed = intake.allowance(now_ms);
            assert!(allowed == 0 || allowed >= 1024);
            assert_eq!(allowed == 0, intake.wait_ms(now_ms) > 0);
            if allowed > 0 {
                intake.feed(now_ms, &garbage[..allowed]);
                read += allowed;
                reads += 1;
            }
        }
        assert!(read <= (16 << 10) + 10 * (64 << 10), "{read}");
        assert!(reads <= 10 * 64 + 1, "{reads}");
        assert_eq!(intake.counters().dropped_bytes, 0);
        intake.feed(10_001, &garbage);
        assert!(intake.counters().dropped_bytes > 60_000);
        intake.feed(20_000, &frame(1, false));
        assert_eq!(intake.latest().map(|(report, _)| report.seq), Some(1));
    }

    /// What a guest may make a reader take in a second, in the forms that cost most. Optimized, on an idle core, it
    /// is less than 10 ms; the limit is for busy machines, and far below what work that is not linear would take.
    #[test]
    fn a_second_of_the_worst_garbage_is_soon_read() {
        // Beginnings of frames of all lengths, which are checked in vain or never end.
        let beginning = |length: u16| [&[0xF5, b'P', b'l', 0xFA, 1, 1][..], &length.to_le_bytes()].concat();
        for (length, piece) in [(16, 4096), (24, 1), (520, 4096), (520, 1), (520, 600), (65_535, 7)] {
            let garbage = beginning(length).repeat((64 << 10) / 8);
            let mut decoder = Decoder::new();
            let begun = std::time::Instant::now();
            for piece in garbage.chunks(piece) {
                decoder.feed(piece, |report| panic!("{report:?}"));
            }
            assert!(begun.elapsed().as_secs() < 20, "{length} in pieces of {piece}: {:?}", begun.elapsed());
            assert!(decoder.counters().bad_frames > 8000, "{:?}", decoder.counters());
        }
    }

    #[test]
    fn a_rebooted_guest_begins_anew() {
        let mut intake = Intake::new();
        let whole = frame(1, true);
        intake.feed(0, &whole);
        intake.feed(0, &whole[..20]);
        intake.forget();
        assert_eq!((intake.latest(), intake.take_urgent()), (None, false));
        let mut next = Vec::new();
        encode(&Report { session: 2, seq: 1, ..Report::default() }, &mut next);
        intake.feed(1, &next);
        assert_eq!(intake.latest().map(|(report, at)| (report.session, at)), Some((2, 1)));
        assert_eq!(intake.counters().skipped_bytes, 0);
    }

    #[test]
    fn an_agent_of_another_version_says_nothing() {
        let mut intake = Intake::new();
        for seq in 1..100 {
            intake.feed(seq * 100, &with_version(&frame(seq, true), 9));
        }
        assert_eq!((intake.latest(), intake.take_urgent()), (None, false));
        assert_eq!(intake.counters(), Counters { newer_versions: 99, ..Counters::default() });
    }

    proptest! {
        #[test]
        fn whatever_comes_whenever_is_survived(
            pieces in prop::collection::vec((any::<u32>(), prop::collection::vec(nasty_byte(), 0..700)), 0..40),
        ) {
            let mut intake = Intake::new();
            for (now_ms, piece) in pieces {
                intake.feed(u64::from(now_ms), &piece);
                prop_assert!(intake.wait_ms(u64::from(now_ms)) <= 16);
                prop_assert!(intake.latest().is_none());
            }
        }
    }
}
