//! Amounts of memory.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::PAGE_SIZE;

/// An amount of memory in bytes.
///
/// Arithmetic saturates: every amount here is a size of real or promised memory, and an overflow of
/// 2^64 bytes can only come from a hostile peer, whose answer is then merely "very much".
/// Written and read as people write sizes (`512M`, `1.5GiB`), see [`core::str::FromStr`];
/// serialised as a plain number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No memory.
    pub const ZERO: Self = Self(0);

    /// `n` KiB.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 10))
    }

    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// `n` GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The sum, at most `u64::MAX`.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least 0.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * numerator / denominator`, rounded down; 0 when the denominator is 0.
    #[must_use]
    pub fn scale(self, numerator: u64, denominator: u64) -> Self {
        let product = u128::from(self.0).saturating_mul(u128::from(numerator));
        let quotient = product.checked_div(u128::from(denominator)).unwrap_or(0);
        Self(u64::try_from(quotient).unwrap_or(u64::MAX))
    }

    /// Whole pages in this amount, rounded down.
    #[must_use]
    pub const fn pages_floor(self) -> PageCount {
        PageCount(self.0 / PAGE_SIZE)
    }

    /// Pages needed to hold this amount, rounded up.
    #[must_use]
    pub const fn pages_ceil(self) -> PageCount {
        PageCount(self.0.div_ceil(PAGE_SIZE))
    }

    /// Whether this is a whole number of pages.
    #[must_use]
    pub const fn is_page_multiple(self) -> bool {
        self.0.is_multiple_of(PAGE_SIZE)
    }

    /// Whole MiB, rounded down: for tables.
    #[must_use]
    pub const fn whole_mib(self) -> u64 {
        self.0 >> 20
    }
}

impl core::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::plus)
    }
}

/// The largest binary unit in which the amount is a whole number, so that what is printed can be
/// typed back and is the same amount.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 4] = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        for (shift, suffix) in UNITS {
            let unit = 1u64 << shift;
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return f.pad(&alloc::format!("{}{suffix}", self.0 >> shift));
            }
        }
        f.pad(&alloc::format!("{}", self.0))
    }
}

/// A number of 4 KiB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageCount(pub u64);

impl PageCount {
    /// The same amount in bytes.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE))
    }
}

/// How many pages the guest has given up or is asked to give up: virtio's `num_pages` and `actual`.
/// The opposite of [`MemTarget`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BalloonSize(pub PageCount);

impl BalloonSize {
    /// The value for virtio's 32-bit config fields; more than 16 TiB is cut to what fits.
    #[must_use]
    pub fn config_field(self) -> u32 {
        u32::try_from(self.0.0).unwrap_or(u32::MAX)
    }
}

/// How much memory the guest may keep: QMP's `balloon`, Xen's memory target.
/// The opposite of [`BalloonSize`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemTarget(pub Bytes);

impl MemTarget {
    /// What is left of `maxmem` when `balloon` is taken out of it.
    #[must_use]
    pub const fn from_balloon(maxmem: Bytes, balloon: BalloonSize) -> Self {
        Self(maxmem.minus(balloon.0.bytes()))
    }

    /// The balloon that leaves this much of `maxmem`. A target that is not a whole number of pages
    /// gives the smaller balloon, so the guest is never left with less than the target.
    #[must_use]
    pub const fn balloon(self, maxmem: Bytes) -> BalloonSize {
        BalloonSize(maxmem.minus(self.0).pages_floor())
    }
}

impl fmt::Display for MemTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod test {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn display_uses_the_largest_exact_unit() {
        assert_eq!(Bytes::gib(2).to_string(), "2G");
        assert_eq!(Bytes(1536 << 20).to_string(), "1536M");
        assert_eq!(Bytes(4097).to_string(), "4097");
        assert_eq!(Bytes::ZERO.to_string(), "0");
    }

    #[test]
    fn scale_by_zero_denominator_is_nothing() {
        assert_eq!(Bytes(7).scale(3, 0), Bytes::ZERO);
        assert_eq!(Bytes(u64::MAX).scale(u64::MAX, 1), Bytes(u64::MAX));
    }

    proptest! {
        #[test]
        fn target_and_balloon_add_up_to_maxmem(max_pages in 1u64..1 << 32, balloon in 0u64..1 << 32) {
            let maxmem = PageCount(max_pages).bytes();
            let balloon = BalloonSize(PageCount(balloon.min(max_pages)));
            let target = MemTarget::from_balloon(maxmem, balloon);
            prop_assert_eq!(target.balloon(maxmem), balloon);
            prop_assert_eq!(target.0.plus(balloon.0.bytes()), maxmem);
        }

        #[test]
        fn the_guest_never_gets_less_than_its_target(maxmem in any::<u64>(), target in any::<u64>()) {
            let (maxmem, target) = (Bytes(maxmem).pages_floor().bytes(), MemTarget(Bytes(target)));
            let left = MemTarget::from_balloon(maxmem, target.balloon(maxmem));
            prop_assert!(left >= target.min(MemTarget(maxmem)));
        }

        #[test]
        fn what_is_printed_can_be_read_back(n in any::<u64>()) {
            prop_assert_eq!(Bytes(n).to_string().parse::<Bytes>(), Ok(Bytes(n)));
        }
    }
}
