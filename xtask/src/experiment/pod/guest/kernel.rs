//! What kernels say: the guest's, and the host's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_testbed::guest::{Console, Reply};
use plimsoll_testbed::host::Numbers;
use plimsoll_units::{Bytes, PageCount};
use serde::Serialize;

/// How long a guest may take to answer a question that costs it nothing, on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// What firmware keeps for itself is far less than one part in so many of all memory.
const FIRMWARE: u64 = 100;

/// What is counted in /proc/vmstat of the host.
const VMSTAT: [&str; 14] = [
    "pgfault",
    "pgmajfault",
    "pswpin",
    "pswpout",
    "zswpin",
    "zswpout",
    "oom_kill",
    "thp_file_alloc",
    "thp_file_fallback",
    "thp_file_mapped",
    "thp_split_page",
    "pgfree",
    "pgalloc_normal",
    "allocstall_normal",
];

/// What is in memory.stat of the group, whichever version it has.
const MEMORY_STAT: [&str; 12] = [
    "anon",
    "file",
    "shmem",
    "file_mapped",
    "pgfault",
    "total_rss",
    "total_cache",
    "total_shmem",
    "total_mapped_file",
    "total_pgfault",
    "total_pgmajfault",
    "total_swap",
];

/// The host's counters, in their own words and units.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Host {
    /// Events of the whole machine meanwhile.
    vmstat: BTreeMap<&'static str, u64>,
    /// The group at the end.
    memory_stat: BTreeMap<&'static str, u64>,
    /// Processes of the group killed for want of memory.
    pub(crate) cgroup_oom_kills: u64,
}

impl Host {
    /// Reads them now.
    ///
    /// # Errors
    /// When a file of the kernel's cannot be read.
    pub(super) fn read(cgroup: &TestCgroup) -> Result<Self> {
        let (vmstat, stat) = (Numbers::read("/proc/vmstat")?, cgroup.stat()?);
        Ok(Self {
            vmstat: VMSTAT.map(|key| (key, vmstat.get(key))).into(),
            memory_stat: MEMORY_STAT.map(|key| (key, stat.get(key))).into(),
            cgroup_oom_kills: cgroup.oom_kills()?,
        })
    }

    /// What has happened since an earlier reading.
    pub(super) fn since(mut self, earlier: &Self) -> Self {
        for (key, count) in &mut self.vmstat {
            *count = count.saturating_sub(earlier.vmstat.get(key).copied().unwrap_or(0));
        }
        self.cgroup_oom_kills = self.cgroup_oom_kills.saturating_sub(earlier.cgroup_oom_kills);
        self
    }
}

/// What the guest's kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Inside {
    /// Its `MemTotal`: what it knows of, less what it keeps for itself from the start.
    pub(crate) total: Bytes,
    /// All memory that it knows of: `present` of its zones (/proc/zoneinfo).
    pub(crate) present: Bytes,
    /// What its balloon holds: pages inflated and not deflated.
    pub(super) balloon: Bytes,
    /// Its counters, by their names.
    pub(super) counters: BTreeMap<String, u64>,
}

impl Inside {
    /// Asks for them.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn ask(console: &Console) -> Result<Self> {
        let asked = |command: &str| -> Result<Reply> {
            let reply = console.ask(command, ANSWER_LIMIT)?;
            if !reply.is_ok() {
                bail!("it was told `{command}` and said: {}", reply.text());
            }
            Ok(reply)
        };
        let zones = asked("sh /bin/busybox grep -w present /proc/zoneinfo")?;
        let (memory, balloon) = (asked("meminfo")?, asked("balloon")?);
        Self::of(&memory, &balloon, &zones, &asked("vmstat")?)
    }

    fn of(memory: &Reply, balloon: &Reply, zones: &Reply, vmstat: &Reply) -> Result<Self> {
        let number = |reply: &Reply, key| {
            reply.number(key).with_context(|| format!("no {key} in the guest's {}", reply.text()))
        };
        let inside = number(balloon, "inflate")?.saturating_sub(number(balloon, "deflate")?);
        let words = [memory, balloon, vmstat].into_iter().flat_map(|reply| reply.text().split_whitespace());
        let pair = |word: &str| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        };
        Ok(Self {
            total: Bytes(number(memory, "total")?),
            present: present(zones.text()).bytes(),
            balloon: PageCount(inside).bytes(),
            counters: words.filter_map(pair).collect(),
        })
    }

    /// Whether it knows of that much, but for what firmware keeps.
    pub(super) fn sees(&self, maxmem: Bytes) -> bool {
        self.present.plus(Bytes(maxmem.0 / FIRMWARE)) >= maxmem
    }
}

/// The pages that all zones have, of lines that are joined by semicolons.
fn present(zones: &str) -> PageCount {
    let words: Vec<_> = zones.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let pairs = words.iter().zip(words.iter().skip(1));
    let counts = pairs.filter(|(word, _)| **word == "present").filter_map(|(_, n)| n.parse::<u64>().ok());
    PageCount(counts.fold(0, u64::saturating_add))
}

/// How a VMM has its guest's memory mapped (/proc/PID/smaps), all of its mappings together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Mapped {
    pub(crate) size: Bytes,
    /// What of it has page table entries.
    pub(crate) rss: Bytes,
    /// What of that has them for whole 2 MiB.
    pub(crate) pmd_mapped: Bytes,
}

impl Mapped {
    /// Reads it.
    ///
    /// # Errors
    /// When the process is gone, or has no such memory.
    pub(super) fn read(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&text).with_context(|| format!("{path} has no guest's memory"))
    }

    fn parse(smaps: &str) -> Option<Self> {
        let (mut sum, mut found, mut ours) = (Self::default(), false, false);
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            let Some(key) = first.strip_suffix(':') else {
                ours = line.ends_with("/memfd:plimsoll-ram (deleted)");
                found |= ours;
                continue;
            };
            let field = match key {
                "Size" => &mut sum.size,
                "Rss" => &mut sum.rss,
                "ShmemPmdMapped" => &mut sum.pmd_mapped,
                _ => continue,
            };
            let kib = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            *field = field.plus(if ours { Bytes::kib(kib) } else { Bytes::ZERO });
        }
        found.then_some(sum)
    }
}

#[cfg(test)]
mod test {
    use std::collections::BTreeMap;

    use plimsoll_testbed::guest::Reply;
    use plimsoll_units::{Bytes, PageCount};
    use proptest::prelude::proptest;

    use super::{Host, Inside, Mapped, present};

    #[test]
    fn what_the_guest_says_is_put_together() {
        let inside = Inside::of(
            &Reply::of("ok total=500000000 free=1"),
            &Reply::of("ok inflate=70000 deflate=4464 oom_kill=0"),
            &Reply::of("ok code=0 said=\"present  3998; present  126944; present  0\""),
            &Reply::of("ok pswpin=3"),
        )
        .expect("whole");
        assert_eq!(inside.balloon, Bytes::mib(256));
        assert_eq!(inside.present, PageCount(130_942).bytes());
        assert_eq!((inside.counters["pswpin"], inside.counters["free"]), (3, 1));
        assert!(inside.sees(Bytes::mib(512)) && !inside.sees(Bytes::mib(520)));
        let silent = Reply::of("ok");
        Inside::of(&silent, &silent, &silent, &silent).expect_err("nothing was said");
    }

    #[test]
    fn only_the_guests_memory_counts() {
        let smaps = "\
7f00-7f10 rw-s 00000000 00:01 5   /memfd:plimsoll-ram (deleted)
Size:             524288 kB
Rss:              131072 kB
ShmemPmdMapped:    65536 kB
7f20-7f30 rw-p 00000000 00:00 0
Size:               1024 kB
Rss:                1024 kB
7f40-7f50 rw-s 00000000 00:01 5   /memfd:plimsoll-ram (deleted)
Rss:                   4 kB
";
        let mapped = Mapped::parse(smaps).expect("there");
        assert_eq!((mapped.size, mapped.pmd_mapped), (Bytes::mib(512), Bytes::mib(64)));
        assert_eq!(mapped.rss, Bytes::kib(131_076));
        assert_eq!(Mapped::parse("7f20-7f30 rw-p 0 00:00 0\nRss: 4 kB\n"), None);
    }

    #[test]
    fn the_past_is_taken_away() {
        let host = |faults, killed| Host {
            vmstat: BTreeMap::from([("pgfault", faults)]),
            memory_stat: BTreeMap::from([("total_rss", 7)]),
            cgroup_oom_kills: killed,
        };
        assert_eq!(host(9, 3).since(&host(4, 1)), host(5, 2));
        assert_eq!(host(4, 0).since(&host(9, 1)), host(0, 0));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,300}") {
            let _ = (present(&text), Mapped::parse(&text));
        }
    }
}
