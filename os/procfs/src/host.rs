//! The host's memory and its counters.

use plimsoll_units::Bytes;

use crate::{ProcError, Procfs, parse::entries};

/// `/proc/meminfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemInfo {
    /// Memory the kernel manages (`MemTotal`).
    pub total: Bytes,
    /// Memory used for nothing at all (`MemFree`).
    pub free: Bytes,
    /// What could be had for new programs without swapping (`MemAvailable`).
    pub available: Bytes,
    /// Buffers of raw block devices (`Buffers`).
    pub buffers: Bytes,
    /// Page cache, shared memory and tmpfs included (`Cached`).
    pub cached: Bytes,
    /// Swap there is (`SwapTotal`).
    pub swap_total: Bytes,
    /// Swap not in use (`SwapFree`).
    pub swap_free: Bytes,
    /// Shared memory and tmpfs (`Shmem`).
    pub shmem: Bytes,
    /// What programs were promised (`Committed_AS`).
    pub committed_as: Bytes,
}

impl MemInfo {
    fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let mut info = Self::default();
        let (mut total, mut available) = (None, None);
        for (name, kib) in entries(text) {
            let bytes = Bytes::kib(kib);
            match name {
                b"MemTotal" => total = Some(bytes),
                b"MemFree" => info.free = bytes,
                b"MemAvailable" => available = Some(bytes),
                b"Buffers" => info.buffers = bytes,
                b"Cached" => info.cached = bytes,
                b"SwapTotal" => info.swap_total = bytes,
                b"SwapFree" => info.swap_free = bytes,
                b"Shmem" => info.shmem = bytes,
                b"Committed_AS" => info.committed_as = bytes,
                _ => {}
            }
        }
        // Without these two nothing can be decided; the others only explain.
        info.total = total.ok_or("MemTotal")?;
        info.available = available.ok_or("MemAvailable")?;
        Ok(info)
    }
}

/// `/proc/vmstat`: counters since boot. What a kernel does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmStat {
    /// Pages read from swap (`pswpin`).
    pub pswpin: u64,
    /// Pages written to swap (`pswpout`).
    pub pswpout: u64,
    /// Pages that zswap gave back (`zswpin`).
    pub zswpin: u64,
    /// Pages that zswap took (`zswpout`).
    pub zswpout: u64,
    /// Faults that waited for a disk (`pgmajfault`).
    pub pgmajfault: u64,
    /// Processes ended for want of memory (`oom_kill`).
    pub oom_kill: u64,
    /// Allocations that had to reclaim first, all zones together (`allocstall_*`).
    pub allocstall: u64,
}

impl VmStat {
    /// Pages swapped in, from a disk or from zswap.
    #[must_use]
    pub const fn swap_in_pages(&self) -> u64 {
        self.pswpin.saturating_add(self.zswpin)
    }

    /// Pages swapped out, to a disk or to zswap.
    #[must_use]
    pub const fn swap_out_pages(&self) -> u64 {
        self.pswpout.saturating_add(self.zswpout)
    }

    fn parse(text: &[u8]) -> Self {
        let mut stat = Self::default();
        for (name, n) in entries(text) {
            match name {
                b"pswpin" => stat.pswpin = n,
                b"pswpout" => stat.pswpout = n,
                b"zswpin" => stat.zswpin = n,
                b"zswpout" => stat.zswpout = n,
                b"pgmajfault" => stat.pgmajfault = n,
                b"oom_kill" => stat.oom_kill = n,
                name if name.starts_with(b"allocstall") => {
                    stat.allocstall = stat.allocstall.saturating_add(n)
                }
                _ => {}
            }
        }
        stat
    }
}

impl Procfs {
    /// The host's memory.
    pub fn meminfo(&mut self) -> Result<MemInfo, ProcError> {
        let parsed = MemInfo::parse(self.host_file("meminfo")?);
        parsed.map_err(|wanted| ProcError::Parse { path: self.last_path(), wanted })
    }

    /// The host's counters.
    pub fn vmstat(&mut self) -> Result<VmStat, ProcError> {
        self.host_file("vmstat").map(VmStat::parse)
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn meminfo_as_the_kernel_writes_it() {
        let text = b"MemTotal:       24684084 kB\nMemFree:        22478616 kB\nMemAvailable:   24071308 kB\n\
            Buffers:            5984 kB\nCached:          1732536 kB\nSwapCached:            1 kB\n\
            SwapTotal:          2048 kB\nSwapFree:           1024 kB\nShmem:              8872 kB\n\
            Committed_AS:      65360 kB\nHugePages_Total:       0\n";
        let want = MemInfo {
            total: Bytes::kib(24_684_084),
            free: Bytes::kib(22_478_616),
            available: Bytes::kib(24_071_308),
            buffers: Bytes::kib(5984),
            cached: Bytes::kib(1_732_536),
            swap_total: Bytes::mib(2),
            swap_free: Bytes::mib(1),
            shmem: Bytes::kib(8872),
            committed_as: Bytes::kib(65_360),
        };
        assert_eq!(MemInfo::parse(text), Ok(want));
    }

    #[test]
    fn without_available_nothing_is_made_up() {
        assert_eq!(MemInfo::parse(b"MemTotal: 1 kB\nMemFree: 1 kB\n"), Err("MemAvailable"));
        assert_eq!(MemInfo::parse(b""), Err("MemTotal"));
    }

    #[test]
    fn stalls_of_all_zones_are_added() {
        let stat = VmStat::parse(
            b"allocstall_dma 1\nallocstall_normal 20\nallocstall_movable 300\npswpin 4\nzswpin 5\n",
        );
        assert_eq!((stat.allocstall, stat.swap_in_pages(), stat.swap_out_pages()), (321, 9, 0));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(MemTotal:|MemAvailable:|pswpin|allocstall_x|[ 0-9]{0,22}|\n|.){0,60}") {
            let _ = (MemInfo::parse(text.as_bytes()), VmStat::parse(text.as_bytes()));
        }
    }
}
