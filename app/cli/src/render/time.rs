//! Moments and durations, as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads `30s`, `500ms`, `1.5m`, `2h`; a number alone is seconds. At most a day.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit_ms = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        other => return Err(format!("`{other}` is no unit of time; write for example 500ms, 30s or 2m")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
    let millis = || {
        let whole: u64 = whole.parse().ok()?;
        let part = match digits {
            0 => 0,
            1..=9 => fraction.parse::<u64>().ok()?.checked_mul(unit_ms)? / 10u64.pow(digits),
            _ => return None,
        };
        whole.checked_mul(unit_ms)?.checked_add(part)
    };
    let millis =
        millis().ok_or_else(|| format!("`{trimmed}` is no duration; write for example 500ms, 30s or 2m"))?;
    if millis > 86_400_000 {
        return Err(format!("`{trimmed}` is more than a day"));
    }
    Ok(Duration::from_millis(millis))
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// `2026-11-21T11:24:36Z`.
pub(crate) fn utc(wall_us: u64) -> String {
    let seconds = wall_us / 1_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of year 0, so that leap days come last; 719,468 days lie between. An era is the
    // 400 years after which the calendar repeats: 146,097 days.
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// `0.4 s`, `12 s`, `3 min`, `5 h`, `2 days`: rounded down.
pub(crate) fn span(millis: u64) -> String {
    match millis / 1000 {
        0..10 => format!("{}.{} s", millis / 1000, millis / 100 % 10),
        s @ 10..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// `12 s ago`; a moment to come is `just now`.
pub(crate) fn ago(wall_us: u64, now_us: u64) -> String {
    match now_us.checked_sub(wall_us) {
        Some(us) if us >= 1_000_000 => format!("{} ago", span(us / 1000)),
        _ => "just now".to_string(),
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_260_276_000_000), "2026-11-21T11:24:36Z");
        assert_eq!(utc(4_107_542_399_999_999), "2100-02-28T23:59:59Z");
    }

    #[test]
    fn durations_as_people_write_them() {
        let ms = |text: &str| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("30s"), Ok(30_000));
        assert_eq!(ms("30"), Ok(30_000));
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("1.5 m"), Ok(90_000));
        assert_eq!(ms("0"), Ok(0));
        for bad in ["", "s", "1x", "-1s", "1e3", "25h", "1..2s", "99999999999999999999s", "1.0000000001s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_keep_two_digits_or_so() {
        assert_eq!(span(450), "0.4 s");
        assert_eq!(span(12_999), "12 s");
        assert_eq!(span(180_000), "3 min");
        assert_eq!(span(7_200_000), "2 h");
        assert_eq!(span(864_000_000), "10 days");
        assert_eq!(ago(5_000_000, 17_000_000), "12 s ago");
        assert_eq!(ago(5_000_000, 1), "just now");
    }

    proptest! {
        #[test]
        fn days_follow_one_another(day in 0u64..1_000_000) {
            let (today, tomorrow) = (civil(day), civil(day + 1));
            let next = [(today.0, today.1, today.2 + 1), (today.0, today.1 + 1, 1), (today.0 + 1, 1, 1)];
            prop_assert!(next.contains(&tomorrow));
            prop_assert!(tomorrow.2 <= 31 && tomorrow.1 <= 12);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,30}") {
            if let Ok(duration) = parse_duration(&text) {
                prop_assert!(duration <= Duration::from_secs(86_400));
            }
        }
    }
}
