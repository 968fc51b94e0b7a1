//! The memory cgroup of a VM: `GROUP/NAME`, made by `run` and removed by `stop`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use plimsoll_cgroup::{CgroupError, Hierarchies, Limit};
use plimsoll_model::VmName;
use plimsoll_units::Bytes;

use crate::record::Record;

/// How long the processes of an ended VM may take to leave their group.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

/// Of the host's memory behind a VM, page cache goes first. 1 and not 0: in version 1 that would have the kernel kill
/// where there is no page cache left (`get_scan_count` in mm/vmscan.c).
const SWAPPINESS: u8 = 1;

/// A group that is to be made inside one that exists.
#[derive(Debug)]
pub(super) struct Group(String);

impl Group {
    /// Checks that the parent exists; makes nothing.
    pub(super) fn plan(parent: &str, name: &VmName) -> anyhow::Result<Self> {
        let parent = parent.trim_end_matches('/');
        Hierarchies::discover().and_then(|all| all.open(parent)).with_context(|| {
            format!("cannot use --cgroup {parent}; it must name a memory cgroup that exists")
        })?;
        Ok(Self(format!("{parent}/{name}")))
    }

    /// Its path in the hierarchy.
    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// Makes it, with the VM's guarantee where the kernel has such a thing; returns the files into which a process writes its
    /// number to join.
    pub(super) fn create(&self, floor: Bytes) -> anyhow::Result<Vec<PathBuf>> {
        let group = Hierarchies::discover()?.create(&self.0)?;
        // What a VM was granted it shall have. Without this the kernel swaps the guest's memory to make room for the page
        // cache of files that the VMM reads, though that could be dropped.
        CgroupError::optional(group.set_swappiness(SWAPPINESS))?;
        // What was guaranteed is not reclaimed, as far as the groups above grant that (version 2, memory.min).
        CgroupError::optional(group.set_min(Limit::Bytes(floor)))?;
        let mut join = vec![group.dir().join("cgroup.procs")];
        match group.pressure_group() {
            // On version 2 that is the group itself; in hybrid mode its twin, which tells the pressure.
            Ok(twin) if twin.dir() != group.dir() => join.push(twin.dir().join("cgroup.procs")),
            Ok(_) | Err(CgroupError::NoUnified | CgroupError::Unsupported { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(join)
    }

    /// Removes it.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        remove(&self.0).await
    }
}

/// Removes the group that `run` wrote down, if it did.
pub(crate) async fn remove_recorded(record: &Record) -> anyhow::Result<()> {
    match &record.cgroup {
        Some(path) => remove(path).await,
        None => Ok(()),
    }
}

/// Removes group and twin; one that is gone already is no error. Processes that were killed leave their group
/// a moment later, so it is tried for a while.
async fn remove(path: &str) -> anyhow::Result<()> {
    let group = match Hierarchies::discover()?.open(path) {
        Ok(group) => group,
        Err(CgroupError::NoGroup { .. }) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let begin = Instant::now();
    loop {
        let twin = match group.pressure_group() {
            Ok(twin) => twin.remove(),
            Err(_) => Ok(()),
        };
        match twin.and_then(|()| group.remove()) {
            Err(CgroupError::Busy { .. }) if begin.elapsed() < LEAVE_DEADLINE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(CgroupError::NoGroup { .. }) => return Ok(()),
            other => return Ok(other?),
        }
    }
}
