//! Medians, spreads and ratios.

use serde::Serialize;

/// The middle of some numbers: of an even count the mean of the two in the middle. `None` of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get((sorted.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

/// Least, middle and greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The least.
    pub(crate) min: f64,
    /// The middle, see [`median`].
    pub(crate) median: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of some numbers; `None` of none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let min = values.iter().copied().min_by(f64::total_cmp)?;
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { min, median: median(values)?, max })
    }
}

/// `ours / theirs`. Nothing of nothing is 1: neither is better. Something of nothing is `None`, in JSON `null`:
/// there is no such number, and a large one in its place would be made up.
pub(crate) fn ratio(ours: f64, theirs: f64) -> Option<f64> {
    let is_none = |value: f64| value.abs() < f64::EPSILON;
    match (is_none(ours), is_none(theirs)) {
        (true, true) => Some(1.0),
        (false, true) => None,
        (_, false) => Some(ours / theirs),
    }
}

/// A count as a number to calculate with. Exact up to 2^53, which no count of pages reaches.
pub(crate) fn number(count: u64) -> f64 {
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

#[cfg(test)]
mod test {
    use super::{Spread, median, number, ratio};

    fn close(a: Option<f64>, b: f64) -> bool {
        a.is_some_and(|a| (a - b).abs() < 1e-9)
    }

    #[test]
    fn the_middle_is_found_whatever_the_order() {
        assert!(close(median(&[5.0, 1.0, 3.0]), 3.0));
        assert!(close(median(&[4.0, 1.0]), 2.5));
        assert_eq!(median(&[]), None);
        let spread = Spread::of(&[7.0, 2.0, 3.0]).expect("some");
        assert!(
            close(Some(spread.min), 2.0) && close(Some(spread.max), 7.0) && close(Some(spread.median), 3.0)
        );
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn nothing_of_nothing_is_one_and_something_of_nothing_is_no_number() {
        assert!(close(ratio(0.0, 0.0), 1.0));
        assert!(close(ratio(0.0, 5.0), 0.0));
        assert!(close(ratio(1.0, 4.0), 0.25));
        assert_eq!(ratio(1.0, 0.0), None);
    }

    #[test]
    fn counts_become_numbers_exactly() {
        for count in [0, 1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, 1 << 52] {
            assert_eq!(format!("{:.0}", number(count)), count.to_string());
        }
    }
}
