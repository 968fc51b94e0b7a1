//! A limit on how much may happen per second.

/// A token bucket: `per_second` tokens come in each second, at most `most` are kept. Counted in thousandths, so that
/// a look every millisecond loses nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    per_second: u32,
    most: u32,
    milli_tokens: u64,
    at_ms: Option<u64>,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(per_second: u32, most: u32) -> Self {
        Self { per_second, most, milli_tokens: milli(most), at_ms: None }
    }

    /// Puts in what has come since the last look. A clock that goes backwards brings nothing.
    pub(crate) fn refill(&mut self, now_ms: u64) {
        let elapsed = now_ms.saturating_sub(self.at_ms.unwrap_or(now_ms));
        let come = elapsed.saturating_mul(u64::from(self.per_second));
        self.milli_tokens = self.milli_tokens.saturating_add(come).min(milli(self.most));
        self.at_ms = Some(now_ms.max(self.at_ms.unwrap_or(now_ms)));
    }

    /// Whole tokens there are.
    pub(crate) fn tokens(&self) -> u32 {
        u32::try_from(self.milli_tokens.checked_div(1000).unwrap_or(0)).unwrap_or(u32::MAX)
    }

    /// Takes `n` tokens, or as many as there are.
    pub(crate) fn take(&mut self, n: u32) {
        self.milli_tokens = self.milli_tokens.saturating_sub(milli(n));
    }

    /// Milliseconds until there are `n` tokens, if no more than `most`.
    pub(crate) fn wait_ms(&self, n: u32) -> u64 {
        let missing = milli(n.min(self.most)).saturating_sub(self.milli_tokens);
        missing.div_ceil(u64::from(self.per_second.max(1)))
    }
}

const fn milli(tokens: u32) -> u64 {
    // A u32 times a thousand fits.
    (tokens as u64).saturating_mul(1000)
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_fills_at_its_rate_and_runs_over() {
        let mut bucket = Bucket::new(20, 40);
        bucket.refill(5000);
        bucket.take(40);
        assert_eq!((bucket.tokens(), bucket.wait_ms(1), bucket.wait_ms(100)), (0, 50, 2000));
        for ms in 5001..5100 {
            bucket.refill(ms);
        }
        assert_eq!((bucket.tokens(), bucket.wait_ms(2)), (1, 1));
        bucket.refill(100_000);
        assert_eq!(bucket.tokens(), 40);
        bucket.refill(7);
        bucket.take(40);
        bucket.refill(99_999);
        assert_eq!(bucket.tokens(), 0, "a clock that goes backwards brings nothing");
    }

    proptest! {
        #[test]
        fn no_second_gives_more_than_the_rate_and_what_was_kept(looks in prop::collection::vec((0u64..300, 0u32..100), 1..200)) {
            let mut bucket = Bucket::new(20, 40);
            let (mut now, mut taken) = (0, 0u64);
            for (step, wanted) in looks {
                now += step;
                bucket.refill(now);
                let n = wanted.min(bucket.tokens());
                bucket.take(n);
                taken += u64::from(n);
            }
            prop_assert!(taken <= 40 + now * 20 / 1000);
        }
    }
}
