//! What was done in each second.

use std::time::{Duration, Instant};

/// Counts, and tells somebody once a second how much was counted in it.
pub(crate) struct Ticker<'a> {
    tell: &'a mut dyn FnMut(u64),
    since: Instant,
    counted: u64,
    unread: u32,
}

/// How many small counts may go by between two looks at the clock.
const CLOCK_EVERY: u32 = 16;

impl<'a> Ticker<'a> {
    /// Begins a second.
    pub(crate) fn new(tell: &'a mut dyn FnMut(u64)) -> Self {
        Self { tell, since: Instant::now(), counted: 0, unread: 0 }
    }

    /// Counts `more`; 0 is worth calling too, so that idle seconds are told of.
    pub(crate) fn count(&mut self, more: u64) {
        self.counted += more;
        self.unread += 1;
        if more == 1 && self.unread < CLOCK_EVERY {
            return;
        }
        self.unread = 0;
        self.tell_whole_seconds(self.since.elapsed());
    }

    fn tell_whole_seconds(&mut self, elapsed: Duration) {
        if elapsed < Duration::from_secs(1) {
            return;
        }
        (self.tell)(self.counted);
        self.counted = 0;
        self.since += elapsed;
    }
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use super::Ticker;

    #[test]
    fn a_second_is_told_once_and_counting_begins_anew() {
        let mut told = Vec::new();
        let mut tell = |count| told.push(count);
        let mut ticker = Ticker::new(&mut tell);
        ticker.counted = 7;
        ticker.tell_whole_seconds(Duration::from_millis(999));
        ticker.tell_whole_seconds(Duration::from_millis(1001));
        ticker.counted = 2;
        ticker.tell_whole_seconds(Duration::from_millis(1500));
        assert_eq!(told, [7, 2]);
    }
}
