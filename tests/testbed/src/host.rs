//! The host's own counters, read by the harness itself.
//!
//! Comparisons rest on these. They are read here and not through Plimsoll's crates, so that a mistake there cannot
//! hide itself.

use std::collections::BTreeMap;
use std::path::Path;

use plimsoll_units::Bytes;
use serde::Serialize;

use crate::BedError;

/// Events since boot, from /proc/vmstat, in pages unless named otherwise. 0 where this kernel does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Vmstat {
    /// Pages read from swap.
    pub pswpin: u64,
    /// Pages written to swap.
    pub pswpout: u64,
    /// Pages read from compressed swap.
    pub zswpin: u64,
    /// Pages written to compressed swap.
    pub zswpout: u64,
    /// Pages of zeros that swapping in made anew without reading them (since Linux 6.12).
    pub swpin_zero: u64,
    /// Pages of zeros that swapping out only noted, on no device.
    pub swpout_zero: u64,
    /// KiB read from disks.
    pub pgpgin: u64,
    /// KiB written to disks.
    pub pgpgout: u64,
    /// Faults that had to wait for a device, in faults.
    pub pgmajfault: u64,
    /// Processes killed for want of memory.
    pub oom_kill: u64,
}

impl Vmstat {
    /// Reads /proc/vmstat.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be read.
    pub fn read() -> Result<Self, BedError> {
        Ok(Self::from_numbers(&Numbers::read("/proc/vmstat")?))
    }

    fn from_numbers(numbers: &Numbers) -> Self {
        Self {
            pswpin: numbers.get("pswpin"),
            pswpout: numbers.get("pswpout"),
            zswpin: numbers.get("zswpin"),
            zswpout: numbers.get("zswpout"),
            swpin_zero: numbers.get("swpin_zero"),
            swpout_zero: numbers.get("swpout_zero"),
            pgpgin: numbers.get("pgpgin"),
            pgpgout: numbers.get("pgpgout"),
            pgmajfault: numbers.get("pgmajfault"),
            oom_kill: numbers.get("oom_kill"),
        }
    }

    /// What happened since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            pswpin: self.pswpin.saturating_sub(earlier.pswpin),
            pswpout: self.pswpout.saturating_sub(earlier.pswpout),
            zswpin: self.zswpin.saturating_sub(earlier.zswpin),
            zswpout: self.zswpout.saturating_sub(earlier.zswpout),
            swpin_zero: self.swpin_zero.saturating_sub(earlier.swpin_zero),
            swpout_zero: self.swpout_zero.saturating_sub(earlier.swpout_zero),
            pgpgin: self.pgpgin.saturating_sub(earlier.pgpgin),
            pgpgout: self.pgpgout.saturating_sub(earlier.pgpgout),
            pgmajfault: self.pgmajfault.saturating_sub(earlier.pgmajfault),
            oom_kill: self.oom_kill.saturating_sub(earlier.oom_kill),
        }
    }

    /// Pages brought back from swap, compressed swap included.
    #[must_use]
    pub const fn swapped_in(&self) -> u64 {
        self.pswpin.saturating_add(self.zswpin)
    }

    /// Pages put out to swap, compressed swap included.
    #[must_use]
    pub const fn swapped_out(&self) -> u64 {
        self.pswpout.saturating_add(self.zswpout)
    }
}

/// The host's memory, from /proc/meminfo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meminfo {
    /// All of it.
    pub total: Bytes,
    /// Free.
    pub free: Bytes,
    /// What could be had without swapping, by the kernel's estimate.
    pub available: Bytes,
    /// In tmpfs and shared mappings: where guests' memory is counted.
    pub shmem: Bytes,
    /// Size of all swap.
    pub swap_total: Bytes,
    /// Of it unused.
    pub swap_free: Bytes,
    /// Memory that compressed swap takes.
    pub zswap: Bytes,
}

impl Meminfo {
    /// Reads /proc/meminfo.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be read.
    pub fn read() -> Result<Self, BedError> {
        let numbers = Numbers::read("/proc/meminfo")?;
        let bytes = |key| Bytes(numbers.get(key).saturating_mul(1024));
        Ok(Self {
            total: bytes("MemTotal"),
            free: bytes("MemFree"),
            available: bytes("MemAvailable"),
            shmem: bytes("Shmem"),
            swap_total: bytes("SwapTotal"),
            swap_free: bytes("SwapFree"),
            zswap: bytes("Zswap"),
        })
    }
}

/// What disks have moved since boot, from /proc/diskstats. Only whole disks with a device behind them count: neither
/// partitions nor what is stacked on disks, which would count twice, nor disks in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Disks {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

impl Disks {
    /// Reads /proc/diskstats.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be read.
    pub fn read() -> Result<Self, BedError> {
        let path = Path::new("/proc/diskstats");
        let text = std::fs::read_to_string(path).map_err(BedError::io("read", path))?;
        let is_disk = |name: &str| Path::new("/sys/block").join(name).join("device").exists();
        Ok(Self::from_text(&text, &is_disk))
    }

    /// Fields as in Linux's Documentation/admin-guide/iostats.rst; a sector has 512 bytes there whatever the disk's.
    fn from_text(text: &str, is_disk: &dyn Fn(&str) -> bool) -> Self {
        let mut sum = Self::default();
        for line in text.lines() {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let number = |at: usize| fields.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            if fields.get(2).is_some_and(|name| is_disk(name)) {
                sum.reads = sum.reads.saturating_add(number(3));
                sum.read_bytes = sum.read_bytes.saturating_add(number(5).saturating_mul(512));
                sum.writes = sum.writes.saturating_add(number(7));
                sum.written_bytes = sum.written_bytes.saturating_add(number(9).saturating_mul(512));
            }
        }
        sum
    }

    /// What happened since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            reads: self.reads.saturating_sub(earlier.reads),
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
            writes: self.writes.saturating_sub(earlier.writes),
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
        }
    }
}

/// A file of lines `key number` or `key: number unit`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<String, u64>);

impl Numbers {
    /// Reads such a file.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, BedError> {
        let path = path.as_ref();
        Ok(Self::parse(&std::fs::read_to_string(path).map_err(BedError::io("read", path))?))
    }

    /// Takes every line that has the form and leaves out the others.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?.trim_end_matches(':').to_owned(), words.next()?.parse().ok()?))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    /// The number, 0 when there is none of that name.
    #[must_use]
    pub fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;
    use proptest::prelude::proptest;

    use super::{Disks, Meminfo, Numbers, Vmstat};

    #[test]
    fn both_forms_of_lines_are_read() {
        let numbers =
            Numbers::parse("MemTotal:  24683644 kB\npswpin 12\nbroken\npswpout x\nHugePages_Total: 3\n");
        assert_eq!(numbers.get("MemTotal"), 24_683_644);
        assert_eq!(numbers.get("HugePages_Total"), 3);
        let earlier = Vmstat { pswpin: 5, pswpout: 1, ..Vmstat::default() };
        let since = Vmstat::from_numbers(&numbers).since(&earlier);
        assert_eq!((since.pswpin, since.pswpout), (7, 0));
    }

    #[test]
    fn this_host_has_memory() {
        let meminfo = Meminfo::read().expect("reads");
        assert!(meminfo.total > meminfo.free && meminfo.free > Bytes::ZERO, "{meminfo:?}");
        Vmstat::read().expect("reads");
    }

    #[test]
    fn whole_disks_are_added_up() {
        let text = " 254 0 vda 100 5 2000 9 50 3 400 8 0 1 1\n 254 1 vda1 100 5 2000 9 50 3 400 8 0 1 1\n 8 0 sda 1 0 2\n";
        let sum = Disks::from_text(text, &|name| name == "vda" || name == "sda");
        let expected = Disks { reads: 101, read_bytes: 2002 * 512, writes: 50, written_bytes: 400 * 512 };
        assert_eq!(sum, expected);
        assert_eq!(sum.since(&expected), Disks::default());
        Disks::read().expect("reads");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = Numbers::parse(&text);
            let _ = Disks::from_text(&text, &|_| true);
        }
    }
}
