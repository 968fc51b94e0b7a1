//! Time as the caller tells it: this crate has no clock.

use serde::{Deserialize, Serialize};

/// Microseconds of a clock that never goes back (CLOCK_BOOTTIME, so that it counts a suspended host).
/// Only differences mean anything, and only within one boot of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// Microseconds from `earlier` to here; 0 if it was not earlier.
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Milliseconds from `earlier` to here; 0 if it was not earlier.
    #[must_use]
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.micros_since(earlier) / 1000
    }

    /// The moment `millis` later.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1000)))
    }
}
