//! Waiting for a state, never for a time.

use std::time::{Duration, Instant};

/// A state did not come in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("waited {:.1} s for {what}; last seen: {seen}", waited.as_secs_f64())]
pub struct WaitError {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub waited: Duration,
    /// The last state seen.
    pub seen: String,
}

/// Looks again and again until `look` has it, at most for `limit`.
///
/// `look` answers `Ok` with what was waited for, or `Err` with the state it sees instead, in words.
/// It is asked at once, then after pauses that grow from 1 to 50 ms, and a last time when the time is up.
///
/// # Errors
/// [`WaitError`] with the last state, when the time is up.
///
/// ```
/// use std::time::Duration;
/// use plimsoll_testbed::wait::poll_until;
///
/// let mut n = 0;
/// let found = poll_until(Duration::from_secs(1), "n to be 3", || {
///     n += 1;
///     if n == 3 { Ok(n) } else { Err(format!("n is {n}")) }
/// });
/// assert_eq!(found, Ok(3));
/// ```
pub fn poll_until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, WaitError> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let late = begin.elapsed() >= limit;
        let seen = match look() {
            Ok(found) => return Ok(found),
            Err(seen) => seen,
        };
        if late {
            return Err(WaitError { what: what.to_owned(), waited: begin.elapsed(), seen });
        }
        std::thread::sleep(pause.min(limit.saturating_sub(begin.elapsed())));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use super::poll_until;

    #[test]
    fn the_error_says_what_how_long_and_what_was_seen_last() {
        let mut looks = 0;
        let error = poll_until::<()>(Duration::from_millis(20), "the tide", || {
            looks += 1;
            Err(format!("look {looks}"))
        })
        .expect_err("it never comes");
        assert!(looks >= 2, "{looks}");
        assert_eq!(error.seen, format!("look {looks}"));
        assert!(error.to_string().starts_with("waited 0.0 s for the tide; last seen: look "), "{error}");
    }

    #[test]
    fn without_time_there_is_one_look() {
        assert_eq!(poll_until(Duration::ZERO, "it", || Ok::<_, String>(1)), Ok(1));
    }
}
