//! One process.

use plimsoll_units::Bytes;
use rustix::param::page_size;

use crate::{
    ProcError, Procfs,
    parse::{entries, number, words},
};

/// A process, and no later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The process number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

/// What a process does (field 3 of `/proc/PID/stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// `R`: runs or would if it could.
    Running,
    /// `S`, `I`: waits for something.
    Sleeping,
    /// `D`: waits for something and cannot be interrupted, mostly for a disk.
    DiskSleep,
    /// `T`, `t`: was stopped by a signal or a debugger.
    Stopped,
    /// `Z`: has ended, and its parent has not asked how.
    Zombie,
    /// `X`: is being taken down.
    Dead,
    /// A letter this crate does not know.
    Other(u8),
}

/// `/proc/PID/stat`, as far as it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// What it does.
    pub state: ProcessState,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// `/proc/PID/statm`. Cheaper than [`Memory`], and less exact: the kernel counts per CPU and adds up now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatM {
    /// Address space.
    pub size: Bytes,
    /// Memory present: anonymous, files and shared.
    pub resident: Bytes,
    /// Of this, files and shared memory.
    pub shared: Bytes,
}

/// What a process holds, from `/proc/PID/status`. All 0 for a process that has ended (a zombie).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Memory present (`VmRSS`): the sum of the next three.
    pub rss: Bytes,
    /// Anonymous (`RssAnon`).
    pub rss_anon: Bytes,
    /// Mapped files (`RssFile`).
    pub rss_file: Bytes,
    /// Shared memory and tmpfs (`RssShmem`): only what this process has touched through its own mapping.
    pub rss_shmem: Bytes,
    /// Anonymous memory that is swapped out (`VmSwap`); shared memory is not in it.
    pub swap: Bytes,
}

impl ProcessState {
    /// Whether it still can do anything.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        !matches!(self, Self::Zombie | Self::Dead)
    }

    const fn from_letter(letter: u8) -> Self {
        match letter {
            b'R' => Self::Running,
            b'S' | b'I' => Self::Sleeping,
            b'D' => Self::DiskSleep,
            b'T' | b't' => Self::Stopped,
            b'Z' => Self::Zombie,
            b'X' | b'x' => Self::Dead,
            other => Self::Other(other),
        }
    }
}

impl ProcessStat {
    fn parse(text: &[u8]) -> Option<Self> {
        // The name stands in parentheses and may hold any of ") (": the last one ends it.
        let end = text.iter().rposition(|b| *b == b')')?;
        let mut fields = words(text.get(end.checked_add(1)?..)?);
        let state = ProcessState::from_letter(*fields.next()?.first()?);
        // `state` is field 3, `starttime` field 22.
        Some(Self { state, start_time: number(fields.nth(18)?)? })
    }
}

impl StatM {
    fn parse(text: &[u8]) -> Option<Self> {
        let page = u64::try_from(page_size()).ok()?;
        let mut fields = words(text).map(|word| Some(Bytes(number(word)?.saturating_mul(page))));
        Some(Self { size: fields.next()??, resident: fields.next()??, shared: fields.next()?? })
    }
}

impl Memory {
    fn parse(text: &[u8]) -> Self {
        let mut memory = Self::default();
        for (name, kib) in entries(text) {
            let bytes = Bytes::kib(kib);
            match name {
                b"VmRSS" => memory.rss = bytes,
                b"RssAnon" => memory.rss_anon = bytes,
                b"RssFile" => memory.rss_file = bytes,
                b"RssShmem" => memory.rss_shmem = bytes,
                b"VmSwap" => memory.swap = bytes,
                _ => {}
            }
        }
        memory
    }
}

impl Procfs {
    /// The process of that number as it is now.
    pub fn identify(&mut self, pid: u32) -> Result<ProcessId, ProcError> {
        Ok(ProcessId { pid, start_time: self.stat(pid)?.start_time })
    }

    /// Whether this very process still runs: it has not ended, and its number does not belong to another.
    pub fn is_alive(&mut self, process: ProcessId) -> Result<bool, ProcError> {
        match self.stat(process.pid) {
            Ok(stat) => Ok(stat.start_time == process.start_time && stat.state.is_alive()),
            Err(ProcError::NoProcess { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a process does and when it started.
    pub fn stat(&mut self, pid: u32) -> Result<ProcessStat, ProcError> {
        let parsed = ProcessStat::parse(self.process_file(pid, "stat")?);
        parsed.ok_or_else(|| ProcError::Parse { path: self.last_path(), wanted: "state and start time" })
    }

    /// What a process holds, roughly and cheaply.
    pub fn statm(&mut self, pid: u32) -> Result<StatM, ProcError> {
        let parsed = StatM::parse(self.process_file(pid, "statm")?);
        parsed.ok_or_else(|| ProcError::Parse { path: self.last_path(), wanted: "three numbers" })
    }

    /// What a process holds.
    pub fn memory(&mut self, pid: u32) -> Result<Memory, ProcError> {
        self.process_file(pid, "status").map(Memory::parse)
    }

    /// The command line of a process, which may write there what it likes: a hint for people, no proof of anything.
    /// Cut after 256 KiB; empty for a zombie and for kernel threads.
    pub fn cmdline(&mut self, pid: u32) -> Result<Vec<String>, ProcError> {
        let text = self.process_file(pid, "cmdline")?;
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        Ok(text.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    const STAT: &str = "S 5384 5384 5097 0 -1 4194304 102 0 0 0 0 0 0 0 20 0 1 0 290271 3133440 388";

    #[test]
    fn a_name_cannot_pass_for_the_fields_after_it() {
        for name in ["cat", "a b", ") Z 1 2 3", "((", "x) R 1 (y"] {
            let got = ProcessStat::parse(format!("5389 ({name}) {STAT}").as_bytes());
            assert_eq!(
                got,
                Some(ProcessStat { state: ProcessState::Sleeping, start_time: 290_271 }),
                "{name}"
            );
        }
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let zombie = ProcessStat::parse(b"1 (x) Z 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 7").unwrap();
        assert!(!zombie.state.is_alive());
        assert!(ProcessState::from_letter(b'D').is_alive());
    }

    #[test]
    fn status_with_a_name_that_is_no_text() {
        let text = b"Name:\t\xff\xfe VmRSS: 9\nVmRSS:\t    2012 kB\nRssAnon:\t     148 kB\nRssFile:\t    1864 kB\nRssShmem:\t       0 kB\nVmSwap:\t 4 kB\n";
        let memory = Memory::parse(text);
        assert_eq!(
            (memory.rss, memory.rss_anon, memory.swap),
            (Bytes::kib(2012), Bytes::kib(148), Bytes::kib(4))
        );
    }

    #[test]
    fn statm_counts_pages() {
        let statm = StatM::parse(b"765 404 376 5 0 123 0\n").unwrap();
        let page = u64::try_from(page_size()).unwrap();
        assert_eq!(
            (statm.size, statm.resident, statm.shared),
            (Bytes(765 * page), Bytes(404 * page), Bytes(376 * page))
        );
        assert_eq!(StatM::parse(b"765 404\n"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in prop::collection::vec(prop_oneof![any::<u8>(), Just(b')'), Just(b' '), Just(b'7')], 0..200)) {
            let _ = (ProcessStat::parse(&text), StatM::parse(&text), Memory::parse(&text));
        }

        #[test]
        fn any_name_and_start_time(name in "[^\n]{0,15}", start_time in any::<u64>()) {
            let text = format!("7 ({name}) R{} {start_time} 0", " 1".repeat(18));
            prop_assert_eq!(ProcessStat::parse(text.as_bytes()).map(|s| s.start_time), Some(start_time));
        }
    }
}
