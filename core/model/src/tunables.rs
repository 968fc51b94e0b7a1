//! What an administrator can change of a VM's self-ballooning while it runs.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};

use serde::{Deserialize, Serialize};

/// Self-ballooning and self-shrinking settings of one VM, by the names of the original (Magenheimer's v3 of
/// June 2011, `/sys/devices/system/xen_memory/xen_memory0/`), and the two refinements merged after it.
///
/// Numbers are at least 1 where nothing else is said: the original ignored a 0 in silence, here it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tunables {
    /// Whether the VM proposes a target of its own, from what its programs were promised.
    pub selfballooning: bool,
    /// Seconds between two steps down. Up it goes as soon as it is seen.
    pub selfballoon_interval: u64,
    /// A step down is this part of the way to the goal: 8 means an eighth.
    pub selfballoon_downhysteresis: u64,
    /// A step up is this part of the way to the goal: 1 means all of it.
    pub selfballoon_uphysteresis: u64,
    /// Whether pages that rest in the swap store are brought back while nothing happens.
    pub frontswap_selfshrinking: bool,
    /// Each quiet interval brings back this part of the pages: 20 means 5 %.
    pub frontswap_hysteresis: u64,
    /// Quiet intervals before the first shrink.
    pub frontswap_inertia: u64,
    /// The least that is left to the guest, in MiB; 0 (the default) computes it from the guest's size.
    pub min_usable_mb: u64,
    /// Kept free in the guest beyond what was promised to programs, in MiB; by default 10 % of `maxmem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_mb: Option<u64>,
}

impl Default for Tunables {
    /// The original's defaults; both switches off, which is right where there is no swap store to push into.
    fn default() -> Self {
        Self {
            selfballooning: false,
            selfballoon_interval: 5,
            selfballoon_downhysteresis: 8,
            selfballoon_uphysteresis: 1,
            frontswap_selfshrinking: false,
            frontswap_hysteresis: 20,
            frontswap_inertia: 3,
            min_usable_mb: 0,
            reserved_mb: None,
        }
    }
}

/// Why a setting was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunableError {
    /// No such name.
    #[error("`{0}` is no setting; there are {names}", names = Tunables::NAMES.join(", "))]
    Unknown(String),
    /// Not a switch's value.
    #[error("{0}={1}: a switch is `on` or `off`")]
    NoSwitch(&'static str, String),
    /// Not a number.
    #[error(
        "{0}={1} is no number; it is a whole number, as in 5, with K, M or G for 2^10, 2^20, 2^30 if wanted"
    )]
    NoNumber(&'static str, String),
    /// A number that nothing can be divided by, or no interval.
    #[error("{0}=0 is refused: it is at least 1")]
    Zero(&'static str),
    /// A number too large to mean anything.
    #[error("{0}={1} is too large; it is at most {2}")]
    TooLarge(&'static str, u64, u64),
}

impl Tunables {
    /// The names that [`Tunables::set`] takes.
    pub const NAMES: [&'static str; 9] = [
        "selfballooning",
        "selfballoon_interval",
        "selfballoon_downhysteresis",
        "selfballoon_uphysteresis",
        "frontswap_selfshrinking",
        "frontswap_hysteresis",
        "frontswap_inertia",
        "min_usable_mb",
        "reserved_mb",
    ];

    /// The longest interval, in seconds: a day.
    pub const INTERVAL_MOST: u64 = 86_400;

    /// The largest number for everything else: 2^24, as many MiB as the largest balloon can count.
    pub const NUMBER_MOST: u64 = 1 << 24;

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Changes one setting, given as people write it. `reserved_mb=auto` goes back to the default.
    ///
    /// # Errors
    /// Says what is wrong with the name or the value; nothing is changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), TunableError> {
        let number = |name, least| number(name, value, least);
        match name {
            "selfballooning" => self.selfballooning = switch("selfballooning", value)?,
            "selfballoon_interval" => {
                let seconds = number("selfballoon_interval", 1)?;
                if seconds > Self::INTERVAL_MOST {
                    let most = Self::INTERVAL_MOST;
                    return Err(TunableError::TooLarge("selfballoon_interval", seconds, most));
                }
                self.selfballoon_interval = seconds;
            }
            "selfballoon_downhysteresis" => {
                self.selfballoon_downhysteresis = number("selfballoon_downhysteresis", 1)?;
            }
            "selfballoon_uphysteresis" => {
                self.selfballoon_uphysteresis = number("selfballoon_uphysteresis", 1)?;
            }
            "frontswap_selfshrinking" => {
                self.frontswap_selfshrinking = switch("frontswap_selfshrinking", value)?;
            }
            "frontswap_hysteresis" => self.frontswap_hysteresis = number("frontswap_hysteresis", 1)?,
            "frontswap_inertia" => self.frontswap_inertia = number("frontswap_inertia", 1)?,
            "min_usable_mb" => self.min_usable_mb = number("min_usable_mb", 0)?,
            "reserved_mb" if value == "auto" => self.reserved_mb = None,
            "reserved_mb" => self.reserved_mb = Some(number("reserved_mb", 0)?),
            _ => return Err(TunableError::Unknown(name.to_owned())),
        }
        Ok(())
    }

    /// A setting's value as [`Tunables::set`] takes it; `None` for a name that is none.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        Some(match name {
            "selfballooning" => switch(self.selfballooning),
            "selfballoon_interval" => self.selfballoon_interval.to_string(),
            "selfballoon_downhysteresis" => self.selfballoon_downhysteresis.to_string(),
            "selfballoon_uphysteresis" => self.selfballoon_uphysteresis.to_string(),
            "frontswap_selfshrinking" => switch(self.frontswap_selfshrinking),
            "frontswap_hysteresis" => self.frontswap_hysteresis.to_string(),
            "frontswap_inertia" => self.frontswap_inertia.to_string(),
            "min_usable_mb" => self.min_usable_mb.to_string(),
            "reserved_mb" => self.reserved_mb.map_or_else(|| "auto".to_owned(), |mb| mb.to_string()),
            _ => return None,
        })
    }
}

fn switch(name: &'static str, value: &str) -> Result<bool, TunableError> {
    match value {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => Err(TunableError::NoSwitch(name, value.to_owned())),
    }
}

fn number(name: &'static str, value: &str, least: u64) -> Result<u64, TunableError> {
    let no_number = || TunableError::NoNumber(name, value.to_owned());
    let (digits, shift) = match value.char_indices().last() {
        Some((at, 'k' | 'K')) => (value.get(..at), 10),
        Some((at, 'm' | 'M')) => (value.get(..at), 20),
        Some((at, 'g' | 'G')) => (value.get(..at), 30),
        _ => (Some(value), 0),
    };
    let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit())).ok_or_else(no_number)?;
    let count: u64 = digits.parse().map_err(|_| no_number())?;
    let count =
        count.checked_shl(shift).filter(|n| n.checked_shr(shift) == Some(count)).ok_or_else(no_number)?;
    if count < least {
        return Err(TunableError::Zero(name));
    }
    if count > Tunables::NUMBER_MOST {
        return Err(TunableError::TooLarge(name, count, Tunables::NUMBER_MOST));
    }
    Ok(count)
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_name_can_be_set_and_read_back() {
        for name in Tunables::NAMES {
            let mut tunables = Tunables::default();
            let value = if name.ends_with("ing") { "on" } else { "7" };
            tunables.set(name, value).unwrap();
            assert_eq!(tunables.get(name).as_deref(), Some(value));
            assert!(!tunables.is_default(), "{name}");
        }
        assert_eq!(Tunables::default().get("colour"), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_changes_nothing() {
        for (name, value, word) in [
            ("selfballoon_interval", "0", "at least 1"),
            ("selfballoon_interval", "1G", "at most"),
            ("selfballoon_interval", "-5", "whole number"),
            ("selfballoon_interval", "5s", "whole number"),
            ("selfballoon_interval", "", "whole number"),
            ("selfballoon_interval", "K", "whole number"),
            ("selfballoon_downhysteresis", "0", "at least 1"),
            ("selfballoon_uphysteresis", "0K", "at least 1"),
            ("frontswap_hysteresis", "18446744073709551615G", "whole number"),
            ("frontswap_inertia", "0", "at least 1"),
            ("selfballooning", "2", "`on` or `off`"),
            ("selfbalooning", "on", "there are selfballooning"),
        ] {
            let mut tunables = Tunables::default();
            let error = tunables.set(name, value).unwrap_err().to_string();
            assert!(error.contains(word), "{name}={value}: {error}");
            assert!(tunables.is_default());
        }
    }

    #[test]
    fn suffixes_and_the_two_that_may_be_nothing() {
        let mut tunables = Tunables::default();
        tunables.set("min_usable_mb", "1K").unwrap();
        assert_eq!(tunables.min_usable_mb, 1024);
        tunables.set("min_usable_mb", "0").unwrap();
        tunables.set("reserved_mb", "0").unwrap();
        assert_eq!(tunables.reserved_mb, Some(0));
        tunables.set("reserved_mb", "auto").unwrap();
        assert!(tunables.is_default());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(name in prop::sample::select(&Tunables::NAMES[..]), value: String) {
            let _ = Tunables::default().set(name, &value);
        }
    }
}
