//! Ratios in integers.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// A share in millionths. Integers, so that a decision is the same on every machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ppm(pub u32);

impl Ppm {
    /// The whole.
    pub const ONE: Self = Self(1_000_000);

    /// `percent` hundredths.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        Self(percent.saturating_mul(10_000))
    }

    /// `part / whole`, at most `u32::MAX` millionths; 0 of 0 is 0.
    #[must_use]
    pub fn ratio(part: u64, whole: u64) -> Self {
        let scaled = u128::from(part).saturating_mul(1_000_000);
        Self(u32::try_from(scaled.checked_div(u128::from(whole)).unwrap_or(0)).unwrap_or(u32::MAX))
    }

    /// This share of `amount`, rounded down.
    #[must_use]
    pub fn of(self, amount: Bytes) -> Bytes {
        amount.scale(u64::from(self.0), 1_000_000)
    }
}

/// As a percentage with one digit after the point.
impl fmt::Display for Ppm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}%", self.0 / 10_000, (self.0 % 10_000) / 1_000)
    }
}

#[cfg(test)]
mod test {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn ratios_round_down_and_saturate() {
        assert_eq!(Ppm::ratio(1, 3), Ppm(333_333));
        assert_eq!(Ppm::ratio(5, 0), Ppm(0));
        assert_eq!(Ppm::ratio(u64::MAX, 1), Ppm(u32::MAX));
        assert_eq!(Ppm::percent(50).of(Bytes(101)), Bytes(50));
        assert_eq!(Ppm(123_456).to_string(), "12.3%");
    }
}
