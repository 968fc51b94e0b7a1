//! The two clocks.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, by CLOCK_BOOTTIME: never goes back, and counts a suspended host.
pub(crate) use plimsoll_procfs::now;

/// Now, in microseconds since 1970: for people only.
pub(crate) fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
