//! The memory cgroup that stands for the host.

use std::path::PathBuf;

use plimsoll_cgroup::{CgroupError, Hierarchies, MemCgroup};
use plimsoll_units::Bytes;

/// A cgroup.
#[derive(Debug)]
pub(super) struct Group {
    group: MemCgroup,
    said_no_swap: bool,
}

/// What it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupReading {
    /// The smallest limit of it and all it lies in.
    pub(super) limit: Option<Bytes>,
    pub(super) usage: Bytes,
    /// Page cache and the like.
    pub(super) reclaimable: Bytes,
    /// Pages swapped in and out, where the kernel counts them for groups.
    pub(super) swap: Option<(u64, u64)>,
}

impl Group {
    pub(super) fn open(name: &str) -> Result<Self, CgroupError> {
        let group = Hierarchies::discover()?.open(name)?;
        Ok(Self { group, said_no_swap: false })
    }

    pub(super) fn read(&mut self) -> Result<GroupReading, CgroupError> {
        let stat = self.group.stat()?;
        let zswap = |pages: Option<u64>| pages.unwrap_or(0);
        let swap = stat.swap_in_pages.zip(stat.swap_out_pages).map(|(pages_in, pages_out)| {
            let (zswap_in, zswap_out) = (zswap(stat.zswap_in_pages), zswap(stat.zswap_out_pages));
            (pages_in.saturating_add(zswap_in), pages_out.saturating_add(zswap_out))
        });
        if swap.is_none() && !std::mem::replace(&mut self.said_no_swap, true) {
            tracing::info!(
                "this kernel does not count swapping for control groups; the host's own counts are shown"
            );
        }
        Ok(GroupReading {
            limit: self.group.effective_limit()?.bytes(),
            usage: self.group.usage()?,
            reclaimable: stat.reclaimable(),
            swap,
        })
    }

    pub(super) fn pressure_path(&self) -> Option<PathBuf> {
        self.group.pressure_path()
    }
}
