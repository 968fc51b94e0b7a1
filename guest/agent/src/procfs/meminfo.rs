//! `/proc/meminfo` (proc_meminfo(5)).

use plimsoll_model::AgentStats;
use plimsoll_units::Bytes;

/// Puts in what the text has.
pub(crate) fn read(text: &[u8], stats: &mut AgentStats) {
    let (mut cached, mut buffers) = (None, None);
    for (name, kib) in super::entries(text) {
        let bytes = Some(Bytes::kib(kib));
        match name {
            b"MemTotal" => stats.total = bytes,
            b"MemFree" => stats.free = bytes,
            b"MemAvailable" => stats.available = bytes,
            b"Buffers" => buffers = bytes,
            b"Cached" => cached = bytes,
            b"Active(file)" => stats.active_file = bytes,
            b"AnonPages" => stats.anon = bytes,
            b"SwapTotal" => stats.swap_total = bytes,
            b"SwapFree" => stats.swap_free = bytes,
            b"Committed_AS" => stats.committed = bytes,
            _ => {}
        }
    }
    stats.cached = cached.map(|cached| cached.plus(buffers.unwrap_or_default()));
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> AgentStats {
        let mut stats = AgentStats::default();
        read(text.as_bytes(), &mut stats);
        stats
    }

    /// The lines of Linux 4.4 that matter, and some that look like them.
    const LINUX_4_4: &str = "\
MemTotal:        2048160 kB
MemFree:          147448 kB
MemAvailable:    1412332 kB
Buffers:          105064 kB
Cached:          1222412 kB
SwapCached:         1044 kB
Active:           964340 kB
Inactive:         703844 kB
Active(anon):     180312 kB
Inactive(anon):   182980 kB
Active(file):     784028 kB
Inactive(file):   520864 kB
SwapTotal:       1046524 kB
SwapFree:        1032188 kB
AnonPages:        339920 kB
Shmem:             22584 kB
CommitLimit:     2070604 kB
Committed_AS:    1337032 kB
VmallocTotal:   34359738367 kB
AnonHugePages:     65536 kB
HugePages_Total:       0
";

    #[test]
    fn linux_4_4() {
        let expected = AgentStats {
            total: Some(Bytes::kib(2_048_160)),
            free: Some(Bytes::kib(147_448)),
            available: Some(Bytes::kib(1_412_332)),
            committed: Some(Bytes::kib(1_337_032)),
            cached: Some(Bytes::kib(1_222_412 + 105_064)),
            active_file: Some(Bytes::kib(784_028)),
            anon: Some(Bytes::kib(339_920)),
            swap_total: Some(Bytes::kib(1_046_524)),
            swap_free: Some(Bytes::kib(1_032_188)),
            ..AgentStats::default()
        };
        assert_eq!(parsed(LINUX_4_4), expected);
    }

    #[test]
    fn linux_6_18_with_lines_that_linux_4_has_not() {
        let text = "MemTotal:       24684084 kB\nMemAvailable:   23760124 kB\nKReclaimable:     491220 kB\n\
            Zswap:                 0 kB\nSecPageTables:         0 kB\nCommitted_AS:     271736 kB\n\
            Balloon:            4096 kB\nDirectMap1G:    25165824 kB\n";
        let stats = parsed(text);
        assert_eq!(stats.committed, Some(Bytes::kib(271_736)));
        assert_eq!((stats.free, stats.cached, stats.swap_total), (None, None, None));
    }

    proptest! {
        #[test]
        fn any_cut_of_the_text_is_read_without_panic(cut in 0usize..LINUX_4_4.len()) {
            let stats = parsed(&LINUX_4_4[..cut]);
            prop_assert!(stats.total.is_none_or(|total| total <= Bytes::kib(2_048_160)));
        }
    }
}
