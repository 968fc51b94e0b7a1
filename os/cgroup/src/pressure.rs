//! Where a group's pressure is to be had.

use std::path::{Path, PathBuf};

use crate::{CgroupError, file, hierarchy};

/// A version 2 group whose `memory.pressure` tells how the processes in it stall.
///
/// On version 2 it is the memory group itself. In hybrid mode it is a twin of the same name in the other
/// hierarchy, which holds no memory but the same processes: whoever adds a process to the one adds it to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressureGroup {
    dir: PathBuf,
    /// A group of its own, which is removed by itself.
    twin: bool,
}

impl PressureGroup {
    pub(crate) const fn new(dir: PathBuf, twin: bool) -> Self {
        Self { dir, twin }
    }

    /// The file that is read for pressure, and written to for a trigger.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("memory.pressure")
    }

    /// The group's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves a process here, with all its threads (`cgroup.procs`).
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        file::write(&self.dir, "cgroup.procs", &pid.to_string())
    }

    /// Removes the twin; where it is the memory group itself nothing is done.
    pub fn remove(&self) -> Result<(), CgroupError> {
        if self.twin { hierarchy::remove(&self.dir) } else { Ok(()) }
    }
}
