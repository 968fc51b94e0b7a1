//! The clock behind `MonoTime`.

use plimsoll_units::MonoTime;
use rustix::time::{ClockId, clock_gettime};

/// The time since boot, suspended time included (CLOCK_BOOTTIME, clock_gettime(2)).
#[must_use]
pub fn now() -> MonoTime {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is ever negative on this clock; a nanosecond field is below 10^9.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    MonoTime(seconds.saturating_mul(1_000_000).saturating_add(nanos / 1000))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn it_goes_on_and_agrees_with_uptime() {
        let before = now();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let after = now();
        let uptime_s: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let in_between = |t: MonoTime| std::time::Duration::from_micros(t.0).as_secs_f64();
        // /proc/uptime is cut to hundredths.
        assert!(
            in_between(before) - 0.011 <= uptime_s && uptime_s <= in_between(after),
            "{before:?} {uptime} {after:?}"
        );
    }
}
