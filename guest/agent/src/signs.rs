//! Names of what is seen; [`crate::distress`] says when each is.

use std::fmt;
use std::ops::BitOr;

/// A set of signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signs(u16);

impl Signs {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const LOW: Self = Self(1);
    pub(crate) const FALLING: Self = Self(1 << 1);
    pub(crate) const COMMITTED: Self = Self(1 << 2);
    pub(crate) const SWAPPING: Self = Self(1 << 3);
    pub(crate) const STALLS: Self = Self(1 << 4);
    pub(crate) const REFAULTS: Self = Self(1 << 5);
    pub(crate) const OOM_KILL: Self = Self(1 << 6);
    pub(crate) const PRESSURE: Self = Self(1 << 7);
    pub(crate) const RELIEVED: Self = Self(1 << 8);

    const NAMES: [(Self, &'static str); 9] = [
        (Self::LOW, "low"),
        (Self::FALLING, "falling"),
        (Self::COMMITTED, "committed"),
        (Self::SWAPPING, "swapping"),
        (Self::STALLS, "stalls"),
        (Self::REFAULTS, "refaults"),
        (Self::OOM_KILL, "oom-kill"),
        (Self::PRESSURE, "pressure"),
        (Self::RELIEVED, "relieved"),
    ];

    /// Whether these are among them.
    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are not among these.
    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// This sign, if so.
    pub(crate) const fn when(self, so: bool) -> Self {
        if so { self } else { Self::NONE }
    }
}

impl BitOr for Signs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The names, separated by commas.
impl fmt::Display for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Self::NAMES.iter().filter(|(sign, _)| self.has(*sign)).map(|(_, name)| *name).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod test {
    use super::Signs;

    #[test]
    fn a_set_is_named_by_its_members() {
        let all = Signs::NAMES.iter().fold(Signs::NONE, |all, (sign, _)| all | *sign);
        assert_eq!(
            all.to_string(),
            "low,falling,committed,swapping,stalls,refaults,oom-kill,pressure,relieved"
        );
        assert_eq!(all.without(all), Signs::NONE);
        assert!(!all.without(Signs::LOW).has(Signs::LOW));
        assert_eq!(Signs::NONE.to_string(), "");
    }
}
