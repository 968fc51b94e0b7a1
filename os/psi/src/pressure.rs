//! Readings.

use std::{fs, io, path::Path};

use plimsoll_units::Ppm;

use crate::PsiError;

/// The host's memory pressure.
pub const HOST_MEMORY: &str = "/proc/pressure/memory";

/// A pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited at once. `None` where the kernel does not tell (CPU pressure before Linux 5.13).
    pub full: Option<Stall>,
}

/// How long was waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// Share of the last 10 s, averaged.
    pub avg10: Ppm,
    /// Share of the last 60 s, averaged.
    pub avg60: Ppm,
    /// Share of the last 300 s, averaged.
    pub avg300: Ppm,
    /// Microseconds since boot, or since the group was made.
    pub total_us: u64,
}

/// Reads a pressure file: [`HOST_MEMORY`], or a group's `memory.pressure`.
pub fn read(path: &Path) -> Result<Pressure, PsiError> {
    let text = fs::read_to_string(path).map_err(|source| match is_absent(&source) {
        true => PsiError::Absent { path: path.to_path_buf() },
        false => PsiError::Read { path: path.to_path_buf(), source },
    })?;
    Pressure::parse(&text).ok_or_else(|| PsiError::Parse {
        path: path.to_path_buf(),
        seen: text.trim().chars().take(60).collect(),
    })
}

/// No such file; or a file of a kernel whose PSI is switched off (EOPNOTSUPP).
pub(crate) fn is_absent(source: &io::Error) -> bool {
    const EOPNOTSUPP: i32 = 95;
    source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(EOPNOTSUPP)
}

impl Pressure {
    /// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`.
    fn parse(text: &str) -> Option<Self> {
        let (mut some, mut full) = (None, None);
        for line in text.lines() {
            match line.split_once(' ')? {
                ("some", rest) => some = Some(Stall::parse(rest)?),
                ("full", rest) => full = Some(Stall::parse(rest)?),
                _ => {}
            }
        }
        Some(Self { some: some?, full })
    }
}

impl Stall {
    fn parse(text: &str) -> Option<Self> {
        let (mut avg10, mut avg60, mut avg300, mut total_us) = (None, None, None, None);
        for field in text.split_whitespace() {
            match field.split_once('=')? {
                ("avg10", share) => avg10 = Some(percent(share)?),
                ("avg60", share) => avg60 = Some(percent(share)?),
                ("avg300", share) => avg300 = Some(percent(share)?),
                ("total", n) => total_us = Some(n.parse().ok()?),
                _ => {}
            }
        }
        Some(Self { avg10: avg10?, avg60: avg60?, avg300: avg300?, total_us: total_us? })
    }
}

/// A percentage with two digits after the point.
fn percent(text: &str) -> Option<Ppm> {
    let (whole, hundredths) = text.split_once('.')?;
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if hundredths.len() != 2 || !digits(hundredths) || !digits(whole) {
        return None;
    }
    let (whole, hundredths): (u32, u32) = (whole.parse().ok()?, hundredths.parse().ok()?);
    let hundredths = whole.checked_mul(100)?.checked_add(hundredths)?;
    Some(Ppm(hundredths.checked_mul(100)?))
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_the_kernel_writes_it() {
        let text = "some avg10=2.35 avg60=0.42 avg300=0.08 total=425832\nfull avg10=0.18 avg60=0.03 avg300=100.00 total=106029\n";
        let some = Stall { avg10: Ppm(23_500), avg60: Ppm(4200), avg300: Ppm(800), total_us: 425_832 };
        let full = Stall { avg10: Ppm(1800), avg60: Ppm(300), avg300: Ppm::ONE, total_us: 106_029 };
        assert_eq!(Pressure::parse(text), Some(Pressure { some, full: Some(full) }));
        let without_full = text.lines().next().unwrap();
        assert_eq!(Pressure::parse(without_full), Some(Pressure { some, full: None }));
    }

    #[test]
    fn what_is_missing_is_not_made_up() {
        for text in [
            "",
            "some",
            "some avg10=0.00 avg60=0.00 total=1",
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=0",
            "some avg10=x avg60=0.00 avg300=0.00 total=0",
            "some avg10=+1.00 avg60=0.00 avg300=0.00 total=0",
        ] {
            assert_eq!(Pressure::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(some |full |avg10=|avg60=|avg300=|total=|[0-9.]{0,12}|\n|.){0,40}") {
            let _ = Pressure::parse(&text);
        }

        #[test]
        fn every_share_is_exact(hundredths in 0u32..=10_000) {
            let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            prop_assert_eq!(percent(&text), Some(Ppm(hundredths * 100)));
        }
    }
}
