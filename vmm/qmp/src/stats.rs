//! The guest's statistics, as QEMU's balloon device keeps them.

use std::{borrow::Cow, fmt};

use plimsoll_model::GuestStats;
use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The property `guest-stats` of QEMU's balloon device (QEMU's `docs/interop/virtio-balloon-stats.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// When the guest last sent any: seconds since 1970 by the host's wall clock. `None`: never, so either the
    /// polling interval is not set or the guest has no driver.
    pub last_update_s: Option<u64>,
    /// The guest's word. Any number is possible.
    pub stats: GuestStats,
}

/// The tag of each name, by `balloon_stat_names` in QEMU's `hw/virtio/virtio-balloon.c`: ten of them in 7.2,
/// sixteen from 9.2 on.
const NAMES: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
];

/// The property as QEMU writes it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RawStats<'a> {
    stats: StatsMap,
    #[serde(borrow)]
    last_update: &'a RawValue,
}

impl From<RawStats<'_>> for BalloonStats {
    fn from(raw: RawStats<'_>) -> Self {
        let last_update_s = raw.last_update.get().parse().ok().filter(|s| *s != 0);
        Self { last_update_s, stats: raw.stats.0 }
    }
}

struct StatsMap(GuestStats);

impl<'de> Deserialize<'de> for StatsMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StatsVisitor)
    }
}

struct StatsVisitor;

impl<'de> Visitor<'de> for StatsVisitor {
    type Value = StatsMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of statistics")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<StatsMap, M::Error> {
        let mut stats = GuestStats::default();
        while let Some((name, value)) = map.next_entry::<Name<'de>, &RawValue>()? {
            let tag = (0u16..).zip(NAMES).find(|(_, known)| *known == name.0);
            if let (Some((tag, _)), Some(value)) = (tag, known_number(value)) {
                stats.set_tag(tag, value);
            }
        }
        Ok(StatsMap(stats))
    }
}

/// A name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Unknown is 2^64-1 from QEMU 2.10 on and -1 before; whatever else is no 64-bit number is unknown as well.
fn known_number(value: &RawValue) -> Option<u64> {
    value.get().parse().ok().filter(|n| *n != u64::MAX)
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<BalloonStats, serde_json::Error> {
        serde_json::from_str::<RawStats<'_>>(text).map(BalloonStats::from)
    }

    #[test]
    fn before_the_first_update_everything_is_unknown() {
        let text = r#"{"stats": {"stat-htlb-pgalloc": 18446744073709551615, "stat-swap-out": -1}, "last-update": 0}"#;
        assert_eq!(read(text).unwrap(), BalloonStats::default());
    }

    #[test]
    fn all_names_land_in_their_own_field() {
        let fields: Vec<String> =
            NAMES.iter().zip(100..).map(|(name, n)| format!("\"{name}\": {n}")).collect();
        let text = format!("{{\"stats\": {{{}}}, \"last-update\": 1795260309}}", fields.join(","));
        let got = read(&text).unwrap();
        assert_eq!(got.last_update_s, Some(1_795_260_309));
        let mut want = GuestStats::default();
        (0u16..16).zip(100..).for_each(|(tag, n)| want.set_tag(tag, n));
        assert_eq!(got.stats, want);
        assert_eq!(got.stats.available, Some(Bytes(106)));
        assert_eq!(got.stats.direct_reclaim, Some(Bytes(115)));
    }

    #[test]
    fn what_is_no_number_is_unknown() {
        let text = r#"{"stats": {"stat-swap-in": "7", "stat-swap-out": 1e30, "stat-free-memory": 18446744073709551616,
            "stat-total-memory": null, "stat-major-faults": [1], "stat-minor-faults": {}, "stat-new": 3, "stat-disk-caches": 5},
            "last-update": -3}"#;
        let got = read(text).unwrap();
        assert_eq!(got.stats, GuestStats { caches: Some(Bytes(5)), ..GuestStats::default() });
        assert_eq!(got.last_update_s, None);
    }

    #[test]
    fn missing_parts_are_errors() {
        for text in
            [r#"{"last-update": 0}"#, r#"{"stats": {}}"#, r#"{"stats": [], "last-update": 1}"#, "7", "{}"]
        {
            read(text).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_numbers_are_taken_as_they_are(values in prop::collection::vec(any::<u64>(), 16), update in any::<i64>()) {
            let fields: Vec<String> = NAMES.iter().zip(&values).map(|(name, n)| format!("\"{name}\": {n}")).collect();
            let got = read(&format!("{{\"stats\": {{{}}}, \"last-update\": {update}}}", fields.join(","))).unwrap();
            let mut want = GuestStats::default();
            (0u16..).zip(&values).filter(|(_, n)| **n != u64::MAX).for_each(|(tag, n)| want.set_tag(tag, *n));
            prop_assert_eq!(got.stats, want);
            prop_assert_eq!(got.last_update_s, u64::try_from(update).ok().filter(|s| *s != 0));
        }
    }
}
