//! Sizes as people write them.

use alloc::string::{String, ToString};
use core::str::FromStr;

use crate::Bytes;

/// Why a text is not a size. Each message says what was read and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Nothing but white space.
    #[error("an empty text is no size; write for example 512M")]
    Empty,
    /// A minus sign.
    #[error("`{0}` is negative; a size is at least 0")]
    Negative(String),
    /// No number where one is wanted.
    #[error("`{0}` does not begin with a number; write for example 512M or 1.5GiB")]
    NoNumber(String),
    /// A suffix that is none of ours.
    #[error("`{suffix}` in `{text}` is no unit of memory; the units are K, M, G and T (powers of 1024)")]
    Unit {
        /// The whole text.
        text: String,
        /// The part that was not understood.
        suffix: String,
    },
    /// More than 2^64 - 1 bytes.
    #[error("`{0}` is more than 16 EiB, the largest size there is")]
    TooLarge(String),
    /// A fraction that is no whole number of bytes.
    #[error("`{0}` is not a whole number of bytes")]
    Fraction(String),
}

/// Reads `512M`, `512MiB`, `1.5G`, `4096`, `0.5 GiB`. Units are powers of 1024, as QEMU's `-m` has them,
/// upper or lower case, with or without `i` and `B`. The result is exact or an error.
impl FromStr for Bytes {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(ParseSizeError::Empty);
        }
        if trimmed.starts_with('-') {
            return Err(ParseSizeError::Negative(trimmed.to_string()));
        }
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') {
            return Err(ParseSizeError::NoNumber(trimmed.to_string()));
        }
        let shift = unit_shift(suffix.trim()).ok_or_else(|| ParseSizeError::Unit {
            text: trimmed.to_string(),
            suffix: suffix.trim().to_string(),
        })?;
        exact(whole, fraction, shift, trimmed).map(Bytes)
    }
}

/// The power of two a unit stands for.
fn unit_shift(suffix: &str) -> Option<u32> {
    let mut letters = suffix.chars();
    let shift = match letters.next() {
        None => return Some(0),
        Some('b' | 'B') => return letters.next().is_none().then_some(0),
        Some('k' | 'K') => 10,
        Some('m' | 'M') => 20,
        Some('g' | 'G') => 30,
        Some('t' | 'T') => 40,
        Some(_) => return None,
    };
    match letters.as_str() {
        "" | "b" | "B" | "i" | "ib" | "iB" => Some(shift),
        _ => None,
    }
}

/// `whole.fraction << shift` without rounding.
fn exact(whole: &str, fraction: &str, shift: u32, text: &str) -> Result<u64, ParseSizeError> {
    let too_large = || ParseSizeError::TooLarge(text.to_string());
    // 18 digits after the point fit a u64; a byte of a TiB needs 12.
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 18 {
        return Err(ParseSizeError::Fraction(text.to_string()));
    }
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let mut total = whole.checked_shl(shift).filter(|v| v >> shift == whole).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).map_err(|_| too_large())?;
        let denominator = 10u128.checked_pow(digits).ok_or_else(too_large)?;
        let numerator: u128 = fraction.parse().map_err(|_| ParseSizeError::NoNumber(text.to_string()))?;
        let scaled = numerator.checked_shl(shift).ok_or_else(too_large)?;
        if scaled.checked_rem(denominator) != Some(0) {
            return Err(ParseSizeError::Fraction(text.to_string()));
        }
        total = total.saturating_add(scaled.checked_div(denominator).unwrap_or(0));
    }
    u64::try_from(total).map_err(|_| too_large())
}

#[cfg(test)]
mod test {
    use super::*;

    fn size(text: &str) -> Result<u64, ParseSizeError> {
        text.parse::<Bytes>().map(|b| b.0)
    }

    #[test]
    fn the_usual_spellings() {
        for (text, want) in [
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("512mb", 512 << 20),
            ("1.5GiB", 1536 << 20),
            (" 0.25 G ", 256 << 20),
            ("4096", 4096),
            ("10B", 10),
            ("2t", 2 << 40),
            ("0", 0),
            ("1.500K", 1536),
        ] {
            assert_eq!(size(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_why() {
        assert_eq!(size(" "), Err(ParseSizeError::Empty));
        assert!(matches!(size("-1M"), Err(ParseSizeError::Negative(_))));
        assert!(matches!(size("M"), Err(ParseSizeError::NoNumber(_))));
        assert!(matches!(size("much"), Err(ParseSizeError::NoNumber(_))));
        assert!(matches!(size("1.2.3M"), Err(ParseSizeError::NoNumber(_))));
        assert!(matches!(size("5X"), Err(ParseSizeError::Unit { .. })));
        assert!(matches!(size("1e30"), Err(ParseSizeError::Unit { .. })));
        assert!(matches!(size("1Mx"), Err(ParseSizeError::Unit { .. })));
        assert!(matches!(size("1000000000000000000000000000000"), Err(ParseSizeError::TooLarge(_))));
        assert!(matches!(size("99999999999T"), Err(ParseSizeError::TooLarge(_))));
        assert!(matches!(size("0.3K"), Err(ParseSizeError::Fraction(_))));
        assert!(matches!(size("0.5"), Err(ParseSizeError::Fraction(_))));
    }
}
