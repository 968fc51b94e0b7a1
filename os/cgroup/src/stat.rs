//! `memory.stat` and the counters of events.

use plimsoll_units::Bytes;

/// What a group's memory is made of, groups inside included. Kernels differ in what they tell: `None` is what this
/// one does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemStat {
    /// Anonymous memory (v2 `anon`, v1 `total_rss`).
    pub anon: Option<Bytes>,
    /// Page cache, shared memory and tmpfs included (v2 `file`, v1 `total_cache`).
    pub file: Option<Bytes>,
    /// Shared memory and tmpfs: swapped out like anonymous memory (v2 `shmem`, v1 `total_shmem`).
    pub shmem: Option<Bytes>,
    /// Page cache used often, shared memory not included (`active_file`).
    pub active_file: Option<Bytes>,
    /// Page cache used seldom, shared memory not included (`inactive_file`).
    pub inactive_file: Option<Bytes>,
    /// Kernel memory that can be given up (v2 `slab_reclaimable`).
    pub slab_reclaimable: Option<Bytes>,
    /// Faults since the group was made (`pgfault`).
    pub faults: Option<u64>,
    /// Faults that waited for a disk, since the group was made (`pgmajfault`).
    pub major_faults: Option<u64>,
    /// Pages swapped in since the group was made (v2 `pswpin`, Linux 6.12 on).
    pub swap_in_pages: Option<u64>,
    /// Pages swapped out since the group was made (v2 `pswpout`, Linux 6.12 on).
    pub swap_out_pages: Option<u64>,
    /// Pages that zswap gave back since the group was made (v2 `zswpin`).
    pub zswap_in_pages: Option<u64>,
    /// Pages that zswap took since the group was made (v2 `zswpout`).
    pub zswap_out_pages: Option<u64>,
}

impl MemStat {
    /// What the kernel could drop without writing to swap: page cache that is no shared memory, and slabs. An
    /// upper bound, dirty pages are in it.
    #[must_use]
    pub fn reclaimable(&self) -> Bytes {
        [self.active_file, self.inactive_file, self.slab_reclaimable].into_iter().flatten().sum()
    }

    pub(crate) fn parse_v1(text: &str) -> Self {
        // The names without total_ count this group alone, without those inside.
        Self::collect(text, |name| match name.strip_prefix("total_")? {
            "rss" => Some("anon"),
            "cache" => Some("file"),
            other => Some(other),
        })
    }

    pub(crate) fn parse_v2(text: &str) -> Self {
        Self::collect(text, Some)
    }

    fn collect<'a>(text: &'a str, translate: impl Fn(&'a str) -> Option<&'a str>) -> Self {
        let mut stat = Self::default();
        for (name, n) in entries(text) {
            let (bytes, count) = (Some(Bytes(n)), Some(n));
            match translate(name) {
                Some("anon") => stat.anon = bytes,
                Some("file") => stat.file = bytes,
                Some("shmem") => stat.shmem = bytes,
                Some("active_file") => stat.active_file = bytes,
                Some("inactive_file") => stat.inactive_file = bytes,
                Some("slab_reclaimable") => stat.slab_reclaimable = bytes,
                Some("pgfault") => stat.faults = count,
                Some("pgmajfault") => stat.major_faults = count,
                Some("pswpin") => stat.swap_in_pages = count,
                Some("pswpout") => stat.swap_out_pages = count,
                Some("zswpin") => stat.zswap_in_pages = count,
                Some("zswpout") => stat.zswap_out_pages = count,
                _ => {}
            }
        }
        stat
    }
}

/// How often a group ran into its limit since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemEvents {
    /// Times the limit was reached (v2 `memory.events` `max`, v1 `memory.failcnt`). Version 1 does not count here
    /// when its limit of memory plus swap is reached first, which it is when no swap is allowed.
    pub max: Option<u64>,
    /// Times no memory could be had within the limit (v2 `oom`; v1 does not count it).
    pub oom: Option<u64>,
    /// Processes ended for it (v2 `oom_kill`, v1 `memory.oom_control` `oom_kill`, Linux 4.13 on).
    pub oom_kill: Option<u64>,
    /// Times the group was slowed down above `memory.high` (v2 `high`).
    pub high: Option<u64>,
}

impl MemEvents {
    /// Reads v2's `memory.events` or v1's `memory.oom_control`, which agree on the name `oom_kill`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut events = Self::default();
        for (name, n) in entries(text) {
            match name {
                "max" => events.max = Some(n),
                "oom" => events.oom = Some(n),
                "oom_kill" => events.oom_kill = Some(n),
                "high" => events.high = Some(n),
                _ => {}
            }
        }
        events
    }
}

/// Lines of a name and a number; others are passed over.
fn entries(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, number) = line.split_once(' ')?;
        Some((name, number.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    const V1: &str = "cache 9252864\nrss 10596352\nshmem 9084928\npgfault 41473\npgmajfault 0\n\
        hierarchical_memory_limit 9223372036854771712\ntotal_cache 536219648\ntotal_rss 19259392\n\
        total_shmem 9084928\ntotal_swap 0\ntotal_pgfault 6193281\ntotal_pgmajfault 2302\n\
        total_inactive_anon 8450048\ntotal_inactive_file 349544448\ntotal_active_file 177586176\n";
    const V2: &str = "anon 4096\nfile 81920\nkernel 40960\nshmem 8192\ninactive_file 20480\nactive_file 28672\n\
        slab_reclaimable 12288\nslab 16384\nworkingset_refault_anon 3\npgfault 77\npgmajfault 5\npswpin 11\npswpout 12\n\
        zswpin 13\nzswpout 14\n";

    #[test]
    fn version_1_counts_the_groups_inside() {
        let stat = MemStat::parse_v1(V1);
        assert_eq!(stat.anon, Some(Bytes(19_259_392)));
        assert_eq!(stat.file, Some(Bytes(536_219_648)));
        assert_eq!(stat.shmem, Some(Bytes(9_084_928)));
        assert_eq!((stat.faults, stat.major_faults), (Some(6_193_281), Some(2302)));
        assert_eq!(stat.reclaimable(), Bytes(349_544_448 + 177_586_176));
        assert_eq!(stat.swap_in_pages, None);
    }

    #[test]
    fn version_2() {
        let stat = MemStat::parse_v2(V2);
        assert_eq!(stat.anon, Some(Bytes(4096)));
        assert_eq!((stat.swap_in_pages, stat.swap_out_pages), (Some(11), Some(12)));
        assert_eq!((stat.zswap_in_pages, stat.zswap_out_pages), (Some(13), Some(14)));
        assert_eq!(stat.reclaimable(), Bytes(20_480 + 28_672 + 12_288));
    }

    #[test]
    fn events_of_both_versions() {
        let v2 = MemEvents::parse("low 0\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 0\n");
        assert_eq!(v2, MemEvents { max: Some(3), oom: Some(4), oom_kill: Some(5), high: Some(2) });
        let v1 = MemEvents::parse("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n");
        assert_eq!(v1, MemEvents { oom_kill: Some(7), ..MemEvents::default() });
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "((total_)?(anon|rss|file|active_file) ?|[0-9]{0,25}|\n|.){0,40}") {
            let stats = [MemStat::parse_v1(&text), MemStat::parse_v2(&text)];
            let _ = (stats.map(|s| s.reclaimable()), MemEvents::parse(&text));
        }
    }
}
