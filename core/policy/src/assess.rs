//! One VM at one tick: what it needs, whether it suffers, whether it moves.

use plimsoll_model::{GuestStats, Link, Reason, Signal, VmSample, VmState};
use plimsoll_units::{Bytes, MemTarget, MonoTime};

use crate::config::Config;
use crate::history::{Stuck, VmHistory, Window};

/// A VM with what was found out about it and what is going to be done.
#[derive(Debug)]
pub(crate) struct Vm<'a> {
    pub(crate) sample: &'a VmSample,
    pub(crate) history: VmHistory,
    pub(crate) state: VmState,
    /// What its guest needs; `None` if that is not known.
    pub(crate) need: Option<Bytes>,
    /// What its guest has left, by its own word, bounded by what it holds.
    pub(crate) available: Bytes,
    /// The sign of distress that is in force.
    pub(crate) signal: Option<Signal>,
    /// It was in distress a moment ago and has plenty now: it may give, but is asked last, and is not moved slowly.
    pub(crate) eased: bool,
    /// The target as it stands, changed as decisions fall.
    pub(crate) target: Bytes,
    pub(crate) reason: Reason,
}

impl<'a> Vm<'a> {
    /// Finds out about a VM. Nothing of the guest's is believed beyond what the host can bound.
    pub(crate) fn assess(
        sample: &'a VmSample,
        remembered: Option<VmHistory>,
        now: MonoTime,
        config: &Config,
    ) -> Self {
        let sizes = sample.sizes;
        let actual = sample.actual.0;
        let history = remembered.unwrap_or_else(|| VmHistory::new(sample.id, actual, sizes.memory()));
        let mut vm = Self {
            sample,
            history,
            state: VmState::Ok,
            need: None,
            available: Bytes::ZERO,
            signal: None,
            eased: false,
            target: sizes.clamp(sample.target.0).0,
            reason: Reason::Steady,
        };
        vm.read_stats(now, config);
        vm.judge_distress(now, config);
        vm.judge_progress(now, config);
        vm.note_baseline();
        vm.name_state(now);
        vm.history.actual = actual;
        vm
    }

    /// What it may claim of the host: the larger of what it was given and what it holds, and its overhead.
    pub(crate) fn claim(&self) -> Bytes {
        self.target.max(self.holds()).plus(self.sample.overhead)
    }

    /// What it holds. A guest without a driver was told of all its memory but has not touched it; there the
    /// host's own count is the better measure.
    pub(crate) fn holds(&self) -> Bytes {
        match (self.sample.link, self.sample.resident) {
            (Link::NoDriver, Some(resident)) => resident.min(self.sample.sizes.maxmem()),
            (Link::NoDriver, None) => self.sample.sizes.maxmem(),
            (Link::Up | Link::Unreachable, _) => self.sample.actual.0,
        }
    }

    /// Memory that is on its way back: asked for, not here yet, and still counted on.
    pub(crate) fn in_flight(&self) -> Bytes {
        let counted_on = self.sample.link == Link::Up && !self.history.stuck.is_some_and(|s| s.now);
        if counted_on { self.sample.actual.0.minus(self.target) } else { Bytes::ZERO }
    }

    /// Whether the arbiter may move it at all.
    pub(crate) fn movable(&self) -> bool {
        matches!(self.state, VmState::Ok | VmState::Distressed)
    }

    /// What it can give without needing it.
    pub(crate) fn spare(&self) -> Bytes {
        match (self.state, self.need) {
            (VmState::Ok, Some(need)) => self.target.minus(need.max(self.sample.sizes.floor())),
            _ => Bytes::ZERO,
        }
    }

    /// Takes in fresh statistics, and what changed since the last ones.
    fn read_stats(&mut self, now: MonoTime, config: &Config) {
        let Some(fresh) = self.sample.stats.filter(|s| now.millis_since(s.at) <= config.stats_max_age_ms)
        else {
            return;
        };
        if self.sample.link != Link::Up {
            return;
        }
        let actual = self.sample.actual.0;
        let new = self.history.stats.is_none_or(|(at, _)| at < fresh.at);
        if let Some(available) = fresh.stats.available.or(fresh.stats.free)
            && (new || self.history.used.is_none())
        {
            self.history.used = Some(actual.minus(available.min(actual)));
        }
        // What was available is out of date as soon as the balloon moves; what is used is not.
        if let Some(used) = self.history.used {
            self.available = actual.minus(used);
            self.need = Some(config.need(used));
        }
        if let Some((at, last)) = self.history.stats.filter(|(at, _)| *at < fresh.at)
            && let Some(signal) = rates(&last, &fresh.stats, fresh.at.millis_since(at), config)
        {
            self.history.distress = Some((now, signal));
        }
        if new {
            self.history.stats = Some((fresh.at, fresh.stats));
        }
    }

    fn judge_distress(&mut self, now: MonoTime, config: &Config) {
        if self.sample.link != Link::Up {
            self.history.distress = None;
            self.history.used = None;
            return;
        }
        let actual = self.sample.actual.0;
        let grown = actual.minus(self.history.actual);
        if self.need.is_some() && self.available < config.distress_margin(actual) {
            self.history.distress = Some((now, Signal::Available));
        } else if grown >= config.least_move && actual.minus(self.sample.target.0) >= config.least_move {
            self.history.distress = Some((now, Signal::TookBack));
        }
        match self.history.distress {
            Some((at, signal)) if now.millis_since(at) <= config.distress_quiet_ms => {
                self.eased = self.has_plenty_since(at, signal, config);
                self.signal = (!self.eased).then_some(signal);
            }
            Some(_) => self.history.distress = None,
            None => {}
        }
    }

    /// Whether statistics that came after a sign of distress show twice the headroom that a guest is left with.
    /// A guest that has just freed its memory must not keep it from others until the quiet time is over.
    /// One whose kernel killed for want of memory has plenty because of that; it gets its quiet time.
    fn has_plenty_since(&self, at: MonoTime, signal: Signal, config: &Config) -> bool {
        let Some(need) = self.need else { return false };
        let headroom = need.minus(self.sample.actual.0.minus(self.available));
        let later = self.history.stats.is_some_and(|(came, _)| came > at);
        let margin = config.distress_margin(self.sample.actual.0);
        later && signal != Signal::OomKill && self.available >= headroom.plus(headroom).max(margin)
    }

    /// Judges by rate whether a guest that was asked to move does so.
    fn judge_progress(&mut self, now: MonoTime, config: &Config) {
        let (actual, target) = (self.sample.actual.0, self.sample.target.0);
        let shrinking = actual > target;
        let gap = actual.minus(target).plus(target.minus(actual));
        if self.sample.link != Link::Up || gap < config.least_move {
            self.history.window = None;
        }
        if let Some(stuck) = &mut self.history.stuck
            && stuck.now
        {
            let moved = actual.minus(stuck.actual).plus(stuck.actual.minus(actual));
            if moved >= config.least_move || now >= stuck.retry_at {
                stuck.now = false;
                self.history.window = None;
            }
            return;
        }
        if self.sample.link != Link::Up || gap < config.least_move {
            return;
        }
        let window = match self.history.window {
            Some(window) if window.shrinking == shrinking => window,
            _ => Window { since: now, from: actual, shrinking },
        };
        self.history.window = Some(window);
        let elapsed = now.millis_since(window.since);
        if elapsed < config.stuck_window_ms {
            return;
        }
        let moved = if shrinking { window.from.minus(actual) } else { actual.minus(window.from) };
        self.history.window = Some(Window { since: now, from: actual, shrinking });
        if moved >= config.stuck_rate.scale(elapsed, 1000) {
            // A guest that works off what it is asked for has earned a clean sheet.
            self.history.stuck = None;
            return;
        }
        let backoff_ms = self.history.stuck.map_or(config.stuck_retry_ms, |s| {
            s.backoff_ms.saturating_mul(2).min(config.stuck_retry_most_ms)
        });
        self.history.window = None;
        self.history.stuck = Some(Stuck {
            asked: target,
            moved,
            window_ms: elapsed,
            actual,
            retry_at: now.plus_millis(backoff_ms),
            backoff_ms,
            now: true,
        });
    }

    /// A baseline that was set anew is sought until it is reached.
    fn note_baseline(&mut self) {
        let memory = self.sample.sizes.memory();
        if self.history.memory != memory {
            self.history.memory = memory;
            self.history.seeks = true;
        }
        if self.target == memory || self.signal.is_some() {
            self.history.seeks = false;
        }
    }

    fn name_state(&mut self, now: MonoTime) {
        let stuck = self.history.stuck.filter(|s| s.now);
        let (state, reason) = match (self.sample.link, self.sample.hold, stuck, self.signal) {
            (Link::Unreachable, ..) => (VmState::Unreachable, Reason::Unreachable),
            (_, Some(hold), ..) => (VmState::Held, Reason::Held { hold: self.sample.sizes.clamp(hold.0) }),
            (Link::NoDriver, ..) => (VmState::NoDriver, Reason::NoDriver),
            (Link::Up, None, Some(stuck), _) => (VmState::Stuck, self.stuck_reason(&stuck, now)),
            (Link::Up, None, None, Some(_)) => (VmState::Distressed, Reason::Steady),
            (Link::Up, None, None, None) => (VmState::Ok, Reason::Steady),
        };
        self.state = state;
        self.reason = reason;
    }

    fn stuck_reason(&self, stuck: &Stuck, now: MonoTime) -> Reason {
        Reason::Stuck {
            asked: MemTarget(stuck.asked),
            moved: stuck.moved,
            window_ms: stuck.window_ms,
            retry_ms: stuck.retry_at.millis_since(now),
        }
    }
}

/// Distress that shows in how fast a guest's counters rise. Counters that fall (a reboot) say nothing.
fn rates(last: &GuestStats, fresh: &GuestStats, millis: u64, config: &Config) -> Option<Signal> {
    let risen = |a: Option<u64>, b: Option<u64>| b.zip(a).map_or(0, |(b, a)| b.saturating_sub(a));
    let bytes = |b: Option<Bytes>| b.map(|b| b.0);
    if risen(last.oom_kills, fresh.oom_kills) > 0 {
        return Some(Signal::OomKill);
    }
    let swapped = risen(bytes(last.swap_in), bytes(fresh.swap_in))
        .saturating_add(risen(bytes(last.swap_out), bytes(fresh.swap_out)));
    if Bytes(swapped) > config.guest_swap_rate.scale(millis, 1000) {
        return Some(Signal::Swap);
    }
    let stalls = risen(last.alloc_stalls, fresh.alloc_stalls);
    let allowed = Bytes(config.guest_stall_rate).scale(millis, 1000).0;
    (stalls > allowed).then_some(Signal::Stall)
}
