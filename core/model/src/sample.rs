//! What is known at a tick.

use alloc::vec::Vec;

use plimsoll_units::{Bytes, MemTarget, MonoTime};
use serde::{Deserialize, Serialize};

use crate::{AgentSample, PagerSample, Sizes, StatsSample, Tunables, VmId, VmName};

/// Everything the arbiter may know at one tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the tick began.
    pub now: MonoTime,
    /// The host.
    pub host: HostSample,
    /// Every registered VM, by rising id.
    pub vms: Vec<VmSample>,
}

/// Pressure stall information: microseconds in which tasks waited for memory, since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PsiTotals {
    /// At least one task waited.
    pub some_us: u64,
    /// All tasks waited.
    pub full_us: u64,
}

/// The host, or the cgroup that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSample {
    /// What the VMs together may be granted, their overheads included.
    pub budget: Bytes,
    /// What could be had without swapping: MemAvailable, or limit minus usage of the cgroup.
    pub available: Bytes,
    /// Below this `available` the host is short.
    pub low: Bytes,
    /// Stall times, where the kernel has them.
    pub psi: Option<PsiTotals>,
    /// Pages swapped in since boot (pswpin + zswpin).
    pub swap_in_pages: u64,
    /// Pages swapped out since boot (pswpout + zswpout).
    pub swap_out_pages: u64,
}

/// How well a VM can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Its balloon driver runs and answers.
    Up,
    /// The VM answers, but its guest has no balloon driver (yet): a target moves nothing.
    NoDriver,
    /// Nobody answers for the VM. What was last known stands.
    Unreachable,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSample {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// What it was promised.
    pub sizes: Sizes,
    /// Memory of the VM beyond its guest's own: the VMM's.
    pub overhead: Bytes,
    /// Whether it can be reached.
    pub link: Link,
    /// The target in force.
    pub target: MemTarget,
    /// What the guest holds: maxmem less its balloon.
    pub actual: MemTarget,
    /// Host memory behind the guest, where it can be told.
    pub resident: Option<Bytes>,
    /// An operator's pin.
    pub hold: Option<MemTarget>,
    /// The guest's word, if it ever gave one.
    pub stats: Option<StatsSample>,
    /// The word of the agent inside the guest, if one ever spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSample>,
    /// Its self-ballooning settings.
    #[serde(default, skip_serializing_if = "Tunables::is_default")]
    pub tunables: Tunables,
    /// Its pager, where its memory is populated on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pager: Option<PagerSample>,
}
