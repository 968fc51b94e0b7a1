//! What is counted, by the kernels themselves: the host's, and each guest's.

use anyhow::Result;
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_testbed::guest::Reply;
use plimsoll_testbed::host::{Disks, Vmstat};
use serde::Serialize;

/// The host at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Host {
    /// /proc/vmstat, of the whole machine.
    pub(crate) vmstat: Vmstat,
    /// /proc/diskstats, of the whole machine.
    pub(crate) disks: Disks,
    /// Major faults of the group's processes (memory.stat).
    pub(crate) cgroup_major_faults: u64,
    /// Processes of the group killed for want of memory.
    pub(crate) cgroup_oom_kills: u64,
}

impl Host {
    /// Reads it now.
    ///
    /// # Errors
    /// When a file of the kernel's cannot be read.
    pub(crate) fn read(cgroup: &TestCgroup) -> Result<Self> {
        let stat = cgroup.stat()?;
        Ok(Self {
            vmstat: Vmstat::read()?,
            disks: Disks::read()?,
            // Version 1 counts the groups below in the numbers of this name only.
            cgroup_major_faults: stat.get("total_pgmajfault").max(stat.get("pgmajfault")),
            cgroup_oom_kills: cgroup.oom_kills()?,
        })
    }

    /// What happened since an earlier reading.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            vmstat: self.vmstat.since(&earlier.vmstat),
            disks: self.disks.since(&earlier.disks),
            cgroup_major_faults: self.cgroup_major_faults.saturating_sub(earlier.cgroup_major_faults),
            cgroup_oom_kills: self.cgroup_oom_kills.saturating_sub(earlier.cgroup_oom_kills),
        }
    }
}

/// A guest's own counters since its boot, as it reads them in its /proc/vmstat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Inside {
    pub(crate) pswpin: u64,
    pub(crate) pswpout: u64,
    pub(crate) pgmajfault: u64,
    pub(crate) refault_anon: u64,
    pub(crate) refault_file: u64,
    pub(crate) allocstall: u64,
    pub(crate) oom_kill: u64,
}

impl Inside {
    /// What the workload answered to `vmstat`.
    pub(crate) fn from_reply(reply: &Reply) -> Self {
        let number = |key| reply.number(key).unwrap_or(0);
        Self {
            pswpin: number("pswpin"),
            pswpout: number("pswpout"),
            pgmajfault: number("pgmajfault"),
            refault_anon: number("refault_anon"),
            refault_file: number("refault_file"),
            allocstall: number("allocstall"),
            oom_kill: number("oom_kill"),
        }
    }

    /// Of several guests together.
    pub(crate) fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        all.into_iter().fold(Self::default(), |sum, one| Self {
            pswpin: sum.pswpin.saturating_add(one.pswpin),
            pswpout: sum.pswpout.saturating_add(one.pswpout),
            pgmajfault: sum.pgmajfault.saturating_add(one.pgmajfault),
            refault_anon: sum.refault_anon.saturating_add(one.refault_anon),
            refault_file: sum.refault_file.saturating_add(one.refault_file),
            allocstall: sum.allocstall.saturating_add(one.allocstall),
            oom_kill: sum.oom_kill.saturating_add(one.oom_kill),
        })
    }
}

#[cfg(test)]
mod test {
    use plimsoll_testbed::host::Vmstat;

    use super::{Host, Inside};

    #[test]
    fn guests_are_added_up_and_the_past_is_taken_away() {
        let one = Inside { pswpin: 1, oom_kill: 2, ..Inside::default() };
        let two = Inside { pswpin: 10, allocstall: 5, ..Inside::default() };
        let sum = Inside::sum([&one, &two]);
        assert_eq!((sum.pswpin, sum.oom_kill, sum.allocstall, sum.pswpout), (11, 2, 5, 0));
        let now = Host {
            vmstat: Vmstat { pswpin: 9, ..Vmstat::default() },
            cgroup_oom_kills: 1,
            ..Host::default()
        };
        let before = Host { vmstat: Vmstat { pswpin: 4, ..Vmstat::default() }, ..Host::default() };
        let since = now.since(&before);
        assert_eq!((since.vmstat.pswpin, since.cgroup_oom_kills), (5, 1));
        assert_eq!(before.since(&now).cgroup_oom_kills, 0);
    }
}
