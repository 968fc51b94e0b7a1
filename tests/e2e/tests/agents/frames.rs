//! Bytes for an agent's line.

use plimsoll_agent_proto::{Report, encode};
use plimsoll_model::AgentStats;
use plimsoll_units::Bytes;

use plimsoll_e2e::mib;

/// So many frames are made of a kind: enough for a quarter of a minute, five in a second.
pub(crate) const FRAMES: u64 = 75;

/// What a guest of so much memory says when all is well.
pub(crate) fn calm(maxmem: Bytes) -> AgentStats {
    let total = maxmem.minus(mib(24));
    AgentStats {
        total: Some(total),
        free: Some(total.minus(mib(48))),
        available: Some(total.minus(mib(40))),
        committed: Some(mib(16)),
        cached: Some(mib(8)),
        anon: Some(mib(8)),
        ..AgentStats::default()
    }
}

/// Frames of one length each, one after the other, with these numbers: session and sequence number.
pub(crate) fn reports(stats: AgentStats, numbers: impl IntoIterator<Item = (u32, u64)>) -> Vec<Vec<u8>> {
    let frame = |(session, seq)| {
        let mut bytes = Vec::new();
        encode(&Report { session, seq, urgent: false, stats }, &mut bytes);
        bytes
    };
    numbers.into_iter().map(frame).collect()
}

/// The same in order, in a session of its own.
pub(crate) fn in_order(stats: AgentStats) -> Vec<Vec<u8>> {
    reports(stats, (1..=FRAMES).map(|seq| (0x5eed, seq)))
}

/// Each frame as one of another version: byte 4, and the checksum over all behind the magic made right again.
pub(crate) fn of_version(version: u8, mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for frame in &mut frames {
        frame[4] = version;
        let end = frame.len() - 4;
        let sum = crc32(&frame[4..end]);
        frame[end..].copy_from_slice(&sum.to_le_bytes());
    }
    frames
}

/// Each frame without its last bytes.
pub(crate) fn truncated(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let cut = |mut frame: Vec<u8>| {
        frame.truncate(frame.len() - 9);
        frame
    };
    frames.into_iter().map(cut).collect()
}

/// Each frame with a length of 65535 in its head.
pub(crate) fn huge(mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.iter_mut().for_each(|frame| frame[6..8].copy_from_slice(&[0xff, 0xff]));
    frames
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let byte = |sum: u32, byte: &u8| {
        let shift = |sum: u32, _| (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 };
        (0..8).fold(sum ^ u32::from(*byte), shift)
    };
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod test {
    use plimsoll_agent_proto::{Counters, Decoder, VERSION};

    use super::*;

    fn counted(frames: Vec<Vec<u8>>) -> Counters {
        let mut decoder = Decoder::new();
        decoder.feed(&frames.concat(), |_| {});
        decoder.counters()
    }

    /// What is made up is what it is called, to whom it is told.
    #[test]
    fn frames_are_what_they_are_called() {
        let good = || in_order(calm(mib(256)));
        assert_eq!(counted(good()), Counters { frames: FRAMES, ..Counters::default() });
        assert_eq!(counted(of_version(VERSION, good())).frames, FRAMES);
        assert_eq!(
            counted(of_version(VERSION + 1, good())),
            Counters { newer_versions: FRAMES, ..Counters::default() }
        );
        assert_eq!(
            counted(of_version(VERSION - 1, good())),
            Counters { older_versions: FRAMES, ..Counters::default() }
        );
        for bad in [truncated(good()), huge(good())] {
            let counters = counted(bad);
            // The last one may still be waited for.
            assert!(counters.frames == 0 && counters.bad_frames >= FRAMES - 1, "{counters:?}");
        }
        let backwards = reports(calm(mib(256)), (1..=FRAMES).rev().map(|seq| (7, seq)));
        assert_eq!((counted(backwards.clone()).frames, counted(backwards).out_of_order), (1, FRAMES - 1));
    }
}
