//! What the arbiter can be told.

use plimsoll_model::Source;
use plimsoll_units::{Bytes, Ppm};
use serde::{Deserialize, Serialize};

/// The arbiter's constants. All have defaults that need no change; each says what it trades.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// A guest with less than this share of what it holds still available is in distress. Higher: earlier
    /// help, more memory idle. Default 1/16, between Linux' own high watermark (under 1 %) and the 10 to
    /// 25 % at which other managers already act.
    pub distress_share: Ppm,
    /// The same as an amount, for small guests; never more than a quarter of what the guest holds.
    pub distress_least: Bytes,
    /// The same amount for a guest whose agent speaks: it tells within a third of a second that memory gets short, where
    /// statistics come once a second. Twice Linux' own low watermark of a guest of 1 GiB.
    pub agent_least: Bytes,
    /// What a guest is left above what it uses when it is asked to give: a share of what it uses. More than
    /// twice `distress-share`, so that giving never causes distress by itself.
    pub headroom_share: Ppm,
    /// Bytes a second swapped in or out by a guest above which it is in distress.
    pub guest_swap_rate: Bytes,
    /// Allocation stalls a second in a guest above which it is in distress.
    pub guest_stall_rate: u64,
    /// Share of the time in which tasks in a guest wait for memory (its PSI, from the agent) above which it is in
    /// distress. 20 %: beyond the 15 % of the kernel's own example of a trigger, since a guest that reads much
    /// waits a little at all times.
    pub guest_stall: Ppm,
    /// A guest that will have used up what it has within this time, in milliseconds, at the pace at which it grows, is
    /// in distress; and it is given what it will use in that time, but no more than half of what it holds at once, ...
    pub demand_ahead_ms: u64,
    /// ... but at least this share of what it holds, so that it need not ask again at once. If it does, twice and four
    /// times that: who is held back shows no growth.
    pub demand_least: Ppm,
    /// A guest that waits in its pager is given this share of what it may have on top of that, ...
    pub exhausted_share: Ppm,
    /// ... and this much at least. Both are doubled each time it waits again. Higher: a guest that touches all its
    /// memory is there sooner, and holds more that it may never need.
    pub exhausted_least: Bytes,
    /// Page cache that was read again after it was given up counts as needed; this share of it is forgotten each
    /// second. 1/32: a half-life of 22 s, longer than a program's usual pause.
    pub cache_fade: Ppm,
    /// A guest stays in distress this long after the last sign of it, in milliseconds.
    pub distress_quiet_ms: u64,
    /// Statistics older than this say nothing, in milliseconds.
    pub stats_max_age_ms: u64,
    /// The agent's word is good for this long, in milliseconds: three ticks. After that a guest is judged by its
    /// balloon's statistics.
    pub agent_max_age_ms: u64,
    /// Share of what an idle guest holds above its baseline and its need that goes back each second.
    /// 1/8: a half-life of 5 s. Higher: memory is free sooner for others, and fetched back more often.
    pub idle_share: Ppm,
    /// A guest that was in distress within this time, in milliseconds, is not taken for idle unless half of what it holds is
    /// available: what looks idle is on its way to being used. Others who lack memory are given it all the same.
    pub idle_after_ms: u64,
    /// With more than this share of the budget free, idle guests give back at an eighth of that pace: nobody waits for it,
    /// and what looks idle is page cache that may be read again.
    pub plenty_share: Ppm,
    /// Share of the way back up to the baseline (or up to the need) that is gone each second.
    pub relax_share: Ppm,
    /// Share of the budget that relaxing leaves free for whoever comes into distress next.
    pub slack_share: Ppm,
    /// Share of the time in which something on the host waited for memory above which the host is short, once
    /// less than four times its low mark is available (with plenty available a stall has another cause, such as a
    /// program at its own cgroup's limit). 10 %: the kernel's own example of a trigger is 15 % (`some 150000
    /// 1000000`, Documentation/accounting/psi.rst).
    pub host_stall: Ppm,
    /// Share of the budget freed each second while the host stalls though it is still above its low mark.
    pub stall_step: Ppm,
    /// Moves smaller than this are not worth a guest's while.
    pub least_move: Bytes,
    /// A guest is judged by how far it moved in this time, in milliseconds.
    pub stuck_window_ms: u64,
    /// Bytes a second below which a guest that was asked to move counts as stuck. By rate: one page a
    /// second is not progress (a known fault of earlier managers).
    pub stuck_rate: Bytes,
    /// A stuck guest is asked again after this long, in milliseconds, doubled each time it is stuck again.
    pub stuck_retry_ms: u64,
    /// The longest it is left alone, in milliseconds.
    pub stuck_retry_most_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            distress_share: Ppm(62_500),
            distress_least: Bytes::mib(12),
            agent_least: Bytes::mib(4),
            headroom_share: Ppm(166_667),
            guest_swap_rate: Bytes::mib(1),
            guest_stall_rate: 16,
            guest_stall: Ppm(200_000),
            demand_ahead_ms: 3_000,
            demand_least: Ppm(125_000),
            exhausted_share: Ppm(125_000),
            exhausted_least: Bytes::mib(8),
            cache_fade: Ppm(31_250),
            distress_quiet_ms: 3_000,
            stats_max_age_ms: 5_000,
            agent_max_age_ms: 3_000,
            idle_share: Ppm(125_000),
            idle_after_ms: 10_000,
            plenty_share: Ppm(125_000),
            relax_share: Ppm(125_000),
            slack_share: Ppm(62_500),
            host_stall: Ppm(100_000),
            stall_step: Ppm(15_625),
            least_move: Bytes::mib(1),
            stuck_window_ms: 4_000,
            stuck_rate: Bytes::mib(1),
            stuck_retry_ms: 10_000,
            stuck_retry_most_ms: 300_000,
        }
    }
}

impl Config {
    /// The margin below which a guest that holds `actual` is in distress.
    #[must_use]
    pub fn distress_margin(&self, source: Source, actual: Bytes) -> Bytes {
        self.distress_share.of(actual).max(self.least(source)).min(Bytes(actual.0 / 4))
    }

    /// What a guest that uses `used` needs in all, in whole pages.
    #[must_use]
    pub fn need(&self, source: Source, used: Bytes) -> Bytes {
        let least = self.least(source);
        let headroom = self.headroom_share.of(used).max(least.plus(least));
        used.plus(headroom).pages_ceil().bytes()
    }

    /// The least margin, by how soon a guest is heard.
    const fn least(&self, source: Source) -> Bytes {
        match source {
            Source::Agent => self.agent_least,
            Source::Device | Source::Nobody => self.distress_least,
        }
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What keeps the arbiter from causing the distress that it then answers.
        #[test]
        fn a_guest_left_with_its_need_is_not_in_distress(used in 0u64..1 << 45) {
            let config = Config::default();
            for source in [Source::Agent, Source::Device] {
                let need = config.need(source, Bytes(used));
                prop_assert!(need.minus(Bytes(used)) > config.distress_margin(source, need));
            }
        }
    }
}
