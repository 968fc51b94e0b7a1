//! When the next tick is due.

use std::time::Duration;

/// From one tick to the next while memory is on its way to somebody who needs it.
const HURRY: Duration = Duration::from_millis(100);

/// Ticks called for from outside (an operator, a stall, the end of a process) are at least this far apart, so
/// that nobody can keep the daemon busy.
pub(crate) const LEAST_GAP: Duration = Duration::from_millis(100);

/// The pace of ticks: the configured period; in a hurry 100 ms, and slower again the longer nothing moves.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    period: Duration,
    hurry: Duration,
}

impl Pace {
    pub(crate) const fn new(period: Duration) -> Self {
        Self { period, hurry: HURRY }
    }

    /// How long after the beginning of the last tick the next one begins. `hurried`: somebody waits for memory
    /// that is on its way; `moved`: something has moved since the last tick.
    pub(crate) fn next(&mut self, hurried: bool, moved: bool) -> Duration {
        if !hurried {
            self.hurry = HURRY;
            return self.period;
        }
        let delay = if moved { HURRY } else { self.hurry };
        self.hurry = delay.saturating_mul(2).min(self.period);
        delay.min(self.period)
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hurry_in_which_nothing_moves_calms_down() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new(ms(1000));
        let delays: Vec<_> = (0..6).map(|_| pace.next(true, false)).collect();
        assert_eq!(delays, [ms(100), ms(200), ms(400), ms(800), ms(1000), ms(1000)]);
        assert_eq!(pace.next(true, true), ms(100));
        assert_eq!(pace.next(false, true), ms(1000));
        assert_eq!(pace.next(true, false), ms(100));
    }

    proptest! {
        #[test]
        fn never_slower_than_the_period_nor_faster_than_a_hurry(period in 100u64..60_000, steps in prop::collection::vec(any::<(bool, bool)>(), 0..50)) {
            let period = Duration::from_millis(period);
            let mut pace = Pace::new(period);
            for (hurried, moved) in steps {
                let delay = pace.next(hurried, moved);
                prop_assert!(HURRY <= delay && delay <= period);
            }
        }
    }
}
