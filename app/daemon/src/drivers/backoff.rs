//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// Delays that double from `first` to `longest`.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// It went well: the next failure waits the shortest delay again.
    pub(crate) const fn succeeded(&mut self) {
        self.next = self.first;
    }

    /// The delay after one more failure.
    pub(crate) fn failed(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.longest);
        delay
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn delays_double_to_the_longest_and_start_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(500));
        let delays: Vec<_> = (0..4).map(|_| backoff.failed()).collect();
        assert_eq!(delays, [ms(100), ms(200), ms(400), ms(500)]);
        backoff.succeeded();
        assert_eq!(backoff.failed(), ms(100));
    }
}
