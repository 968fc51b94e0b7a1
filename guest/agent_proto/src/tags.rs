//! The content of a report as pairs of a tag and a number.

use alloc::vec::Vec;

use plimsoll_model::{AgentStats, PsiTotals};
use plimsoll_units::Bytes;

/// A tag and its number.
pub(crate) const PAIR: usize = 9;

// What a tag means is never changed, and its number never used again.
const TOTAL: u8 = 1;
const FREE: u8 = 2;
const AVAILABLE: u8 = 3;
const COMMITTED: u8 = 4;
const CACHED: u8 = 5;
const ACTIVE_FILE: u8 = 6;
const ANON: u8 = 7;
const SWAP_TOTAL: u8 = 8;
const SWAP_FREE: u8 = 9;
const RESERVE: u8 = 10;
const SWAP_IN: u8 = 11;
const SWAP_OUT: u8 = 12;
const REFAULTS: u8 = 13;
const MAJOR_FAULTS: u8 = 14;
const ALLOC_STALLS: u8 = 15;
const OOM_KILLS: u8 = 16;
const PSI_SOME_US: u8 = 17;
const PSI_FULL_US: u8 = 18;

/// Appends a pair.
pub(crate) fn push(out: &mut Vec<u8>, tag: u8, value: u64) {
    out.push(tag);
    out.extend_from_slice(&value.to_le_bytes());
}

/// The pairs of a payload; `None` unless it consists of whole ones.
pub(crate) fn pairs(payload: &[u8]) -> Option<impl Iterator<Item = (u8, u64)>> {
    let (chunks, rest) = payload.as_chunks::<PAIR>();
    let pair = |[tag, value @ ..]: &[u8; PAIR]| (*tag, u64::from_le_bytes(*value));
    rest.is_empty().then(|| chunks.iter().map(pair))
}

/// Appends what is known.
pub(crate) fn write(stats: &AgentStats, out: &mut Vec<u8>) {
    let bytes = |value: Option<Bytes>| value.map(|bytes| bytes.0);
    let known = [
        (TOTAL, bytes(stats.total)),
        (FREE, bytes(stats.free)),
        (AVAILABLE, bytes(stats.available)),
        (COMMITTED, bytes(stats.committed)),
        (CACHED, bytes(stats.cached)),
        (ACTIVE_FILE, bytes(stats.active_file)),
        (ANON, bytes(stats.anon)),
        (SWAP_TOTAL, bytes(stats.swap_total)),
        (SWAP_FREE, bytes(stats.swap_free)),
        (RESERVE, bytes(stats.reserve)),
        (SWAP_IN, stats.swap_in),
        (SWAP_OUT, stats.swap_out),
        (REFAULTS, stats.refaults),
        (MAJOR_FAULTS, stats.major_faults),
        (ALLOC_STALLS, stats.alloc_stalls),
        (OOM_KILLS, stats.oom_kills),
        (PSI_SOME_US, stats.psi.map(|psi| psi.some_us)),
        (PSI_FULL_US, stats.psi.map(|psi| psi.full_us)),
    ];
    for (tag, value) in known {
        if let Some(value) = value {
            push(out, tag, value);
        }
    }
}

/// Reads a payload: tags that are not known are passed over, of one that comes twice the last counts.
/// `None` unless it consists of whole pairs.
pub(crate) fn read(payload: &[u8]) -> Option<AgentStats> {
    let mut stats = AgentStats::default();
    for (tag, value) in pairs(payload)? {
        set(&mut stats, tag, value);
    }
    Some(stats)
}

fn set(stats: &mut AgentStats, tag: u8, value: u64) {
    let (bytes, count) = (Some(Bytes(value)), Some(value));
    match tag {
        TOTAL => stats.total = bytes,
        FREE => stats.free = bytes,
        AVAILABLE => stats.available = bytes,
        COMMITTED => stats.committed = bytes,
        CACHED => stats.cached = bytes,
        ACTIVE_FILE => stats.active_file = bytes,
        ANON => stats.anon = bytes,
        SWAP_TOTAL => stats.swap_total = bytes,
        SWAP_FREE => stats.swap_free = bytes,
        RESERVE => stats.reserve = bytes,
        SWAP_IN => stats.swap_in = count,
        SWAP_OUT => stats.swap_out = count,
        REFAULTS => stats.refaults = count,
        MAJOR_FAULTS => stats.major_faults = count,
        ALLOC_STALLS => stats.alloc_stalls = count,
        OOM_KILLS => stats.oom_kills = count,
        // Linux has both or none; half of the pair alone leaves the other at 0.
        PSI_SOME_US => stats.psi.get_or_insert_default().some_us = value,
        PSI_FULL_US => stats.psi.get_or_insert(PsiTotals::default()).full_us = value,
        _ => {}
    }
}

#[cfg(test)]
mod test {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::frame::MAX_PAYLOAD;
    use crate::test_kit::any_stats;

    #[test]
    fn tags_of_a_later_agent_are_passed_over() {
        let mut payload = Vec::new();
        push(&mut payload, 200, 7);
        push(&mut payload, AVAILABLE, 4096);
        push(&mut payload, 0, 1);
        let stats = AgentStats { available: Some(Bytes(4096)), ..AgentStats::default() };
        assert_eq!(read(&payload), Some(stats));
    }

    #[test]
    fn half_a_pair_makes_the_payload_bad() {
        assert_eq!(read(&[]), Some(AgentStats::default()));
        assert_eq!(read(&[0; PAIR - 1]), None);
        assert_eq!(read(&[0; 3 * PAIR + 1]), None);
    }

    proptest! {
        #[test]
        fn everything_there_is_to_say_comes_back(stats in any_stats()) {
            let mut payload = Vec::new();
            write(&stats, &mut payload);
            prop_assert!(payload.len() <= MAX_PAYLOAD);
            prop_assert_eq!(read(&payload), Some(stats));
        }
    }
}
