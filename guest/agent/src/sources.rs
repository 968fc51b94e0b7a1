//! Where the numbers come from.

use std::io;
use std::path::{Path, PathBuf};

use plimsoll_model::AgentStats;
use plimsoll_units::Bytes;

use crate::error::AgentError;
use crate::procfs::{Buffer, ProcFile, meminfo, pressure, vmstat, zoneinfo};

/// The reserve changes with the balloon and by an administrator's hand; reading the zones takes longest.
const RESERVE_EVERY_MS: u64 = 10_000;

/// The kernel's files, open.
#[derive(Debug)]
pub(crate) struct Sources {
    meminfo: ProcFile,
    /// Kernels may be built without any of these.
    vmstat: Option<ProcFile>,
    zoneinfo: Option<ProcFile>,
    pressure: Option<ProcFile>,
    buffer: Buffer,
    reserve: Option<Reserve>,
}

/// What the kernel keeps back, and what it was read for.
#[derive(Clone, Copy, Debug)]
struct Reserve {
    at_ms: u64,
    total: Option<Bytes>,
    value: Option<Bytes>,
}

impl Sources {
    /// Opens the files below `/proc`, or below another directory of the same form.
    ///
    /// # Errors
    /// [`AgentError::Proc`] without `/proc/meminfo`.
    pub(crate) fn open(proc: &Path) -> Result<Self, AgentError> {
        let path = proc.join("meminfo");
        let optional = |name: &str| ProcFile::open(&proc.join(name)).ok();
        Ok(Self {
            meminfo: ProcFile::open(&path).map_err(AgentError::proc("open", &path))?,
            vmstat: optional("vmstat"),
            zoneinfo: optional("zoneinfo"),
            pressure: optional("pressure/memory"),
            buffer: Buffer::new(),
            reserve: None,
        })
    }

    /// Where the kernel's pressure is told, if it is.
    pub(crate) fn pressure_path(&self) -> Option<PathBuf> {
        self.pressure.as_ref().map(|file| file.path().to_owned())
    }

    /// What is cheap to know, `/proc/meminfo`, and the counters of `/proc/vmstat`, which cost three times that, if
    /// they are wanted in view of it.
    ///
    /// # Errors
    /// [`AgentError::Proc`] or [`AgentError::NoTotal`]: there is nothing to tell.
    pub(crate) fn look(&mut self, wanted: impl Fn(&AgentStats) -> bool) -> Result<AgentStats, AgentError> {
        let Self { meminfo, buffer, .. } = self;
        let mut stats = AgentStats::default();
        let text = meminfo.read_whole(buffer).map_err(AgentError::proc("read", meminfo.path()))?;
        meminfo::read(text, &mut stats);
        if stats.total.is_none() {
            return Err(AgentError::NoTotal { path: meminfo.path().to_owned() });
        }
        if wanted(&stats) {
            self.count(&mut stats);
        }
        Ok(stats)
    }

    /// Adds the counters.
    fn count(&mut self, stats: &mut AgentStats) {
        if let Some(text) = text_of(self.vmstat.as_ref(), &mut self.buffer) {
            vmstat::read(text, stats);
        }
    }

    /// Adds the rest of a report.
    pub(crate) fn complete(&mut self, now_ms: u64, stats: &mut AgentStats) {
        // Every kernel counts these.
        if stats.major_faults.is_none() {
            self.count(stats);
        }
        let fresh = |reserve: &Reserve| {
            reserve.total == stats.total && now_ms.saturating_sub(reserve.at_ms) < RESERVE_EVERY_MS
        };
        let Self { zoneinfo, pressure, buffer, reserve, .. } = self;
        let known = reserve.filter(fresh).unwrap_or_else(|| {
            let pages = text_of(zoneinfo.as_ref(), buffer).and_then(zoneinfo::reserve_pages);
            let value = pages.map(|pages| Bytes(pages.saturating_mul(page_size())));
            Reserve { at_ms: now_ms, total: stats.total, value }
        });
        *reserve = Some(known);
        stats.reserve = known.value;
        stats.psi = text_of(pressure.as_ref(), buffer).and_then(pressure::read);
    }
}

/// The text of a file that may be missing, or fail to be read: then there is no such number.
fn text_of<'b>(file: Option<&ProcFile>, buffer: &'b mut Buffer) -> Option<&'b [u8]> {
    let read: io::Result<&[u8]> = file?.read(buffer);
    read.ok()
}

/// The guest's own page size, which is not 4096 everywhere.
fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(plimsoll_units::PAGE_SIZE)
}

#[cfg(test)]
mod test {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).expect("writes");
    }

    #[test]
    fn this_machine_tells_everything_that_its_kernel_has() {
        let mut sources = Sources::open(Path::new("/proc")).expect("Linux");
        let mut stats = sources.look(|_| true).expect("reads");
        sources.complete(0, &mut stats);
        let total = stats.total.expect("always");
        for bytes in [stats.free, stats.available, stats.committed, stats.cached, stats.anon, stats.reserve] {
            assert!(bytes.is_some_and(|bytes| bytes < total.plus(total)), "{stats:?}");
        }
        for count in [stats.swap_in, stats.swap_out, stats.major_faults, stats.alloc_stalls, stats.refaults] {
            assert!(count.is_some(), "{stats:?}");
        }
        assert_eq!(stats.psi.is_some(), Path::new("/proc/pressure/memory").exists());
    }

    #[test]
    fn a_kernel_that_has_less_says_less() {
        let proc = tempfile::tempdir().expect("makes");
        let error = Sources::open(proc.path()).expect_err("nothing there").to_string();
        assert!(error.contains("meminfo") && error.contains("is /proc mounted?"), "{error}");
        write(proc.path(), "meminfo", "MemFree: 1 kB\n");
        let mut sources = Sources::open(proc.path()).expect("opens");
        assert!(sources.look(|_| true).expect_err("no total").to_string().contains("has no MemTotal"));
        write(proc.path(), "meminfo", "MemTotal: 4096 kB\n");
        let mut stats = sources.look(|_| true).expect("reads");
        sources.complete(0, &mut stats);
        assert_eq!(stats, AgentStats { total: Some(Bytes::mib(4)), ..AgentStats::default() });
    }

    #[test]
    fn counters_are_read_when_wanted_and_in_any_case_for_a_report() {
        let mut sources = Sources::open(Path::new("/proc")).expect("Linux");
        let mut stats = sources.look(|stats| stats.total.is_none()).expect("reads");
        assert!(stats.available.is_some() && stats.swap_in.is_none(), "{stats:?}");
        sources.complete(0, &mut stats);
        assert!(stats.swap_in.is_some() && stats.alloc_stalls.is_some(), "{stats:?}");
    }

    #[test]
    fn the_reserve_is_read_again_when_memory_changes_or_time_has_passed() {
        let proc = tempfile::tempdir().expect("makes");
        let zones = |high: u64| {
            let text = format!("Node 0, zone DMA\n high {high}\n managed 900\n protection: (0, 1)\n");
            write(proc.path(), "zoneinfo", &text);
        };
        write(proc.path(), "meminfo", "MemTotal: 4096 kB\n");
        zones(1);
        let mut sources = Sources::open(proc.path()).expect("opens");
        let mut reserve = |now_ms| {
            let mut stats = sources.look(|_| true).expect("reads");
            sources.complete(now_ms, &mut stats);
            stats.reserve.map(|bytes| bytes.0 / page_size())
        };
        assert_eq!(reserve(0), Some(2));
        zones(2);
        assert_eq!(reserve(9_999), Some(2));
        assert_eq!(reserve(10_000), Some(3));
        zones(3);
        write(proc.path(), "meminfo", "MemTotal: 8192 kB\n");
        assert_eq!(reserve(10_001), Some(4));
    }
}
