//! What counts as being short of memory, and how often that is told.
//!
//! | sign | when |
//! | --- | --- |
//! | `low` | available is below a thirty-second of the total, at least 4 MiB: the margin |
//! | `falling` | available fell by 4 MiB or more in a quarter of a second, and at that rate reaches the margin within two intervals (4 s at most) |
//! | `committed` | what programs were promised rose by a thirty-second of the total, at least 8 MiB, since the last report |
//! | `swapping` | 32 pages or more went to or came from swap in a quarter of a second |
//! | `stalls` | an allocation had to reclaim, and available is below eight margins |
//! | `refaults` | 64 pages or more were read again soon after they were given up, or 64 faults had to read, in a quarter of a second, and available is below eight margins |
//! | `oom-kill` | a process was ended for want of memory |
//! | `pressure` | the kernel's PSI trigger fired, and available is below eight margins |
//! | `relieved` | none of these any more, or available rose by an eighth of the total since the last report |
//!
//! With plenty available, stalls, faults and pressure have other causes: a program starting, a control group at its
//! own limit. So above sixteen margins the counters are not even read out of turn. They are in the regular reports
//! all the same.
//!
//! The host keeps memory ready for a guest that was short when it last spoke; that it no longer is, is told at once too,
//! for others may be waiting for it.
//!
//! A new sign is told at once, but never twice within 100 ms; signs that last are repeated every 200 ms, and, when
//! they have lasted 5 s, every second.

use std::collections::VecDeque;

use plimsoll_model::AgentStats;
use plimsoll_units::Bytes;

use crate::signs::Signs;

/// The least margin.
const LEAST_MARGIN: Bytes = Bytes::mib(4);
/// The margin is the total divided by this. Half of the share at which the arbiter calls it distress: the total is what
/// the guest was told of, and what it holds is often half of that.
const MARGIN_PART: u64 = 32;
/// So many margins are the limit of what counts as scarce.
const SCARCE: u64 = 8;
/// The span of time in which things are counted.
const WINDOW_MS: u64 = 250;
/// More looks than a window holds are not kept.
const MOST_LOOKS: usize = 8;
/// A fall below this is noise.
const LEAST_FALL: Bytes = Bytes::mib(4);
/// The longest time ahead that a fall is looked at.
const FARTHEST_MS: u64 = 4000;
/// A rise of promises below this is noise.
const LEAST_RISE: Bytes = Bytes::mib(8);
/// A rise of promises counts from the total divided by this.
const RISE_PART: u64 = 32;
/// A rise of what is available counts from the total divided by this.
const RELIEF_PART: u64 = 8;
/// Pages to and from swap in a window.
const SWAP_PAGES: u64 = 32;
/// Pages or faults in a window.
const REFAULTS: u64 = 64;

/// The least and the most time between two looks.
pub(crate) const LOOK_MS: std::ops::RangeInclusive<u64> = 100..=250;
/// Looks at a guest in which nothing happens lie at least so far apart, however little is left in it.
const QUIET_MS: u64 = 200;
/// In such a guest what is available moves by less than this in a window.
const QUIET: Bytes = Bytes::mib(1);
/// No guest is expected to fill its memory faster than this in a second.
const FASTEST_FILL: Bytes = Bytes::mib(200);

/// Between two urgent reports lies at least this.
const LEAST_GAP_MS: u64 = 100;
/// A sign that lasts is told again after this.
const REPEAT_MS: u64 = 200;
/// After this it has lasted long.
const LONG_MS: u64 = 5000;
/// A sign that has lasted long is told again after this.
const LONG_REPEAT_MS: u64 = 1000;

/// Sees signs in what is looked at, and knows when to tell.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The latest looks, oldest first: those of the last window, and one before.
    recent: VecDeque<(u64, AgentStats)>,
    /// `Committed_AS` of the last report.
    committed: Option<Bytes>,
    /// What was available by the last report.
    available: Option<Bytes>,
    /// The signs that were told last are over, and that has not been told.
    over: bool,
    /// The last urgent report and its signs.
    told: Option<(u64, Signs)>,
    /// Since when there have been signs in every look.
    since: Option<u64>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            recent: VecDeque::with_capacity(MOST_LOOKS),
            committed: None,
            available: None,
            over: false,
            told: None,
            since: None,
        }
    }

    /// The signs at a look. `pressure`: the kernel's trigger fired since the last one.
    pub(crate) fn look(
        &mut self,
        now_ms: u64,
        stats: &AgentStats,
        interval_ms: u32,
        pressure: bool,
    ) -> Signs {
        // What is older than a window goes, unless it is the only one to compare with.
        while self.recent.len() >= MOST_LOOKS
            || self.recent.get(1).is_some_and(|(at, _)| now_ms.saturating_sub(*at) >= WINDOW_MS)
        {
            self.recent.pop_front();
        }
        let margin = margin(stats);
        let signs = Signs::LOW.when(stats.available.is_some_and(|available| available < margin))
            | Signs::COMMITTED.when(self.promises_rose(stats))
            | Signs::PRESSURE.when(pressure && is_scarce(stats))
            | self.changes(now_ms, stats, interval_ms);
        self.recent.push_back((now_ms, *stats));
        if signs != Signs::NONE {
            self.since = self.since.or(Some(now_ms));
            return signs;
        }
        self.since = None;
        if let Some((_, told)) = &mut self.told {
            self.over |= std::mem::replace(told, Signs::NONE) != Signs::NONE;
        }
        Signs::RELIEVED.when(self.over || self.has_risen(stats))
    }

    /// Whether the counters of `/proc/vmstat` are wanted: memory is scarce, or may be at the next look, or was in this
    /// window. With more available, none of them is a reason for haste, and reading them costs most of a look.
    pub(crate) fn wants_counters(&self, stats: &AgentStats) -> bool {
        may_become_scarce(stats) || self.recent.iter().any(|(_, stats)| may_become_scarce(stats))
    }

    /// When to look again, in milliseconds: before programs could have used up what is left, as far as the bounds allow.
    /// Looking costs little, but dozens of guests on a host that look ten times a second cost some.
    pub(crate) fn pause_ms(&self, stats: &AgentStats) -> u64 {
        let least = if self.is_quiet() { QUIET_MS } else { *LOOK_MS.start() };
        let left = stats.available.unwrap_or_default().minus(margin(stats));
        left.scale(1000, FASTEST_FILL.0).0.clamp(least, *LOOK_MS.end())
    }

    /// Whether what is available has hardly moved in this window.
    fn is_quiet(&self) -> bool {
        let seen = || self.recent.iter().filter_map(|(_, stats)| stats.available);
        let (Some(least), Some(most)) = (seen().min(), seen().max()) else { return false };
        self.since.is_none() && self.recent.len() > 1 && most.minus(least) < QUIET
    }

    /// Whether the signs are to be told now.
    pub(crate) fn is_due(&self, now_ms: u64, signs: Signs) -> bool {
        if signs == Signs::NONE {
            return false;
        }
        let Some((at, told)) = self.told else { return true };
        let lasted = self.since.map_or(0, |since| now_ms.saturating_sub(since));
        let gap = match signs.without(told) {
            Signs::NONE if lasted >= LONG_MS => LONG_REPEAT_MS,
            Signs::NONE => REPEAT_MS,
            _ => LEAST_GAP_MS,
        };
        now_ms.saturating_sub(at) >= gap
    }

    /// A report was sent; an urgent one when there were signs.
    pub(crate) fn reported(&mut self, now_ms: u64, stats: &AgentStats, signs: Signs) {
        (self.committed, self.available, self.over) = (stats.committed, stats.available, false);
        if signs != Signs::NONE {
            self.told = Some((now_ms, signs.without(Signs::RELIEVED)));
        }
    }

    fn has_risen(&self, stats: &AgentStats) -> bool {
        let (Some(before), Some(now)) = (self.available, stats.available) else { return false };
        let least = Bytes(stats.total.unwrap_or_default().0 / RELIEF_PART).max(LEAST_RISE);
        now.minus(before) >= least
    }

    fn promises_rose(&self, stats: &AgentStats) -> bool {
        let (Some(before), Some(now)) = (self.committed, stats.committed) else { return false };
        let least = Bytes(stats.total.unwrap_or_default().0 / RISE_PART).max(LEAST_RISE);
        now.minus(before) >= least
    }

    /// What has changed since the beginning of the window.
    fn changes(&self, now_ms: u64, stats: &AgentStats, interval_ms: u32) -> Signs {
        let Some((at, before)) = self.recent.front() else { return Signs::NONE };
        // What was not read, then or now, has not risen.
        let rise = |of: fn(&AgentStats) -> Option<u64>| match (of(before), of(stats)) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => 0,
        };
        let elapsed_ms = now_ms.saturating_sub(*at).max(1);
        // After a look that came late more has happened than in a window.
        let at_least = |n: u64, limit: u64| n >= limit.saturating_mul(elapsed_ms.max(WINDOW_MS)) / WINDOW_MS;
        let swapped = rise(|stats| stats.swap_in).saturating_add(rise(|stats| stats.swap_out));
        let faults = rise(|stats| stats.refaults).max(rise(|stats| stats.major_faults));
        let scarce = is_scarce(stats);
        Signs::FALLING.when(falls_fast(before, stats, elapsed_ms, interval_ms))
            | Signs::SWAPPING.when(at_least(swapped, SWAP_PAGES))
            | Signs::STALLS.when(scarce && rise(|stats| stats.alloc_stalls) > 0)
            | Signs::REFAULTS.when(scarce && at_least(faults, REFAULTS))
            | Signs::OOM_KILL.when(rise(|stats| stats.oom_kills) > 0)
    }
}

fn may_become_scarce(stats: &AgentStats) -> bool {
    stats.available.is_none_or(|available| available.0 < margin(stats).0.saturating_mul(2 * SCARCE))
}

fn margin(stats: &AgentStats) -> Bytes {
    Bytes(stats.total.unwrap_or_default().0 / MARGIN_PART).max(LEAST_MARGIN)
}

fn is_scarce(stats: &AgentStats) -> bool {
    let limit = margin(stats).0.saturating_mul(SCARCE);
    stats.available.is_some_and(|available| available.0 < limit)
}

/// Whether available memory, falling on as it fell, reaches the margin soon.
fn falls_fast(before: &AgentStats, now: &AgentStats, elapsed_ms: u64, interval_ms: u32) -> bool {
    let (Some(was), Some(is)) = (before.available, now.available) else { return false };
    let fall = was.minus(is);
    if fall < LEAST_FALL {
        return false;
    }
    let ahead_ms = u64::from(interval_ms).saturating_mul(2).min(FARTHEST_MS);
    let distance = is.minus(margin(now));
    // distance / (fall / elapsed) <= ahead, without dividing.
    u128::from(distance.0) * u128::from(elapsed_ms) <= u128::from(fall.0) * u128::from(ahead_ms)
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn with(total_mib: u64, available_mib: u64) -> AgentStats {
        AgentStats {
            total: Some(Bytes::mib(total_mib)),
            available: Some(Bytes::mib(available_mib)),
            committed: Some(Bytes::mib(10)),
            swap_in: Some(1000),
            swap_out: Some(1000),
            refaults: Some(5000),
            major_faults: Some(5000),
            alloc_stalls: Some(7),
            oom_kills: Some(1),
            ..AgentStats::default()
        }
    }

    /// Signs of `then`, looked at 100 ms after `before`.
    fn after(before: AgentStats, then: AgentStats) -> Signs {
        let mut watch = Watch::new();
        watch.reported(0, &before, Signs::NONE);
        watch.look(0, &before, 1000, false);
        watch.look(100, &then, 1000, false)
    }

    #[test]
    fn low_is_below_a_thirty_second_but_never_below_4_mib() {
        for (total, available, low) in
            [(1024, 32, false), (1024, 31, true), (96, 4, false), (96, 3, true), (64, 3, true)]
        {
            let signs = Watch::new().look(0, &with(total, available), 1000, false);
            assert_eq!(signs.has(Signs::LOW), low, "{available} of {total}");
        }
    }

    #[test]
    fn with_little_left_it_looks_more_often() {
        let pause = |looks: &[u64]| {
            let mut watch = Watch::new();
            let last = looks.iter().enumerate().map(|(n, available)| {
                let stats = with(1024, *available);
                watch.look(u64::try_from(n).unwrap() * 100, &stats, 60_000, false);
                watch.pause_ms(&stats)
            });
            last.last().unwrap()
        };
        assert_eq!(pause(&[900]), 250);
        assert_eq!(pause(&[900, 32 + 40]), 200);
        assert_eq!(pause(&[900, 42]), 100);
        assert_eq!(pause(&[42, 42]), 200, "nothing happens in it");
        assert_eq!(pause(&[10, 10]), 100, "it is short");
        assert_eq!(Watch::new().pause_ms(&AgentStats::default()), 100);
    }

    #[test]
    fn a_fall_counts_when_it_reaches_the_margin_within_two_intervals() {
        // 20 MiB in 100 ms: 400 MiB in two intervals, and the margin is 32.
        assert_eq!(after(with(1024, 432 + 20), with(1024, 432)), Signs::FALLING);
        assert_eq!(after(with(1024, 433 + 20), with(1024, 433)), Signs::NONE);
        assert_eq!(after(with(1024, 73), with(1024, 70)), Signs::NONE, "3 MiB are noise");
    }

    #[test]
    fn a_long_interval_does_not_make_every_fall_urgent() {
        let mut watch = Watch::new();
        watch.look(0, &with(4096, 2005), 60_000, false);
        assert_eq!(watch.look(100, &with(4096, 2000), 60_000, false), Signs::NONE);
    }

    #[test]
    fn promises_are_compared_with_the_last_report() {
        let committed = |mib| AgentStats { committed: Some(Bytes::mib(mib)), ..with(512, 256) };
        let mut watch = Watch::new();
        watch.reported(0, &committed(100), Signs::NONE);
        assert_eq!(watch.look(100, &committed(115), 1000, false), Signs::NONE);
        assert_eq!(watch.look(200, &committed(116), 1000, false), Signs::COMMITTED);
        assert_eq!(watch.look(900, &committed(116), 1000, false), Signs::COMMITTED);
        watch.reported(900, &committed(116), Signs::COMMITTED);
        assert_eq!(watch.look(1000, &committed(116), 1000, false), Signs::RELIEVED);
        watch.reported(1000, &committed(116), Signs::RELIEVED);
        assert_eq!(watch.look(1100, &committed(116), 1000, false), Signs::NONE);
    }

    #[test]
    fn counters_count_by_their_rise() {
        let plenty = with(1024, 900);
        let scarce = with(1024, 200);
        let swap = |stats| AgentStats { swap_in: Some(1016), swap_out: Some(1016), ..stats };
        assert_eq!(after(plenty, swap(plenty)), Signs::SWAPPING);
        assert_eq!(after(plenty, AgentStats { swap_out: Some(1031), ..plenty }), Signs::NONE);
        assert_eq!(after(plenty, AgentStats { oom_kills: Some(2), ..plenty }), Signs::OOM_KILL);
        for (stats, signs) in [(plenty, Signs::NONE), (scarce, Signs::STALLS)] {
            assert_eq!(after(stats, AgentStats { alloc_stalls: Some(8), ..stats }), signs);
        }
        for (stats, signs) in [(plenty, Signs::NONE), (scarce, Signs::REFAULTS)] {
            assert_eq!(after(stats, AgentStats { refaults: Some(5064), ..stats }), signs);
            assert_eq!(after(stats, AgentStats { major_faults: Some(5064), ..stats }), signs);
        }
    }

    #[test]
    fn counters_that_were_not_read_have_not_risen() {
        let unread = AgentStats {
            total: Some(Bytes::mib(1024)),
            available: Some(Bytes::mib(600)),
            ..AgentStats::default()
        };
        assert_eq!(after(unread, with(1024, 598)), Signs::NONE);
        assert_eq!(after(with(1024, 600), unread), Signs::NONE);
    }

    #[test]
    fn counters_are_wanted_while_memory_is_scarce_and_shortly_after() {
        let (scarce, plenty) = (with(1024, 511), with(1024, 512));
        let mut watch = Watch::new();
        assert!(watch.wants_counters(&scarce) && !watch.wants_counters(&plenty));
        watch.look(0, &scarce, 1000, false);
        assert!(watch.wants_counters(&plenty), "a program may just have been killed");
        for now_ms in [100, 200, 300, 400] {
            watch.look(now_ms, &plenty, 1000, false);
        }
        assert!(!watch.wants_counters(&plenty));
    }

    #[test]
    fn pressure_counts_while_memory_is_scarce() {
        assert_eq!(Watch::new().look(0, &with(1024, 900), 1000, true), Signs::NONE);
        assert_eq!(Watch::new().look(0, &with(1024, 200), 1000, true), Signs::PRESSURE);
    }

    #[test]
    fn a_late_look_allows_for_its_lateness() {
        let mut watch = Watch::new();
        let stats = with(1024, 900);
        watch.look(0, &stats, 1000, false);
        let trickle = AgentStats { swap_in: Some(1100), ..stats };
        assert_eq!(watch.look(1000, &trickle, 1000, false), Signs::NONE, "100 pages in a second");
        let more = AgentStats { swap_in: Some(1100 + 128), ..stats };
        assert_eq!(watch.look(2000, &more, 1000, false), Signs::SWAPPING, "128 pages in a second");
    }

    /// When urgent reports go out, if each of the looks, 50 ms apart, has the signs.
    fn told(looks: impl IntoIterator<Item = AgentStats>) -> Vec<u64> {
        let mut watch = Watch::new();
        let mut told = Vec::new();
        for (n, stats) in (0..).zip(looks) {
            let now_ms = n * 50;
            let signs = watch.look(now_ms, &stats, 1000, false);
            if watch.is_due(now_ms, signs) {
                told.push(now_ms);
                watch.reported(now_ms, &stats, signs);
            }
        }
        told
    }

    #[test]
    fn what_lasts_is_repeated_and_in_the_end_rarely() {
        let times = told(std::iter::repeat_n(with(1024, 10), 200));
        assert_eq!(times[..3], [0, 200, 400]);
        assert_eq!(times.iter().filter(|at| **at < 5000).count(), 25);
        assert_eq!(times[25..], [5800, 6800, 7800, 8800, 9800]);
    }

    #[test]
    fn a_new_sign_does_not_wait_for_the_repetition() {
        let low = with(1024, 10);
        let killed = AgentStats { oom_kills: Some(2), ..low };
        assert_eq!(told([low, low, low, killed, killed]), [0, 150]);
        assert_eq!(told([low, killed, killed]), [0, 100]);
    }

    #[test]
    fn a_sign_that_comes_back_is_told_at_once() {
        let (low, plenty) = (with(1024, 10), with(1024, 900));
        assert_eq!(told([low, plenty, low, low]), [0, 100]);
    }

    #[test]
    fn the_end_of_a_want_is_told_once_and_so_is_memory_that_came_free() {
        let (low, well, freed) = (with(1024, 10), with(1024, 100), with(1024, 100 + 128));
        assert_eq!(told([low, low, low, well, well, well]), [0, 150]);
        assert_eq!(told([low, well, well, well, well]), [0, 100]);
        assert_eq!(told([low, low, low, well, well, freed, freed]), [0, 150, 250]);
        let mut watch = Watch::new();
        watch.reported(0, &low, Signs::NONE);
        assert_eq!(watch.look(50, &freed, 1000, false), Signs::RELIEVED);
    }

    proptest! {
        #[test]
        fn any_numbers_are_survived_and_never_more_than_ten_a_second_told(
            looks in prop::collection::vec((0u64..400, prop::array::uniform8(any::<Option<u64>>()), any::<bool>()), 1..100),
        ) {
            let mut watch = Watch::new();
            let (mut now_ms, mut told) = (0, Vec::new());
            for (step, [total, available, committed, swap_in, refaults, stalls, kills, free], pressure) in looks {
                now_ms += step;
                let bytes = |value: Option<u64>| value.map(Bytes);
                let stats = AgentStats {
                    total: bytes(total), available: bytes(available), committed: bytes(committed), free: bytes(free),
                    swap_in, refaults, alloc_stalls: stalls, oom_kills: kills, ..AgentStats::default()
                };
                let signs = watch.look(now_ms, &stats, 1000, pressure);
                if watch.is_due(now_ms, signs) {
                    watch.reported(now_ms, &stats, signs);
                    told.push(now_ms);
                }
            }
            prop_assert!(told.windows(2).all(|pair| pair[1] - pair[0] >= LEAST_GAP_MS));
            prop_assert!(watch.recent.len() <= MOST_LOOKS);
        }

        #[test]
        fn a_quiet_guest_says_nothing_out_of_turn(available in 513u64..1024, wobble in 0u64..2) {
            let looks = (0..200).map(|n| with(1024, available + (n % 2) * wobble));
            prop_assert_eq!(told(looks), Vec::<u64>::new());
        }
    }
}
