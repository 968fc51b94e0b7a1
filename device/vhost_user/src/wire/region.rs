//! The regions of a memory table.

/// The most regions a memory table has without `CONFIGURE_MEM_SLOTS`, which is not offered.
pub const MAX_REGIONS: usize = plimsoll_shm::MAX_FDS;

/// Where a piece of the guest's memory is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its guest physical address.
    pub guest: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its address in the front end's own memory, in which ring addresses are given.
    pub user: u64,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
}

impl Region {
    /// Whether it has memory and ends before the end of every space it lies in.
    #[must_use]
    pub fn is_sane(self) -> bool {
        self.length != 0
            && [self.guest, self.user, self.offset].iter().all(|at| at.checked_add(self.length).is_some())
    }

    /// Whether two regions claim the same guest physical or front-end address. Both are sane.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let meet = |a: u64, b: u64| a < b.saturating_add(other.length) && b < a.saturating_add(self.length);
        meet(self.guest, other.guest) || meet(self.user, other.user)
    }

    pub(crate) const BYTES: usize = 32;

    pub(crate) fn encode(self, into: &mut Vec<u8>) {
        for field in [self.guest, self.length, self.user, self.offset] {
            into.extend_from_slice(&field.to_ne_bytes());
        }
    }
}
