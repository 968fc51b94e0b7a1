//! What the agent inside a guest says.

use plimsoll_units::{Bytes, MonoTime};
use serde::{Deserialize, Serialize};

use crate::PsiTotals;

/// One report of `plimsoll-agent`: `/proc/meminfo`, `/proc/vmstat` and `/proc/pressure/memory` of a guest, as far as
/// its kernel has them. `None` is what it has not.
///
/// Counters are totals since the guest's boot and not differences, so that a report that is lost loses nothing;
/// whoever wants a rate takes two reports. Every value is the guest's word and no more: it may be any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentStats {
    /// `MemTotal`: memory the guest's kernel has. Falls with the balloon unless DEFLATE_ON_OOM was negotiated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Bytes>,
    /// `MemFree`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<Bytes>,
    /// `MemAvailable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<Bytes>,
    /// `Committed_AS`: what the guest's programs were promised, by its own rules; 0 where the kernel says less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed: Option<Bytes>,
    /// `Cached` and `Buffers` together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<Bytes>,
    /// `Active(file)`: page cache that was used more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_file: Option<Bytes>,
    /// `AnonPages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anon: Option<Bytes>,
    /// `SwapTotal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_total: Option<Bytes>,
    /// `SwapFree`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_free: Option<Bytes>,
    /// What the kernel keeps for itself before it lets programs allocate (its `totalreserve_pages`): for each zone of
    /// `/proc/zoneinfo` the largest `protection` and the high watermark, at most what the zone manages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<Bytes>,
    /// Pages swapped in (`pswpin`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Pages swapped out (`pswpout`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Pages read again soon after they were given up (`workingset_refault_anon` and `_file`, or
    /// `workingset_refault` before Linux 5.9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refaults: Option<u64>,
    /// Faults that had to read a file or swap (`pgmajfault`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Allocations that had to reclaim first (`allocstall_*`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stalls: Option<u64>,
    /// Processes ended for want of memory (`oom_kill`, Linux 4.13 on).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Stall times, where the kernel has PSI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<PsiTotals>,
}

/// A report and when it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSample {
    /// When the host received it.
    pub at: MonoTime,
    /// What it says.
    pub stats: AgentStats,
}
