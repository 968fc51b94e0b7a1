//! Durations and shares as people write them.

use std::time::Duration;

use plimsoll_units::Ppm;

/// Units of time from long to short, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads `250ms`, `1s`, `5m`, `2h`, `1d`: a whole number and a unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let wrong = || format!("`{trimmed}` is no time; write for example \"250ms\", \"1s\", \"5m\" or \"2h\"");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
    number.checked_mul(*millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// Writes a duration so that [`parse_duration`] reads the same one; parts of a millisecond are dropped.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let exact = UNITS.iter().find(|(_, unit)| millis >= *unit && millis.is_multiple_of(*unit));
    let (name, unit) = exact.unwrap_or(&("s", 1000));
    format!("{}{name}", millis / unit)
}

/// Reads `12.5%` with up to four digits after the point, 0 to 100.
pub(crate) fn parse_share(text: &str) -> Result<Ppm, String> {
    let trimmed = text.trim();
    let wrong = || {
        format!(
            "`{trimmed}` is no share; write for example \"12.5%\", 0% to 100%, at most 4 digits after the point"
        )
    };
    let number = trimmed.strip_suffix('%').ok_or_else(wrong)?.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 4 || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let parts: u32 = format!("{fraction:0<4}").parse().map_err(|_| wrong())?;
    let ppm = whole.checked_mul(10_000).and_then(|p| p.checked_add(parts)).ok_or_else(wrong)?;
    if ppm > Ppm::ONE.0 { Err(wrong()) } else { Ok(Ppm(ppm)) }
}

/// Writes a share so that [`parse_share`] reads the same one.
pub(crate) fn show_share(share: Ppm) -> String {
    let (whole, parts) = (share.0 / 10_000, share.0 % 10_000);
    let fraction = format!("{parts:04}");
    match fraction.trim_end_matches('0') {
        "" => format!("{whole}%"),
        digits => format!("{whole}.{digits}%"),
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        for (text, millis) in [("250ms", 250), ("1s", 1000), ("5m", 300_000), ("2 h", 7_200_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "1 week", "99999999999999999999s", "18446744073709551615d"]
        {
            parse_duration(text).unwrap_err();
        }
    }

    #[test]
    fn shares_as_people_write_them() {
        assert_eq!(parse_share("12.5%"), Ok(Ppm(125_000)));
        assert_eq!(parse_share("0.0001 %"), Ok(Ppm(1)));
        assert_eq!(parse_share("100%"), Ok(Ppm::ONE));
        for text in ["", "%", "5", "100.0001%", "-1%", "1.00001%", "1.%%", "4294967296%", "+1%", "1.+1%"] {
            parse_share(text).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read_back(millis in 0u64..1 << 50, ppm in 0u32..=1_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_share(&show_share(Ppm(ppm))), Ok(Ppm(ppm)));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,20}") {
            let _ = parse_duration(&text);
            let _ = parse_share(&text);
        }
    }
}
