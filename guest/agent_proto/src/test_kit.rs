//! What the tests here have in common.

use alloc::vec::Vec;

use plimsoll_model::{AgentStats, PsiTotals};
use plimsoll_units::Bytes;
use proptest::prelude::*;

use crate::Report;
use crate::frame::MAGIC;

/// Bytes among which magics, versions and small lengths are frequent.
pub(crate) fn nasty_byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => prop::sample::select(MAGIC.as_slice()),
        3 => prop::sample::select([0u8, 1, 2, 16, 255].as_slice()),
        1 => any::<u8>(),
    ]
}

/// Any content.
pub(crate) fn any_stats() -> impl Strategy<Value = AgentStats> {
    let psi = prop::option::of((any::<u64>(), any::<u64>()));
    (prop::collection::vec(any::<Option<u64>>(), 16), psi).prop_map(|(values, psi)| {
        let bytes = |n: usize| values[n].map(Bytes);
        AgentStats {
            total: bytes(0),
            free: bytes(1),
            available: bytes(2),
            committed: bytes(3),
            cached: bytes(4),
            active_file: bytes(5),
            anon: bytes(6),
            swap_total: bytes(7),
            swap_free: bytes(8),
            reserve: bytes(9),
            swap_in: values[10],
            swap_out: values[11],
            refaults: values[12],
            major_faults: values[13],
            alloc_stalls: values[14],
            oom_kills: values[15],
            psi: psi.map(|(some_us, full_us)| PsiTotals { some_us, full_us }),
        }
    })
}

/// Any report.
pub(crate) fn any_report() -> impl Strategy<Value = Report> {
    (any::<u32>(), any::<u64>(), any::<bool>(), any_stats())
        .prop_map(|(session, seq, urgent, stats)| Report { session, seq, urgent, stats })
}

/// A frame as an agent of another version would send it.
pub(crate) fn with_version(frame: &[u8], version: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[4] = version;
    let end = frame.len() - 4;
    let sum = crc32fast::hash(&frame[4..end]).to_le_bytes();
    frame[end..].copy_from_slice(&sum);
    frame
}

/// Numbers that are the same each time (SplitMix64).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A position in something of that length, 0 when it is empty.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        let length = u64::try_from(length).expect("fits");
        usize::try_from(self.below(length.max(1))).expect("fits")
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}
