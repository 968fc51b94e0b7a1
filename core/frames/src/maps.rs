//! Free maps.

use alloc::vec::Vec;

/// Which maps are free: known to this process only, and found anew by attach.
pub(crate) struct MapPool {
    pub(crate) freed: Vec<u32>,
    /// Maps from here on were never in use.
    pub(crate) fresh: u32,
    pub(crate) total: u32,
}

impl MapPool {
    /// All maps free.
    pub(crate) fn new(total: u32) -> Self {
        Self { freed: Vec::new(), fresh: 0, total }
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(map) = self.freed.pop() {
            return Some(map);
        }
        let map = (self.fresh < self.total).then_some(self.fresh)?;
        self.fresh = self.fresh.saturating_add(1);
        Some(map)
    }

    pub(crate) fn give(&mut self, map: u32) {
        self.freed.push(map);
    }

    pub(crate) fn free(&self) -> u64 {
        let fresh = u64::from(self.total.saturating_sub(self.fresh));
        u64::try_from(self.freed.len()).unwrap_or(u64::MAX).saturating_add(fresh)
    }
}
