//! What a guest says of itself.

use plimsoll_units::{Bytes, MonoTime};
use serde::{Deserialize, Serialize};

/// The statistics a balloon driver sends, by the tags of Linux' `include/uapi/linux/virtio_balloon.h`
/// (0 to 15). `None` is what the guest did not send.
///
/// Every value is the guest's word and no more: it may be any number. Whoever uses one bounds it by what
/// the host knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestStats {
    /// Tag 0: bytes swapped in since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<Bytes>,
    /// Tag 1: bytes swapped out since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<Bytes>,
    /// Tag 2: major faults since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Tag 3: minor faults since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Tag 4: memory used for nothing at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<Bytes>,
    /// Tag 5: memory the guest's kernel has. Falls with the balloon unless DEFLATE_ON_OOM was negotiated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Bytes>,
    /// Tag 6: what could be had for new programs without swapping (MemAvailable).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<Bytes>,
    /// Tag 7: page cache that could be given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caches: Option<Bytes>,
    /// Tag 8: huge pages allocated since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_allocations: Option<u64>,
    /// Tag 9: huge pages that could not be allocated since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_failures: Option<u64>,
    /// Tag 10: processes ended for want of memory since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Tag 11: allocations that had to reclaim first, since boot (Linux 6.12 on).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stalls: Option<u64>,
    /// Tag 12: bytes scanned by kswapd since boot (Linux 6.12 on).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<Bytes>,
    /// Tag 13: bytes scanned by allocating tasks since boot (Linux 6.12 on).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<Bytes>,
    /// Tag 14: bytes reclaimed by kswapd since boot (Linux 6.12 on).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<Bytes>,
    /// Tag 15: bytes reclaimed by allocating tasks since boot (Linux 6.12 on).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<Bytes>,
}

/// Statistics and when they arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsSample {
    /// When the host received them.
    pub at: MonoTime,
    /// What they say.
    pub stats: GuestStats,
}

impl GuestStats {
    /// Sets the value of a tag as the wire names it; an unknown tag changes nothing.
    pub fn set_tag(&mut self, tag: u16, value: u64) {
        let (bytes, count) = (Some(Bytes(value)), Some(value));
        match tag {
            0 => self.swap_in = bytes,
            1 => self.swap_out = bytes,
            2 => self.major_faults = count,
            3 => self.minor_faults = count,
            4 => self.free = bytes,
            5 => self.total = bytes,
            6 => self.available = bytes,
            7 => self.caches = bytes,
            8 => self.huge_allocations = count,
            9 => self.huge_failures = count,
            10 => self.oom_kills = count,
            11 => self.alloc_stalls = count,
            12 => self.async_scan = bytes,
            13 => self.direct_scan = bytes,
            14 => self.async_reclaim = bytes,
            15 => self.direct_reclaim = bytes,
            _ => {}
        }
    }
}
