//! Log lines that a guest can cause, at a limited rate.

use std::time::{Duration, Instant};

/// How many lines a [`Throttle`] lets through in [`PERIOD`].
const BURST: u32 = 5;

/// The period of the limit.
const PERIOD: Duration = Duration::from_secs(60);

/// Lets 5 lines a minute through and counts the rest.
#[derive(Debug, Default)]
pub struct Throttle {
    since: Option<Instant>,
    passed: u32,
    held_back: u64,
}

impl Throttle {
    /// Whether a line may be written now: if so, how many were held back since the last one.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            self.since = Some(now);
            self.passed = 0;
        }
        if self.passed < BURST {
            self.passed += 1;
            Some(std::mem::take(&mut self.held_back))
        } else {
            self.held_back = self.held_back.saturating_add(1);
            None
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_later() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        let passed = (0..1000).filter(|_| throttle.pass(start).is_some()).count();
        assert_eq!(passed, 5);
        assert_eq!(throttle.pass(start + PERIOD), Some(995));
        assert_eq!(throttle.pass(start + PERIOD), Some(0));
    }
}
