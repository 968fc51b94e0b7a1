//! One VM at one tick: what it needs, whether it suffers, whether it moves.

use plimsoll_model::{Link, Reason, Signal, Source, VmSample, VmState};
use plimsoll_units::{Bytes, MemTarget, MonoTime};

use crate::config::Config;
use crate::exhausted::Stall;
use crate::history::{Stuck, VmHistory, Window};
use crate::selfballoon::{TotalRam, Worker};

/// A VM with what was found out about it and what is going to be done.
#[derive(Debug)]
pub(crate) struct Vm<'a> {
    pub(crate) sample: &'a VmSample,
    pub(crate) history: VmHistory,
    pub(crate) state: VmState,
    /// Whose word its demand is taken from.
    pub(crate) source: Source,
    /// Its agent said something new.
    pub(crate) fresh: bool,
    /// What it read again since the report before.
    pub(crate) refaulted: Bytes,
    /// What its guest needs; `None` if that is not known.
    pub(crate) need: Option<Bytes>,
    /// What its guest has left, by its own word, bounded by what it holds.
    pub(crate) available: Bytes,
    /// The sign of distress that is in force.
    pub(crate) signal: Option<Signal>,
    /// It was in distress a moment ago and has plenty now: it may give, but is asked last, and is not moved slowly.
    pub(crate) eased: bool,
    /// It waits in its pager.
    pub(crate) stall: Option<Stall>,
    /// It was in distress lately, and what it has may well be on its way to being used.
    pub(crate) busy: bool,
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
            source: Source::Nobody,
            fresh: false,
            refaulted: Bytes::ZERO,
            need: None,
            available: Bytes::ZERO,
            signal: None,
            eased: false,
            stall: None,
            busy: false,
            target: sizes.clamp(sample.target.0).0,
            reason: Reason::Steady,
        };
        if sample.link == Link::Up {
            vm.read(now, config);
        } else {
            vm.forget_guest();
        }
        vm.judge_stall(now, config);
        vm.judge_distress(now, config);
        vm.judge_progress(now, config);
        vm.note_baseline();
        vm.propose(now);
        vm.name_state(now);
        vm.history.actual = actual;
        vm
    }

    /// What it may claim of the host: the larger of what it was given and what it holds, and its overhead.
    pub(crate) fn claim(&self) -> Bytes {
        self.target.max(self.holds()).plus(self.sample.overhead)
    }

    /// What it holds, or may come to hold without being asked. Where a pager enforces a limit that is it. A guest without a
    /// driver was told of all its memory but has not touched it; there the host's own count is the better measure.
    pub(crate) fn holds(&self) -> Bytes {
        if let Some(limit) = self.limit() {
            return limit;
        }
        match (self.sample.link, self.sample.resident) {
            (Link::NoDriver, Some(resident)) => resident.min(self.sample.sizes.maxmem()),
            (Link::NoDriver, None) => self.sample.sizes.maxmem(),
            (Link::Up | Link::Unreachable, _) => self.sample.actual.0,
        }
    }

    /// Memory that is on its way back: asked for, not here yet, and still counted on.
    pub(crate) fn in_flight(&self) -> Bytes {
        let counted_on = self.sample.link == Link::Up && !self.history.stuck.is_some_and(|s| s.now);
        if counted_on { self.holds().minus(self.target) } else { Bytes::ZERO }
    }

    /// Whether the arbiter may move it at all.
    pub(crate) fn movable(&self) -> bool {
        matches!(self.state, VmState::Ok | VmState::Distressed)
    }

    /// What it can give if it must, and not be in distress by that: half as much again as the margin is left.
    pub(crate) fn last_spare(&self, config: &Config) -> Bytes {
        if self.state != VmState::Ok || self.need.is_none() || self.is_owed() {
            return Bytes::ZERO;
        }
        let used = self.sample.actual.0.minus(self.available);
        let margin = config.distress_margin(self.source, used);
        self.target.minus(used.plus(margin).plus(Bytes(margin.0 / 2)).max(self.sample.sizes.floor()))
    }

    /// Whether an operator wants it to have more than it has. It gives nothing meanwhile, least of all for itself.
    fn is_owed(&self) -> bool {
        self.history.seeks && self.sample.sizes.memory() > self.target
    }

    /// What it holds beyond its baseline and its need, where nothing is going on with it: no distress now or lately, no pin, no baseline that is sought, no proposal of its own.
    pub(crate) fn idle(&self) -> Bytes {
        let calm = self.state == VmState::Ok && !self.eased && !self.busy && !self.history.seeks;
        match self.need {
            Some(need) if calm && self.voluntary().is_none() => {
                self.target.minus(need.max(self.sample.sizes.memory()))
            }
            _ => Bytes::ZERO,
        }
    }

    /// The reason for taking it.
    pub(crate) fn idle_reason(&self) -> Reason {
        let need = self.need.unwrap_or(Bytes::ZERO);
        Reason::Idle { source: self.source, need, memory: self.sample.sizes.memory() }
    }

    /// Whether its target was lowered at this tick.
    pub(crate) fn gives(&self) -> bool {
        self.target < self.sample.sizes.clamp(self.sample.target.0).0
    }

    /// What it can give without needing it.
    pub(crate) fn spare(&self) -> Bytes {
        match (self.state, self.need) {
            (VmState::Ok, Some(need)) if !self.is_owed() => {
                self.target.minus(need.max(self.sample.sizes.floor()))
            }
            _ => Bytes::ZERO,
        }
    }

    /// Nothing that was known of a guest that cannot be reached holds for the one that answers next.
    fn forget_guest(&mut self) {
        let history = &mut self.history;
        (history.distress, history.hurt, history.eased) = (None, None, None);
        (history.used, history.agent) = (None, None);
        (history.cache, history.total_ram, history.voluntary) = (Bytes::ZERO, None, None);
    }

    /// Lets the guest propose a target of its own, where that is switched on and its agent speaks.
    fn propose(&mut self, now: MonoTime) {
        let (sizes, actual) = (self.sample.sizes, self.sample.actual.0);
        let report = self.history.agent.filter(|_| self.source == Source::Agent);
        let Some((_, stats)) = report.filter(|_| self.sample.tunables.selfballooning) else {
            self.history.voluntary = None;
            return;
        };
        let total = stats.total.unwrap_or(Bytes::ZERO);
        let mut ram = self.history.total_ram.unwrap_or_else(|| TotalRam::new(sizes.maxmem(), actual, total));
        if self.fresh {
            ram.read(sizes.maxmem(), actual, total, actual == self.history.actual);
        }
        self.history.total_ram = Some(ram);
        let worker = Worker {
            tunables: &self.sample.tunables,
            maxmem: sizes.maxmem(),
            current: actual,
            target: self.target,
            distressed: self.signal.is_some(),
            fresh: self.fresh,
        };
        self.history.voluntary =
            worker.goal(&stats, ram.kernel()).map(|goal| worker.propose(self.history.voluntary, goal, now));
    }

    /// What the guest would have by its own proposal, between floor and maxmem.
    pub(crate) fn voluntary(&self) -> Option<Bytes> {
        self.history.voluntary.map(|v| self.sample.sizes.clamp(v.target).0)
    }

    /// The reason for following it.
    pub(crate) fn proposal(&self) -> Reason {
        let goal = self.history.voluntary.map_or(Bytes::ZERO, |v| v.goal);
        Reason::SelfBalloon { holds: self.sample.actual.0, goal }
    }

    fn judge_distress(&mut self, now: MonoTime, config: &Config) {
        if let (Some(_), Some(VmState::Distressed)) = (self.stall, self.stalled_state()) {
            self.signal = Some(Signal::Exhausted);
            return;
        }
        if self.sample.link != Link::Up {
            return;
        }
        let actual = self.sample.actual.0;
        let grown = actual.minus(self.history.actual);
        if self.need.is_some() && self.available < config.distress_margin(self.source, actual) {
            self.history.distress = Some((now, Signal::Available));
        } else if self.fresh && self.grows_out(config) {
            self.history.distress = Some((now, Signal::Growing));
        } else if grown >= config.least_move && actual.minus(self.sample.target.0) >= config.least_move {
            self.history.distress = Some((now, Signal::TookBack));
        }
        if let Some((at, signal)) = self.history.distress {
            self.history.hurt = Some(at);
            if now.millis_since(at) > config.distress_quiet_ms {
                self.history.distress = None;
            } else if self.has_plenty_since(at, signal, config) {
                // What was given to it and is not needed may go again; only a new sign makes it distress again.
                self.history.distress = None;
                self.history.eased = Some(at);
            } else {
                self.history.eased = None;
                self.signal = Some(signal);
            }
        }
        self.history.eased =
            self.history.eased.filter(|at| now.millis_since(*at) <= config.distress_quiet_ms);
        // What a guest was given, it may be about to use; one that has half of what it holds to spare has freed it.
        let freed = self.available >= Bytes(actual.0 / 2);
        let lately = self.history.hurt.is_some_and(|at| now.millis_since(at) <= config.idle_after_ms);
        // One that waited in its pager a moment ago is not asked to give back at once what ended that.
        self.eased = (self.history.eased.is_some() && !freed) || self.history.exhausted.is_some();
        self.busy = lately && !freed;
        if self.signal.is_none() {
            self.history.pleas = 0;
        } else if self.fresh {
            self.history.pleas = self.history.pleas.saturating_add(1);
        }
    }

    /// Whether the guest has twice the headroom that it is left with, by its own word.
    ///
    /// Counters tell what has happened, and what is available tells whether it goes on: a guest that reads back what it
    /// had swapped out, with plenty available, needs no more. The other signs are outlived by a later word only, and the
    /// guest whose kernel killed for want of memory has plenty because of that; it gets its quiet time.
    fn has_plenty_since(&self, at: MonoTime, signal: Signal, config: &Config) -> bool {
        let Some(need) = self.need else { return false };
        let counted = matches!(signal, Signal::Swap | Signal::Stall | Signal::Pressure);
        let later = counted || self.history.used.is_some_and(|used| used.at > at);
        let headroom = need.minus(self.sample.actual.0.minus(self.available));
        let margin = config.distress_margin(self.source, self.sample.actual.0);
        later && signal != Signal::OomKill && self.available >= headroom.plus(headroom).max(margin)
    }

    /// Judges by rate whether a guest that was asked to move does so.
    fn judge_progress(&mut self, now: MonoTime, config: &Config) {
        let (actual, target) = (self.sample.actual.0, self.sample.target.0);
        if self.stall.is_some() {
            // A guest that stands still cannot move its balloon.
            self.history.window = None;
            return;
        }
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
        let (link, hold, stalled) = (self.sample.link, self.sample.hold, self.stalled_state());
        let (state, reason) = match (link, hold, stalled, stuck, self.signal) {
            (Link::Unreachable, ..) => (VmState::Unreachable, Reason::Unreachable),
            (_, Some(hold), ..) => (VmState::Held, Reason::Held { hold: self.sample.sizes.clamp(hold.0) }),
            (_, None, Some(stalled), ..) => (stalled, Reason::Steady),
            (Link::NoDriver, ..) => (VmState::NoDriver, Reason::NoDriver),
            (Link::Up, None, None, Some(stuck), _) => (VmState::Stuck, self.stuck_reason(&stuck, now)),
            (Link::Up, None, None, None, Some(_)) => (VmState::Distressed, Reason::Steady),
            (Link::Up, None, None, None, None) => (VmState::Ok, Reason::Steady),
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
