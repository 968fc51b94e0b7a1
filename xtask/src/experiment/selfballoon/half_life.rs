//! How fast a guest shrinks towards its goal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use plimsoll_units::Bytes;
use serde::Serialize;

use super::curve::{Fit, Point, fit, formula, from_first_step, mib};
use super::guest::Guest;
use crate::experiment::figures::number;

/// From one point of the curve to the next: more than six in a second.
const EVERY: Duration = Duration::from_millis(150);
/// How long the curve is followed, in half-lives: a 32nd of the way is left then.
const HALF_LIVES: f64 = 5.0;
/// A guest that does not answer for so long is not run: the machine is too busy for its ticks to be in time.
const MOST_GAP_MS: u64 = 1000;
/// How long a guest may take back to its full size.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);

/// How self-ballooning is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Pace {
    /// `selfballoon_interval`, in seconds.
    pub(crate) interval: u32,
    /// `selfballoon_downhysteresis`.
    pub(crate) down: u32,
}

impl Pace {
    /// The half-life that these settings are to give.
    pub(crate) fn half_life_s(self) -> f64 {
        formula(f64::from(self.interval), f64::from(self.down))
    }

    /// How long the curve is followed.
    fn time(self) -> Duration {
        Duration::from_secs_f64(HALF_LIVES * self.half_life_s())
    }

    /// The words for `plimsoll set`.
    pub(crate) fn words(self) -> [String; 3] {
        let Self { interval, down } = self;
        [
            "selfballooning=on".to_owned(),
            format!("selfballoon_interval={interval}"),
            format!("selfballoon_downhysteresis={down}"),
        ]
    }
}

/// A curve and what fits it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HalfLife {
    pub(crate) pace: Pace,
    /// Why it says nothing, if it does not.
    pub(crate) void: Option<String>,
    /// What the settings are to give.
    pub(crate) formula_s: f64,
    pub(crate) fit: Option<Fit>,
    /// How far the fitted half-life is from the formula's, as a part of that; `None` without a fit.
    pub(crate) error: Option<f64>,
    /// Where the guest should come to rest, in MiB, from its own kernel's figures after the curve.
    pub(crate) goal_mib: f64,
    /// Points in a second.
    pub(crate) rate: f64,
    pub(crate) curve: Vec<Point>,
}

/// Brings the guest to its full size without self-ballooning, switches that on, and follows what the guest holds.
///
/// # Errors
/// When the guest or the daemon does not answer.
pub(crate) fn measure(guest: &Guest<'_>, pace: Pace) -> Result<HalfLife> {
    guest.set(&["selfballooning=off"])?;
    guest.wait_held("its full size", WHOLE_LIMIT, |held| held == guest.maxmem)?;
    guest.set_pace(pace)?;
    let (begin, mut curve) = (Instant::now(), Vec::new());
    while begin.elapsed() < pace.time() {
        let asked = Instant::now();
        let held = guest.counted()?.held;
        // The answer is of a moment between question and answer.
        let at = begin.elapsed().saturating_sub(asked.elapsed() / 2);
        let ms = u64::try_from(at.as_millis()).context("a time of this century")?;
        curve.push(Point { ms, held, resident: guest.resident() });
        std::thread::sleep(EVERY.saturating_sub(asked.elapsed()));
    }
    Ok(judge(pace, curve, guest.goal()?))
}

fn judge(pace: Pace, curve: Vec<Point>, goal: Bytes) -> HalfLife {
    let points: Vec<_> = curve.iter().map(Point::coordinates).collect();
    let formula_s = pace.half_life_s();
    let fit = from_first_step(&points, f64::from(pace.interval)).and_then(fit);
    let seconds = curve.last().map_or(0.0, |last| number(last.ms) / 1000.0);
    let count = curve.iter().fold(0.0, |count, _| count + 1.0);
    HalfLife {
        pace,
        void: void(&curve),
        formula_s,
        fit,
        error: fit.map(|fit| (fit.half_life_s - formula_s).abs() / formula_s),
        goal_mib: mib(goal),
        rate: if seconds > 0.0 { count / seconds } else { 0.0 },
        curve,
    }
}

/// A curve with a gap was taken on a machine that had no time for the guest, the daemon, or both.
fn void(curve: &[Point]) -> Option<String> {
    let gap = |pair: &[Point]| Some(pair.last()?.ms.saturating_sub(pair.first()?.ms));
    let most = curve.windows(2).filter_map(gap).max()?;
    (most > MOST_GAP_MS).then(|| format!("the machine was too busy: no answer of the guest for {most} ms"))
}

#[cfg(test)]
pub(crate) mod test {
    use plimsoll_units::Bytes;

    use super::{HalfLife, Pace, Point, judge};

    /// A smooth curve of that half-life.
    pub(crate) fn curve(pace: Pace, half_life_s: f64) -> HalfLife {
        let point = |n: u32| {
            let pages = 40_000.0 + 90_000.0 * (-f64::from(n) * 0.2 / half_life_s).exp2();
            let pages: u64 = format!("{pages:.0}").parse().expect("whole");
            Point { ms: u64::from(n) * 200, held: Bytes(pages * 4096), resident: None }
        };
        judge(pace, (0..300).map(point).collect(), Bytes(40_000 * 4096))
    }

    #[test]
    fn the_error_is_the_part_by_which_it_is_off() {
        let pace = Pace { interval: 2, down: 8 };
        let right = curve(pace, pace.half_life_s());
        assert!(right.error.is_some_and(|error| error < 0.001), "{right:?}");
        assert!((right.rate - 5.0).abs() < 0.1, "{}", right.rate);
        let slow = curve(pace, pace.half_life_s() * 1.2);
        assert!(slow.error.is_some_and(|error| (error - 0.2).abs() < 0.001));
        let stuck = judge(pace, vec![Point { ms: 1, held: Bytes(1), resident: None }; 50], Bytes(1));
        assert_eq!((stuck.fit, stuck.error), (None, None));
    }

    #[test]
    fn a_curve_with_a_gap_is_void() {
        let pace = Pace { interval: 2, down: 8 };
        let mut whole = curve(pace, pace.half_life_s());
        assert_eq!(whole.void, None);
        whole.curve.drain(100..104);
        assert_eq!(judge(pace, whole.curve.clone(), Bytes(1)).void, None);
        whole.curve.drain(100..103);
        let void = judge(pace, whole.curve, Bytes(1)).void.expect("a gap");
        assert!(void.contains("1600 ms"), "{void}");
    }

    #[test]
    fn settings_are_in_the_words_of_set() {
        let words = Pace { interval: 5, down: 8 }.words();
        assert_eq!(words, ["selfballooning=on", "selfballoon_interval=5", "selfballoon_downhysteresis=8"]);
    }
}
