//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// Delays that double from 250 ms to 30 s. Pure: the caller sleeps, and says when it went well.
///
/// ```
/// # use plimsoll_qmp::Backoff;
/// let mut backoff = Backoff::new();
/// assert_eq!(backoff.next_delay().as_millis(), 250);
/// assert_eq!(backoff.next_delay().as_millis(), 500);
/// backoff.succeeded();
/// assert_eq!(backoff.next_delay().as_millis(), 250);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    next: Duration,
    failures: u32,
}

impl Backoff {
    /// The first delay.
    pub const FIRST: Duration = Duration::from_millis(250);
    /// The longest delay.
    pub const LONGEST: Duration = Duration::from_secs(30);

    /// Starts with the shortest delay.
    #[must_use]
    pub const fn new() -> Self {
        Self { next: Self::FIRST, failures: 0 }
    }

    /// An attempt failed: how long to wait before the next one.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(Self::LONGEST);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// An attempt succeeded: the next failure waits the shortest delay again.
    pub fn succeeded(&mut self) {
        *self = Self::new();
    }

    /// Attempts that failed since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_double_up_to_the_longest_and_start_over_on_success(outcomes in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut backoff = Backoff::new();
            let mut failures_in_a_row = 0u32;
            for ok in outcomes {
                if ok {
                    backoff.succeeded();
                    failures_in_a_row = 0;
                } else {
                    let want = Backoff::FIRST.saturating_mul(2u32.saturating_pow(failures_in_a_row)).min(Backoff::LONGEST);
                    prop_assert_eq!(backoff.next_delay(), want);
                    failures_in_a_row += 1;
                }
                prop_assert_eq!(backoff.failures(), failures_in_a_row);
            }
        }
    }
}
