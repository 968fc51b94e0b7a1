//! `/proc/vmstat` (proc_vmstat(5); names in the kernel's `mm/vmstat.c`).

use plimsoll_model::AgentStats;

/// Puts in what the text has. What a kernel counts for each zone or kind is added up.
pub(crate) fn read(text: &[u8], stats: &mut AgentStats) {
    let (mut refaults, mut stalls) = (None, None);
    for (name, n) in super::entries(text) {
        match name {
            b"pswpin" => stats.swap_in = Some(n),
            b"pswpout" => stats.swap_out = Some(n),
            b"pgmajfault" => stats.major_faults = Some(n),
            b"oom_kill" => stats.oom_kills = Some(n),
            // One before Linux 5.9, two since; never all three.
            b"workingset_refault" | b"workingset_refault_anon" | b"workingset_refault_file" => {
                add(&mut refaults, n);
            }
            // One before Linux 4.10, one per zone since.
            name if name.starts_with(b"allocstall") => add(&mut stalls, n),
            _ => {}
        }
    }
    (stats.refaults, stats.alloc_stalls) = (refaults, stalls);
}

fn add(sum: &mut Option<u64>, n: u64) {
    *sum = Some(sum.unwrap_or(0).saturating_add(n));
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

    fn expected(refaults: u64, stalls: u64, oom_kills: Option<u64>) -> AgentStats {
        AgentStats {
            swap_in: Some(1081),
            swap_out: Some(14_336),
            refaults: Some(refaults),
            major_faults: Some(12_345),
            alloc_stalls: Some(stalls),
            oom_kills,
            ..AgentStats::default()
        }
    }

    #[test]
    fn linux_4_4_has_one_count_of_stalls_and_refaults_and_none_of_kills() {
        let text = "nr_free_pages 36862\nworkingset_refault 8131\nworkingset_activate 2911\npgpgin 1511025\n\
            pswpin 1081\npswpout 14336\npgalloc_dma 912\npgfault 93142231\npgmajfault 12345\n\
            kswapd_inodesteal 0\nallocstall 417\nballoon_inflate 0\n";
        assert_eq!(parsed(text), expected(8131, 417, None));
    }

    #[test]
    fn linux_5_4_has_stalls_by_zone_and_kills() {
        let text = "workingset_nodes 13\nworkingset_refault 8131\nworkingset_restore 77\npswpin 1081\n\
            pswpout 14336\nallocstall_dma 0\nallocstall_dma32 17\nallocstall_normal 100\n\
            allocstall_movable 300\npgmajfault 12345\ndrop_slab 0\noom_kill 2\n";
        assert_eq!(parsed(text), expected(8131, 417, Some(2)));
    }

    #[test]
    fn linux_6_1_has_refaults_by_kind() {
        let text = "workingset_refault_anon 131\nworkingset_refault_file 8000\nworkingset_activate_anon 9\n\
            workingset_restore_file 77\npswpin 1081\npswpout 14336\nallocstall_dma 0\nallocstall_dma32 17\n\
            allocstall_normal 100\nallocstall_movable 300\nallocstall_device 0\npgmajfault 12345\n\
            pgsteal_anon 4\noom_kill 0\nzswpin 99\nzswpout 99\nthp_swpout 3\n";
        assert_eq!(parsed(text), expected(8131, 417, Some(0)));
    }

    proptest! {
        #[test]
        fn sums_never_overflow(a: u64, b: u64) {
            let stats = parsed(&format!("allocstall_dma {a}\nallocstall_normal {b}\n"));
            prop_assert_eq!(stats.alloc_stalls, Some(a.saturating_add(b)));
        }
    }
}
