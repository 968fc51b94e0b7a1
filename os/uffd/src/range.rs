//! Addresses in the watched process.

use std::fmt;

use plimsoll_uffd_wire::abi;
use plimsoll_units::PAGE_SIZE;

use crate::UffdError;

/// Whole pages of a process's address space, at least one. Host virtual addresses, of the watched process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRange {
    start: u64,
    len: u64,
}

impl HostRange {
    /// `len` bytes from `start`, both multiples of [`PAGE_SIZE`].
    ///
    /// # Errors
    /// [`UffdError::Range`] when they are not, when `len` is 0, or when the end does not fit into 64 bits.
    pub fn new(start: u64, len: u64) -> Result<Self, UffdError> {
        let whole = start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
        if !whole || len == 0 || start.checked_add(len).is_none() {
            return Err(UffdError::Range { start, len });
        }
        Ok(Self { start, len })
    }

    /// The first address.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// Bytes, at least [`PAGE_SIZE`].
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// The first address behind it.
    #[must_use]
    pub fn end(self) -> u64 {
        // `new` has checked that this does not overflow.
        self.start.saturating_add(self.len)
    }

    /// Never: an empty range is no range.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }

    /// What is left when `bytes` from its start are done; `None` when that is all.
    #[must_use]
    pub fn after(self, bytes: u64) -> Option<Self> {
        let len = self.len.checked_sub(bytes)?;
        Self::new(self.start.checked_add(bytes)?, len).ok()
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(self, address: u64) -> bool {
        address.checked_sub(self.start).is_some_and(|into| into < self.len)
    }

    /// As the kernel takes it.
    pub(crate) fn raw(self) -> abi::Range {
        abi::Range { start: self.start, len: self.len }
    }
}

impl fmt::Display for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end())
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_is_of_whole_pages_and_ends_somewhere(start: u64, len: u64, aligned: bool) {
            let mask = if aligned { !(PAGE_SIZE - 1) } else { !0 };
            if let Ok(range) = HostRange::new(start & mask, len & mask) {
                prop_assert!(range.end() > range.start());
                prop_assert_eq!((range.start() | range.end()) % PAGE_SIZE, 0);
                prop_assert!(range.contains(range.start()) && !range.contains(range.end()));
            } else if aligned {
                prop_assert!(len & mask == 0 || (start & mask).checked_add(len & mask).is_none());
            }
        }

        #[test]
        fn what_is_left_ends_where_the_whole_did(pages in 1..1000_u64, done in 0..1100_u64) {
            let range = HostRange::new(1 << 30, pages * PAGE_SIZE).unwrap();
            match range.after(done * PAGE_SIZE) {
                Some(left) => prop_assert_eq!((left.end(), left.len()), (range.end(), (pages - done) * PAGE_SIZE)),
                None => prop_assert!(done >= pages),
            }
        }
    }
}
