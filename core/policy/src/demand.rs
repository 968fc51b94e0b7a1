//! What a guest needs, from what it says of itself; and the signs of distress in that.
//!
//! Two speak for a guest: its balloon driver (statistics, about once a second) and the agent inside it, if there is
//! one. The agent is heard first: it knows more, and speaks at once when memory gets short. Neither is believed
//! beyond what the host can bound, and an agent that says what cannot be is not heard at all.
//!
//! Whether a guest is idle is measured, not assumed: it needs what it uses (what it holds less what is available
//! in it, when it said so), a margin, and as much of its page cache as it has lately been seen to read again after
//! it was given up (refaults, from the agent). The rest is spare.

use plimsoll_model::{AgentStats, GuestStats, Signal, Source};
use plimsoll_units::{Bytes, MonoTime, PAGE_SIZE, Ppm};
use serde::{Deserialize, Serialize};

use crate::assess::Vm;
use crate::config::Config;

/// What a guest used when it last said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    /// When that was.
    pub(crate) at: MonoTime,
    /// What it held then less what was available in it then. What was available is out of date as soon as the
    /// balloon moves; what is used is not.
    pub(crate) bytes: Bytes,
    /// The most it can have been: while the balloon moves nobody knows what the guest held when it spoke.
    pub(crate) most: Bytes,
    /// By how much it rose in a second, at least.
    pub(crate) slope: Bytes,
}

/// More than this can be promised to no programs: 2^52 bytes are all that x86-64 can address physically. Less may be
/// true however much it is; overcommit knows no bounds.
const MOST_COMMITTED: Bytes = Bytes(1 << 52);

/// An agent is given up after so many ticks without a word, if its last one is old by then.
const PATIENT_TICKS: u32 = 3;

/// Growth below this, in a second, is slow enough for the margin.
const GROWING: Bytes = Bytes::mib(2);

/// No guest is given more at once than this share of what it holds, however fast it grew between two reports.
const MOST_AT_ONCE: Ppm = Ppm(500_000);

/// What a guest is given at least is doubled so often at most: from an eighth of what it holds to half of that.
const MOST_DOUBLINGS: u32 = 2;

/// Reports closer together than this say nothing about a rate, in milliseconds.
const SLOPE_MS: u64 = 20;

impl Used {
    /// `actual` is what the guest holds now, `last` what it held at the tick before; it spoke between the two.
    fn next(before: Option<Self>, at: MonoTime, available: Bytes, actual: Bytes, last: Bytes) -> Self {
        let bytes = actual.minus(available);
        let (least, most) = (actual.min(last).minus(available), actual.max(last).minus(available));
        let Some(before) = before else { return Self { at, bytes, most, slope: Bytes::ZERO } };
        let millis = at.millis_since(before.at);
        if millis < SLOPE_MS {
            return Self { at: before.at, bytes, most, slope: before.slope };
        }
        Self { at, bytes, most, slope: least.minus(before.most).scale(1000, millis) }
    }
}

/// An agent's report in one piece, or `None` where it cannot be true of a guest that was told of `maxmem`.
pub(crate) fn plausible(stats: &AgentStats, maxmem: Bytes) -> Option<Believed> {
    let total = stats.total.filter(|total| *total > Bytes::ZERO && *total <= maxmem)?;
    let available = stats.available.or(stats.free)?;
    let within = |part: Option<Bytes>, whole: Bytes| part.is_none_or(|part| part <= whole);
    let parts = [stats.available, stats.free, stats.cached, stats.anon, stats.reserve];
    let swap = stats.swap_total.unwrap_or(Bytes(u64::MAX));
    let absurd = stats.committed.is_some_and(|committed| committed > MOST_COMMITTED);
    let consistent =
        !absurd && parts.iter().all(|part| within(*part, total)) && within(stats.swap_free, swap);
    consistent.then_some(Believed { total, available, cached: stats.cached.unwrap_or(Bytes::ZERO) })
}

/// What is taken over from a plausible report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Believed {
    pub(crate) total: Bytes,
    available: Bytes,
    cached: Bytes,
}

impl Vm<'_> {
    /// Takes in what is fresh, the agent's word before the balloon's statistics.
    pub(crate) fn read(&mut self, now: MonoTime, config: &Config) {
        self.note_silence();
        // A host that was stalled for a while has missed reports itself; that is no silence of the agent's.
        let patient = self.history.unheard < PATIENT_TICKS;
        let agent = self
            .sample
            .agent
            .filter(|a| patient || now.millis_since(a.at) <= config.agent_max_age_ms)
            .and_then(|a| plausible(&a.stats, self.sample.sizes.maxmem()).map(|b| (a.at, a.stats, b)));
        let device = self.sample.stats.filter(|s| now.millis_since(s.at) <= config.stats_max_age_ms);
        if let Some((at, stats, believed)) = agent {
            self.source = Source::Agent;
            self.read_agent(now, at, &stats, believed, config);
        } else if let Some(device) = device {
            self.source = Source::Device;
            self.history.agent = None;
            self.history.cache = Bytes::ZERO;
            self.read_device(now, device.at, &device.stats, config);
        } else {
            self.history.agent = None;
        }
        if self.source != Source::Nobody
            && let Some(used) = self.history.used
        {
            self.available = self.sample.actual.0.minus(used.bytes);
            self.need = Some(config.need(self.source, used.bytes).plus(self.history.cache));
        }
    }

    /// Counts the ticks since the agent last said anything.
    fn note_silence(&mut self) {
        let spoke = self.sample.agent.map(|a| a.at);
        let news = spoke > self.history.heard;
        self.history.unheard = if news { 0 } else { self.history.unheard.saturating_add(1) };
        self.history.heard = spoke.max(self.history.heard);
    }

    fn read_device(&mut self, now: MonoTime, at: MonoTime, stats: &GuestStats, config: &Config) {
        let new = self.history.stats.is_none_or(|(last, _)| last < at);
        if let Some(available) = stats.available.or(stats.free)
            && (new || self.history.used.is_none())
        {
            self.note_used(at, available);
        }
        if let Some((last_at, last)) = self.history.stats.filter(|(last, _)| *last < at)
            && let Some(signal) = device_rates(&last, stats, at.millis_since(last_at), config)
        {
            self.history.distress = Some((now, signal));
        }
        if new {
            self.history.stats = Some((at, *stats));
        }
    }

    fn read_agent(
        &mut self,
        now: MonoTime,
        at: MonoTime,
        stats: &AgentStats,
        believed: Believed,
        config: &Config,
    ) {
        let last = self.history.agent;
        if last.is_some_and(|(last, _)| last >= at) && self.history.used.is_some() {
            return;
        }
        self.fresh = true;
        self.note_used(at, believed.available);
        self.history.agent = Some((at, *stats));
        // Device statistics of before this report must not be read later as if they were new.
        self.history.stats = self.sample.stats.map(|s| (s.at, s.stats)).or(self.history.stats);
        let Some((last_at, last)) = last else { return };
        let millis = at.millis_since(last_at);
        if let Some(signal) = agent_rates(&last, stats, millis, config) {
            self.history.distress = Some((now, signal));
        }
        // What was read again soon after it was given up is wanted; what has not been for a while is not any more.
        let again = risen(last.refaults, stats.refaults).saturating_mul(PAGE_SIZE);
        let faded = config.cache_fade.of(self.history.cache).scale(millis.min(10_000), 1000);
        let most = believed.cached.plus(Bytes(again)).min(believed.total);
        self.refaulted = Bytes(again);
        self.history.cache = self.history.cache.minus(faded).plus(Bytes(again)).min(most);
    }

    fn note_used(&mut self, at: MonoTime, available: Bytes) {
        let (actual, last) = (self.sample.actual.0, self.history.actual);
        self.history.used = Some(Used::next(self.history.used, at, available, actual, last));
    }

    /// Whether a guest that its agent measures will have used up what it has before it can be helped otherwise.
    pub(crate) fn grows_out(&self, config: &Config) -> bool {
        let slope = self.history.used.map_or(Bytes::ZERO, |used| used.slope);
        slope >= GROWING && slope.scale(config.demand_ahead_ms, 1000) > self.available
    }

    /// What a guest in distress should have: what it will use at the pace at which it is growing, and never little
    /// enough that it must ask again at once. All it was told of where nobody measures it that closely.
    pub(crate) fn wanted(&self, config: &Config) -> Bytes {
        if let Some(stall) = self.stall {
            return stall.want;
        }
        let maxmem = self.sample.sizes.maxmem();
        let (Source::Agent, Some(need), Some(used)) = (self.source, self.need, self.history.used) else {
            return maxmem;
        };
        if self.signal == Some(Signal::OomKill) {
            return maxmem;
        }
        let ahead = used.slope.scale(config.demand_ahead_ms, 1000);
        // A guest that is held back shows no slope. If it still pleads, what it was given was too little: give twice that.
        let doublings = self.history.pleas.saturating_sub(1).min(MOST_DOUBLINGS);
        let least = config.demand_least.of(self.sample.actual.0).scale(1 << doublings, 1);
        let growth = ahead.min(MOST_AT_ONCE.of(self.sample.actual.0)).max(least);
        used.bytes.plus(growth).max(need).pages_ceil().bytes().min(maxmem)
    }
}

/// How far a counter rose. One that fell (a reboot) says nothing.
fn risen(last: Option<u64>, fresh: Option<u64>) -> u64 {
    fresh.zip(last).map_or(0, |(fresh, last)| fresh.saturating_sub(last))
}

/// Counters from which distress can be read.
struct Rises {
    oom_kills: u64,
    swapped: Bytes,
    stalls: u64,
    /// Microseconds in which something waited for memory.
    stalled_us: u64,
}

impl Rises {
    fn signal(&self, millis: u64, config: &Config) -> Option<Signal> {
        let share = u128::from(self.stalled_us).saturating_mul(1000);
        let allowed_us = u128::from(config.guest_stall.0).saturating_mul(u128::from(millis));
        if self.oom_kills > 0 {
            Some(Signal::OomKill)
        } else if self.swapped > config.guest_swap_rate.scale(millis, 1000) {
            Some(Signal::Swap)
        } else if self.stalls > Bytes(config.guest_stall_rate).scale(millis, 1000).0 {
            Some(Signal::Stall)
        } else {
            (millis > 0 && share > allowed_us).then_some(Signal::Pressure)
        }
    }
}

/// Distress that shows in how fast the balloon driver's counters rise.
fn device_rates(last: &GuestStats, fresh: &GuestStats, millis: u64, config: &Config) -> Option<Signal> {
    let bytes = |b: Option<Bytes>| b.map(|b| b.0);
    let swapped = risen(bytes(last.swap_in), bytes(fresh.swap_in))
        .saturating_add(risen(bytes(last.swap_out), bytes(fresh.swap_out)));
    let rises = Rises {
        oom_kills: risen(last.oom_kills, fresh.oom_kills),
        swapped: Bytes(swapped),
        stalls: risen(last.alloc_stalls, fresh.alloc_stalls),
        stalled_us: 0,
    };
    rises.signal(millis, config)
}

/// Distress that shows in how fast the agent's counters rise.
fn agent_rates(last: &AgentStats, fresh: &AgentStats, millis: u64, config: &Config) -> Option<Signal> {
    let pages = risen(last.swap_in, fresh.swap_in).saturating_add(risen(last.swap_out, fresh.swap_out));
    let stalled =
        last.psi.zip(fresh.psi).map_or(0, |(last, fresh)| fresh.some_us.saturating_sub(last.some_us));
    let rises = Rises {
        oom_kills: risen(last.oom_kills, fresh.oom_kills),
        swapped: Bytes(pages.saturating_mul(PAGE_SIZE)),
        stalls: risen(last.alloc_stalls, fresh.alloc_stalls),
        stalled_us: stalled,
    };
    rises.signal(millis, config)
}

#[cfg(test)]
mod test {
    use super::*;

    const M: fn(u64) -> Bytes = Bytes::mib;

    #[test]
    fn what_cannot_be_is_not_believed() {
        let honest = AgentStats {
            total: Some(M(480)),
            free: Some(M(10)),
            available: Some(M(100)),
            cached: Some(M(90)),
            anon: Some(M(200)),
            swap_total: Some(M(64)),
            swap_free: Some(M(64)),
            // Overcommit is no lie, however far it goes.
            committed: Some(Bytes(1 << 52)),
            ..AgentStats::default()
        };
        assert!(plausible(&honest, M(512)).is_some());
        let lies = [
            AgentStats { committed: Some(Bytes(1 << 63)), ..honest },
            AgentStats { total: Some(M(513)), ..honest },
            AgentStats { total: Some(M(0)), ..honest },
            AgentStats { total: None, ..honest },
            AgentStats { available: Some(M(481)), ..honest },
            AgentStats { free: Some(Bytes(u64::MAX)), ..honest },
            AgentStats { free: None, available: None, ..honest },
            AgentStats { anon: Some(M(481)), ..honest },
            AgentStats { cached: Some(M(481)), ..honest },
            AgentStats { swap_free: Some(M(65)), ..honest },
            AgentStats { reserve: Some(Bytes(u64::MAX)), ..honest },
        ];
        for lie in lies {
            assert!(plausible(&lie, M(512)).is_none(), "{lie:?}");
        }
    }

    #[test]
    fn a_rate_is_taken_between_reports_that_are_apart() {
        let at = |ms: u64| MonoTime(ms * 1000);
        let rests = |before, at, used: u64| Used::next(before, at, M(200 - used), M(200), M(200));
        let a = rests(None, at(0), 10);
        assert_eq!((a.bytes, a.slope), (M(10), Bytes::ZERO));
        let b = rests(Some(a), at(500), 60);
        assert_eq!(b.slope, M(100));
        let c = rests(Some(b), at(501), 70);
        assert_eq!((c.slope, c.at, c.bytes), (M(100), at(500), M(70)));
        assert_eq!(rests(Some(c), at(600), 20).slope, Bytes::ZERO);
        // The balloon took 80M between two ticks, and the guest spoke before that or after: no growth either way.
        let shrinks = Used::next(Some(a), at(1000), M(190), M(120), M(200));
        let after = Used::next(Some(shrinks), at(2000), M(110), M(120), M(120));
        assert_eq!((shrinks.slope, after.slope, after.bytes), (Bytes::ZERO, Bytes::ZERO, M(10)));
    }

    #[test]
    fn stall_time_is_a_share_of_the_time() {
        let config = Config::default();
        let rises = |stalled_us| Rises { oom_kills: 0, swapped: Bytes::ZERO, stalls: 0, stalled_us };
        assert_eq!(rises(100_000).signal(1000, &config), None);
        assert_eq!(rises(300_000).signal(1000, &config), Some(Signal::Pressure));
        assert_eq!(rises(u64::MAX).signal(0, &config), None);
        assert_eq!(rises(u64::MAX).signal(u64::MAX, &config), None);
    }
}
