//! A limit, or none.

use std::fmt;

use plimsoll_units::Bytes;

/// How much memory or swap a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// No more than this. The kernel rounds down to whole pages.
    Bytes(Bytes),
    /// As much as there is.
    Max,
}

impl Limit {
    /// The number, if there is a limit.
    #[must_use]
    pub const fn bytes(self) -> Option<Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Max => None,
        }
    }

    /// Version 1 has a number for "no limit": the largest 64-bit count of whole pages (`PAGE_COUNTER_MAX`), which
    /// depends on the page size. No host has half of it.
    const V1_NO_LIMIT: u64 = 1 << 62;

    pub(crate) fn parse_v1(text: &str) -> Option<Self> {
        let bytes: u64 = text.trim().parse().ok()?;
        Some(if bytes >= Self::V1_NO_LIMIT { Self::Max } else { Self::Bytes(Bytes(bytes)) })
    }

    pub(crate) fn parse_v2(text: &str) -> Option<Self> {
        match text.trim() {
            "max" => Some(Self::Max),
            number => number.parse().ok().map(|bytes| Self::Bytes(Bytes(bytes))),
        }
    }

    pub(crate) fn text_v1(self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.0.to_string(),
            Self::Max => "-1".to_owned(),
        }
    }

    pub(crate) fn text_v2(self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.0.to_string(),
            Self::Max => "max".to_owned(),
        }
    }

    /// Both together: version 1's limit of memory plus swap.
    pub(crate) const fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Bytes(a), Self::Bytes(b)) => Self::Bytes(a.plus(b)),
            _ => Self::Max,
        }
    }

    /// What of this sum is left beside `other`: swap alone, from version 1's sum.
    pub(crate) const fn minus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Bytes(a), Self::Bytes(b)) => Self::Bytes(a.minus(b)),
            (Self::Bytes(_), Self::Max) => Self::Bytes(Bytes::ZERO),
            (Self::Max, _) => Self::Max,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Max => f.pad("max"),
        }
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_limit_as_each_version_writes_it() {
        assert_eq!(Limit::parse_v1("9223372036854771712\n"), Some(Limit::Max));
        assert_eq!(Limit::parse_v2("max\n"), Some(Limit::Max));
        assert_eq!(Limit::parse_v1("max"), None);
        assert_eq!(Limit::parse_v2("-1"), None);
        assert!(Limit::Bytes(Bytes(u64::MAX)) < Limit::Max);
    }

    proptest! {
        #[test]
        fn limits_read_back_as_written(bytes in 0..Limit::V1_NO_LIMIT) {
            let limit = Limit::Bytes(Bytes(bytes));
            prop_assert_eq!(Limit::parse_v1(&limit.text_v1()), Some(limit));
            prop_assert_eq!(Limit::parse_v2(&limit.text_v2()), Some(limit));
        }

        #[test]
        fn swap_alone_comes_back_from_the_sum(memory in 0..Limit::V1_NO_LIMIT, swap in 0..Limit::V1_NO_LIMIT) {
            let (memory, swap) = (Limit::Bytes(Bytes(memory)), Limit::Bytes(Bytes(swap)));
            prop_assert_eq!(memory.plus(swap).minus(memory), swap);
            prop_assert_eq!(memory.plus(Limit::Max).minus(memory), Limit::Max);
        }

        #[test]
        fn garbage_is_no_limit_and_no_panic(text in ".{0,30}") {
            let _ = (Limit::parse_v1(&text), Limit::parse_v2(&text));
        }
    }
}
