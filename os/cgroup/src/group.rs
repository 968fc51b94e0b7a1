//! One group: its files, one method each.

use std::path::{Path, PathBuf};

use plimsoll_units::Bytes;

use crate::{
    CgroupError, Limit, MemEvents, MemStat, PressureGroup, Version, file,
    hierarchy::{make, remove},
};

/// A memory group. A handle, not an owner: dropping it leaves the group as it is.
#[derive(Clone, Debug)]
pub struct MemCgroup {
    version: Version,
    /// As `/proc/PID/cgroup` has it.
    path: String,
    dir: PathBuf,
    /// The hierarchy's mount point: above it there is no group.
    top: PathBuf,
    /// The group of the same name in version 2, which need not exist.
    twin: Option<PathBuf>,
}

impl MemCgroup {
    pub(crate) const fn new(
        version: Version,
        path: String,
        dir: PathBuf,
        top: PathBuf,
        twin: Option<PathBuf>,
    ) -> Self {
        Self { version, path, dir, top, twin }
    }

    /// The path within the hierarchy, with a leading `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Memory in use, groups inside and page cache included (v2 `memory.current`, v1 `memory.usage_in_bytes`).
    pub fn usage(&self) -> Result<Bytes, CgroupError> {
        let name = self.pick("memory.usage_in_bytes", "memory.current");
        file::number(&self.dir, name).map(Bytes)
    }

    /// The most it may use (v2 `memory.max`, v1 `memory.limit_in_bytes`).
    pub fn limit(&self) -> Result<Limit, CgroupError> {
        self.limit_at(&self.dir)
    }

    /// The smallest limit of this group and all it lies in: what really holds.
    pub fn effective_limit(&self) -> Result<Limit, CgroupError> {
        let mut least = Limit::Max;
        for dir in self.dir.ancestors().take_while(|dir| dir.starts_with(&self.top)) {
            // The root of version 2 has no limit and no file for one.
            let limit = CgroupError::optional(self.limit_at(dir))?.unwrap_or(Limit::Max);
            least = least.min(limit);
        }
        Ok(least)
    }

    /// Sets the most it may use and leaves the swap it may use as it is.
    ///
    /// Below what is in use the kernel reclaims first. What cannot be reclaimed makes version 1 refuse
    /// (EBUSY) and version 2 end processes. On version 1 `Max` lifts the limit of swap as well, which it cannot
    /// hold alone.
    pub fn set_limit(&self, limit: Limit) -> Result<(), CgroupError> {
        match self.version {
            Version::V2 => file::write(&self.dir, "memory.max", &limit.text_v2()),
            Version::V1 => match CgroupError::optional(self.swap_limit())? {
                Some(swap) => self.set_v1(limit, swap),
                None => file::write(&self.dir, V1_LIMIT, &limit.text_v1()),
            },
        }
    }

    /// Swap in use, groups inside included (v2 `memory.swap.current`, v1 `memory.memsw.usage_in_bytes` less usage:
    /// two readings, so it may be off by what moved between them).
    pub fn swap_usage(&self) -> Result<Bytes, CgroupError> {
        match self.version {
            Version::V2 => file::number(&self.dir, "memory.swap.current").map(Bytes),
            Version::V1 => {
                let both = file::number(&self.dir, "memory.memsw.usage_in_bytes").map(Bytes)?;
                Ok(both.minus(self.usage()?))
            }
        }
    }

    /// The most swap it may use beside its memory (v2 `memory.swap.max`, v1 `memory.memsw.limit_in_bytes` less
    /// the memory limit).
    pub fn swap_limit(&self) -> Result<Limit, CgroupError> {
        match self.version {
            Version::V2 => {
                const FILE: &str = "memory.swap.max";
                let text = file::read(&self.dir, FILE)?;
                Limit::parse_v2(&text).ok_or_else(|| file::parse_error(&self.dir, FILE, &text, "limit"))
            }
            Version::V1 => Ok(self.v1_both()?.minus(self.limit()?)),
        }
    }

    /// Sets the most swap it may use beside its memory. On version 1 without a memory limit every limit of
    /// swap but `Max` is refused, because it has a limit for the sum only.
    pub fn set_swap_limit(&self, swap: Limit) -> Result<(), CgroupError> {
        match self.version {
            Version::V2 => file::write(&self.dir, "memory.swap.max", &swap.text_v2()),
            Version::V1 => match (self.limit()?, swap) {
                (Limit::Max, Limit::Bytes(_)) => Err(CgroupError::Unsupported {
                    file: "limit of swap without a limit of memory (set the memory limit first)",
                    path: self.dir.clone(),
                }),
                (limit, swap) => self.set_v1(limit, swap),
            },
        }
    }

    /// Memory that is never reclaimed from it (v2 `memory.min`).
    pub fn min(&self) -> Result<Limit, CgroupError> {
        self.v2_limit("memory.min")
    }

    /// Sets [`MemCgroup::min`]; holds only as far as the groups it lies in grant it.
    pub fn set_min(&self, min: Limit) -> Result<(), CgroupError> {
        file::write(&self.dir, "memory.min", &min.text_v2())
    }

    /// How readily the kernel swaps its anonymous and shared memory instead of dropping its page cache, 0 to 200 (v1
    /// `memory.swappiness`). There is no such file in version 2, where it is one setting for the whole host.
    pub fn set_swappiness(&self, swappiness: u8) -> Result<(), CgroupError> {
        file::write(&self.dir, "memory.swappiness", &swappiness.to_string())
    }

    /// Above this it is slowed down and reclaimed from (v2 `memory.high`).
    pub fn high(&self) -> Result<Limit, CgroupError> {
        self.v2_limit("memory.high")
    }

    /// Sets [`MemCgroup::high`].
    pub fn set_high(&self, high: Limit) -> Result<(), CgroupError> {
        file::write(&self.dir, "memory.high", &high.text_v2())
    }

    /// Has the kernel reclaim this much from it now (v2 `memory.reclaim`, Linux 5.19 on). Fails with EAGAIN when
    /// less could be reclaimed; takes as long as it takes.
    pub fn reclaim(&self, amount: Bytes) -> Result<(), CgroupError> {
        file::write(&self.dir, "memory.reclaim", &amount.0.to_string())
    }

    /// What its memory is made of (`memory.stat`).
    pub fn stat(&self) -> Result<MemStat, CgroupError> {
        let text = file::read(&self.dir, "memory.stat")?;
        Ok(match self.version {
            Version::V1 => MemStat::parse_v1(&text),
            Version::V2 => MemStat::parse_v2(&text),
        })
    }

    /// How often it ran into its limit (v2 `memory.events`; v1 `memory.oom_control` and `memory.failcnt`).
    pub fn events(&self) -> Result<MemEvents, CgroupError> {
        let text = file::read(&self.dir, self.pick("memory.oom_control", "memory.events"))?;
        let mut events = MemEvents::parse(&text);
        if self.version == Version::V1 {
            events.max = CgroupError::optional(file::number(&self.dir, "memory.failcnt"))?;
        }
        Ok(events)
    }

    /// The processes in it, not those of the groups inside (`cgroup.procs`). 0 stands for a process of another pid
    /// namespace and is left out.
    pub fn procs(&self) -> Result<Vec<u32>, CgroupError> {
        let text = file::read(&self.dir, "cgroup.procs")?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
    }

    /// Moves a process into it, with all its threads. What the process has used so far stays charged where it was.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        file::write(&self.dir, "cgroup.procs", &pid.to_string())
    }

    /// Removes it; [`CgroupError::Busy`] while processes or groups are in it. The twin, where
    /// [`MemCgroup::pressure_group`] made one, is removed by itself.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove(&self.dir)
    }

    /// Its `memory.pressure`, if there is one: of version 2, or of a twin that exists already.
    #[must_use]
    pub fn pressure_path(&self) -> Option<PathBuf> {
        let path = self.twin.as_ref()?.join("memory.pressure");
        path.is_file().then_some(path)
    }

    /// The group that tells its pressure: itself on version 2, in hybrid mode a twin, which is made if it does not
    /// exist and is empty then.
    pub fn pressure_group(&self) -> Result<PressureGroup, CgroupError> {
        let twin = self.twin.clone().ok_or(CgroupError::NoUnified)?;
        if self.version == Version::V2 {
            return Ok(PressureGroup::new(twin, false));
        }
        let depth = self.path.split('/').filter(|name| !name.is_empty()).count();
        // The twin's parents, outermost first; the mount point itself is there.
        let mut made: Vec<&Path> = twin.ancestors().take(depth).collect();
        made.reverse();
        made.into_iter().try_for_each(make)?;
        Ok(PressureGroup::new(twin, depth > 0))
    }

    const fn pick(&self, v1: &'static str, v2: &'static str) -> &'static str {
        match self.version {
            Version::V1 => v1,
            Version::V2 => v2,
        }
    }

    fn limit_at(&self, dir: &Path) -> Result<Limit, CgroupError> {
        let name = self.pick(V1_LIMIT, "memory.max");
        let text = file::read(dir, name)?;
        let limit = match self.version {
            Version::V1 => Limit::parse_v1(&text),
            Version::V2 => Limit::parse_v2(&text),
        };
        limit.ok_or_else(|| file::parse_error(dir, name, &text, "limit"))
    }

    fn v2_limit(&self, name: &'static str) -> Result<Limit, CgroupError> {
        let text = file::read(&self.dir, name)?;
        Limit::parse_v2(&text).ok_or_else(|| file::parse_error(&self.dir, name, &text, "limit"))
    }

    /// Version 1's limit of memory plus swap.
    fn v1_both(&self) -> Result<Limit, CgroupError> {
        let text = file::read(&self.dir, V1_BOTH)?;
        Limit::parse_v1(&text).ok_or_else(|| file::parse_error(&self.dir, V1_BOTH, &text, "limit"))
    }

    /// Version 1 keeps the sum at or above the memory limit at every moment, so the order depends on the direction.
    fn set_v1(&self, limit: Limit, swap: Limit) -> Result<(), CgroupError> {
        let both = limit.plus(swap);
        let write_limit = || file::write(&self.dir, V1_LIMIT, &limit.text_v1());
        let write_both = || file::write(&self.dir, V1_BOTH, &both.text_v1());
        if limit > self.v1_both()? {
            write_both()?;
            write_limit()
        } else {
            write_limit()?;
            write_both()
        }
    }
}

const V1_LIMIT: &str = "memory.limit_in_bytes";
const V1_BOTH: &str = "memory.memsw.limit_in_bytes";
