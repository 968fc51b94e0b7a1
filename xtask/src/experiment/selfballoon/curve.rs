//! The curve of a guest that shrinks by its own proposal, and the half-life that fits it.

use plimsoll_units::Bytes;
use serde::Serialize;

use crate::experiment::figures::number;

/// Fewer points than this are no curve.
const LEAST_POINTS: usize = 8;
/// Half-lives that are tried first, each a little longer than the one before.
const TRIES: u32 = 240;
/// Narrowings of the best of them: each leaves 0.618 of the range.
const NARROWINGS: u32 = 60;
/// What remains of a range that is cut by the golden ratio.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// What a guest held at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Point {
    /// Milliseconds since self-ballooning was switched on.
    pub(crate) ms: u64,
    /// What the guest held, by its own kernel's count.
    pub(crate) held: Bytes,
    /// Of its memory, what existed on the host, by the host's file system.
    pub(crate) resident: Option<Bytes>,
}

impl Point {
    /// Seconds and MiB.
    pub(crate) fn coordinates(&self) -> (f64, f64) {
        (number(self.ms) / 1000.0, mib(self.held))
    }
}

/// A size in MiB.
pub(crate) fn mib(size: Bytes) -> f64 {
    number(size.0) / 1_048_576.0
}

/// `held(t) = goal + above * 2^(-t / half_life)`, as it fits best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Fit {
    pub(crate) half_life_s: f64,
    /// Where the curve ends, in MiB.
    pub(crate) goal_mib: f64,
    /// How far above it the curve begins, in MiB.
    pub(crate) above_mib: f64,
    /// How far the points lie off, in MiB: the root of the mean square.
    pub(crate) rms_mib: f64,
}

impl Fit {
    /// The curve at a time.
    pub(crate) fn at(&self, seconds: f64) -> f64 {
        self.goal_mib + self.above_mib * (-seconds / self.half_life_s).exp2()
    }
}

/// The half-life that follows from the settings: each interval leaves `1 - 1/down` of the way.
pub(crate) fn formula(interval_s: f64, down: f64) -> f64 {
    interval_s * std::f64::consts::LN_2 / -(1.0 - 1.0 / down).ln()
}

/// Least squares over all points: goal and beginning follow from the half-life by linear regression, the half-life is
/// searched for. The goal is fitted and not taken from the guest's own figures, since it moves with what its programs
/// are promised while the curve is taken; the figures are compared with it afterwards.
///
/// Each point counts for the time it stands for, so that a busy machine's gaps between points do no harm.
///
/// `None` for too few points, or points that do not fall.
pub(crate) fn fit(points: &[(f64, f64)]) -> Option<Fit> {
    if points.len() < LEAST_POINTS {
        return None;
    }
    let (first, last) = (points.first()?.0, points.last()?.0);
    let span = last - first;
    if !span.is_finite() || span <= 0.0 {
        return None;
    }
    let weights = weights(points);
    let at = |half_life: f64| regression(points, &weights, half_life);
    let error = |half_life: f64| at(half_life).map_or(f64::INFINITY, |fit| fit.rms_mib);
    // From a fortieth of the curve to four times it.
    let tried = (0..TRIES).map(|n| span / 40.0 * 160_f64.powf(f64::from(n) / f64::from(TRIES - 1)));
    let best = tried.min_by(|a, b| error(*a).total_cmp(&error(*b)))?;
    let step = 160_f64.powf(1.0 / f64::from(TRIES - 1));
    let (mut low, mut high) = (best / step, best * step);
    for _ in 0..NARROWINGS {
        let (left, right) = (high - (high - low) * GOLDEN, low + (high - low) * GOLDEN);
        if error(left) < error(right) { high = right } else { low = left }
    }
    at(f64::midpoint(low, high)).filter(|fit| fit.above_mib > 0.0)
}

/// The points from half an interval before the first step on. What is before them is the wait for the worker's first
/// turn; and a smooth curve through the middle of each stair is half an interval before the stair's end as high as the
/// stair. `None` if there is no step.
pub(crate) fn from_first_step(points: &[(f64, f64)], interval_s: f64) -> Option<&[(f64, f64)]> {
    let whole = points.first()?.1;
    // Half a MiB is no step; a guest's own driver moves single pages.
    let first = points.iter().find(|point| point.1 < whole - 0.5)?.0;
    let begin = points.iter().position(|point| point.0 >= first - interval_s / 2.0)?;
    points.get(begin..)
}

/// The time that each point stands for: half of that to its neighbours.
fn weights(points: &[(f64, f64)]) -> Vec<f64> {
    let time = |index: usize| points.get(index).map(|point| point.0);
    let weight = |(index, point): (usize, &(f64, f64))| {
        let before = index.checked_sub(1).and_then(time).unwrap_or(point.0);
        let after = time(index + 1).unwrap_or(point.0);
        ((after - before) / 2.0).max(0.0)
    };
    points.iter().enumerate().map(weight).collect()
}

/// The best goal and beginning for a given half-life.
fn regression(points: &[(f64, f64)], weights: &[f64], half_life_s: f64) -> Option<Fit> {
    let mut sums = [0.0; 5];
    for (&(seconds, held), &weight) in points.iter().zip(weights) {
        let left = (-seconds / half_life_s).exp2();
        let terms = [1.0, left, left * left, held, held * left];
        sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += weight * term);
    }
    let [all, left, squares, held, both] = sums;
    let determinant = all * squares - left * left;
    if determinant.abs() <= f64::EPSILON * all * squares {
        return None;
    }
    let above_mib = (all * both - left * held) / determinant;
    let goal_mib = (held - above_mib * left) / all;
    let fit = Fit { half_life_s, goal_mib, above_mib, rms_mib: 0.0 };
    let off = |(&(seconds, held), &weight): (&(f64, f64), &f64)| weight * (held - fit.at(seconds)).powi(2);
    let square = points.iter().zip(weights).map(off).sum::<f64>() / all;
    square.is_finite().then(|| Fit { rms_mib: square.max(0.0).sqrt(), ..fit })
}

#[cfg(test)]
mod test {
    use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};

    use super::{Fit, fit, formula, from_first_step};

    /// What the arithmetic does to a guest: a step each interval, integer divisions in pages.
    fn stairs(
        start: u64,
        goal: u64,
        (interval, down): (f64, u64),
        (every, until): (f64, f64),
    ) -> Vec<(f64, f64)> {
        let mut points = Vec::new();
        let (mut held, mut next, mut now) = (start, interval, 0.0);
        while now < until {
            while now >= next {
                held -= (held - goal) / down;
                next += interval;
            }
            points.push((now, f64::from(u32::try_from(held).expect("pages")) / 256.0));
            now += every;
        }
        points
    }

    fn fitted(points: &[(f64, f64)], interval_s: f64) -> Option<Fit> {
        fit(from_first_step(points, interval_s)?)
    }

    fn off(fit: Option<Fit>, wanted: f64) -> f64 {
        let fit = fit.expect("a curve");
        (fit.half_life_s - wanted).abs() / wanted
    }

    #[test]
    fn the_formula_is_the_published_half_life() {
        assert!((formula(5.0, 8.0) - 25.95).abs() < 0.01, "{}", formula(5.0, 8.0));
        assert!((formula(1.0, 2.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_smooth_curve_is_found_again() {
        let points: Vec<_> =
            (0..400).map(|n| f64::from(n) * 0.2).map(|t| (t, 90.0 + 422.0 * (-t / 10.4).exp2())).collect();
        let found = fit(&points).expect("a curve");
        assert!((found.half_life_s - 10.4).abs() < 1e-3 && (found.goal_mib - 90.0).abs() < 0.01, "{found:?}");
        assert!((found.above_mib - 422.0).abs() < 0.01 && found.rms_mib < 1e-3, "{found:?}");
    }

    #[test]
    fn stairs_have_the_half_life_of_the_formula_within_one_percent() {
        for (interval, until) in [(1.0, 31.0), (2.0, 52.0), (2.0, 62.0), (5.0, 155.0)] {
            let mut points = stairs(131_072, 45_000, (interval, 8), (0.15, until));
            let error = off(fitted(&points, interval), formula(interval, 8.0));
            assert!(error < 0.01, "interval {interval}: {error}");
            // However long the worker's first turn is waited for.
            points.iter_mut().for_each(|point| point.0 += 0.9);
            points.insert(0, (0.0, 512.0));
            let later = off(fitted(&points, interval), formula(interval, 8.0));
            assert!(later < 0.01, "interval {interval}: {later}");
        }
    }

    #[test]
    fn another_pace_is_told_apart() {
        // Every third step is missed; and a downhysteresis of 9 instead of 8.
        let slow: Vec<_> = stairs(131_072, 45_000, (3.0, 8), (0.15, 62.0));
        assert!(off(fitted(&slow, 2.0), formula(2.0, 8.0)) > 0.4);
        let nine = stairs(131_072, 45_000, (2.0, 9), (0.15, 62.0));
        assert!(off(fitted(&nine, 2.0), formula(2.0, 8.0)) > 0.10);
    }

    #[test]
    fn gaps_between_points_do_no_harm() {
        let even = stairs(131_072, 45_000, (2.0, 8), (0.15, 62.0));
        let sparse: Vec<_> = even
            .iter()
            .enumerate()
            .filter(|(n, _)| !(60..90).contains(n) && (n % 4 == 0 || *n > 200))
            .map(|(_, point)| *point)
            .collect();
        assert!(off(fitted(&sparse, 2.0), formula(2.0, 8.0)) < 0.03);
    }

    #[test]
    fn what_does_not_fall_is_no_curve() {
        let flat: Vec<_> = (0..100).map(|n| (f64::from(n), 512.0)).collect();
        let rising: Vec<_> =
            (0..100).map(|n| (f64::from(n), 600.0 - 500.0 * (-f64::from(n) / 9.0).exp2())).collect();
        assert!(fit(&flat).is_none_or(|fit| fit.above_mib < 1e-6));
        assert_eq!(fit(&rising), None);
        assert_eq!(fit(&[]), None);
        assert_eq!(fit(&[(1.0, 1.0); 20]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_settings_are_found_within_two_percent(interval in 1_u32..6, down in 6_u64..16, goal in 20_000_u64..90_000) {
            let half_life = formula(f64::from(interval), f64::from(u32::try_from(down).expect("small")));
            let points = stairs(131_072, goal, (f64::from(interval), down), (half_life / 50.0, 6.0 * half_life));
            prop_assert!(off(fitted(&points, f64::from(interval)), half_life) < 0.02);
        }

        #[test]
        fn no_points_panic(points in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..20)) {
            let _ = fit(&points);
        }
    }
}
