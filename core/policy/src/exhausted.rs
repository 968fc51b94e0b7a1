//! A guest whose memory is populated on demand, and that has used up what it may have: it waits in its pager until there
//! is room, so nothing is more urgent. Whether it has a balloon driver does not matter: its limit is enforced.
//!
//! How much more it will touch nobody knows. So it is given a share of what it has, and twice that each time it asks
//! again; until its pager has what was granted last it asks for nothing new.

use plimsoll_model::{Link, OnExhausted, PagerSample, Reason, Standstill, VmState};
use plimsoll_units::{Bytes, MonoTime};
use serde::{Deserialize, Serialize};

use crate::assess::Vm;
use crate::config::Config;

/// The share is doubled so often at most: then even the least step is half a TiB.
const MOST_DOUBLINGS: u32 = 16;

/// A guest that has waited lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exhausted {
    /// When it was last seen to wait.
    pub(crate) at: MonoTime,
    /// How often in a row what it was given was not enough.
    pub(crate) pleas: u32,
}

/// A guest that waits now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    pager: PagerSample,
    ms: u64,
    /// What it should have.
    pub(crate) want: Bytes,
    /// The pager does not have yet what was granted last.
    under_way: bool,
}

impl Vm<'_> {
    /// What its pager lets it grow to; `None` where no pager enforces anything.
    pub(crate) fn limit(&self) -> Option<Bytes> {
        self.sample.pager.map(|pager| pager.limit.min(self.sample.sizes.maxmem()))
    }

    /// Whether its target means something though it is not to be moved: a pager enforces it without a driver.
    pub(crate) fn is_enforced(&self) -> bool {
        self.sample.pager.is_some() && matches!(self.state, VmState::NoDriver | VmState::Stalled)
    }

    /// Finds out whether it waits in its pager, and what for.
    pub(crate) fn judge_stall(&mut self, now: MonoTime, config: &Config) {
        let reached = self.sample.link != Link::Unreachable;
        let waits = self.sample.pager.filter(|_| reached).and_then(|p| Some((p, p.stalled_ms?)));
        let Some((pager, ms)) = waits else {
            let quiet = config.distress_quiet_ms;
            self.history.exhausted = self.history.exhausted.filter(|past| now.millis_since(past.at) <= quiet);
            return;
        };
        let sizes = self.sample.sizes;
        let limit = pager.limit.min(sizes.maxmem());
        let under_way = limit < self.target;
        let before = self.history.exhausted.map_or(0, |past| past.pleas);
        let pleas = if under_way { before } else { before.saturating_add(1) };
        self.history.exhausted = Some(Exhausted { at: now, pleas });
        let has = self.target.max(limit);
        let step = config.exhausted_share.of(has).max(config.exhausted_least);
        let doublings = pleas.saturating_sub(1).min(MOST_DOUBLINGS);
        let more = if under_way { Bytes::ZERO } else { step.scale(1 << doublings, 1) };
        // What it was promised to begin with it gets in any case.
        let grown = match pager.on_exhausted {
            OnExhausted::Grow => has.plus(more),
            OnExhausted::Wait | OnExhausted::Stop => self.target,
        };
        // A pin is a pin, also for one that stands still for it.
        let want = match self.sample.hold {
            Some(hold) => sizes.clamp(hold.0).0,
            None => grown.max(sizes.memory()).pages_ceil().bytes().min(sizes.maxmem()),
        };
        self.stall = Some(Stall { pager, ms, want, under_way });
    }

    /// What is done about its waiting: its state if that is not ordinary distress.
    pub(crate) fn stalled_state(&self) -> Option<VmState> {
        let stall = self.stall?;
        Some(match stall.pager.on_exhausted {
            OnExhausted::Grow => VmState::Distressed,
            OnExhausted::Wait | OnExhausted::Stop => VmState::Stalled,
        })
    }

    /// Why it was granted so much more.
    pub(crate) fn stall_reason(&self, stall: Stall, granted: Bytes) -> Reason {
        let PagerSample { limit, resident, .. } = stall.pager;
        Reason::Exhausted { limit, resident, stalled_ms: stall.ms, wanted: stall.want, granted }
    }

    /// The last word about one that waits, once all is decided; `coming` says that others give memory. `None` for one
    /// that does not wait.
    pub(crate) fn stall_verdict(&self, coming: bool) -> Option<(VmState, Reason)> {
        let stall = self.stall?;
        let raised = self.target > self.sample.sizes.clamp(self.sample.target.0).0;
        if raised && self.state == VmState::Held {
            return None;
        }
        if raised {
            return Some((VmState::Distressed, self.reason));
        }
        let why = match (self.sample.hold, stall.pager.on_exhausted) {
            _ if stall.under_way => None,
            (Some(_), _) => Some(Standstill::Held),
            _ if self.target >= self.sample.sizes.maxmem() => Some(Standstill::AtMaxmem),
            (None, OnExhausted::Wait) => Some(Standstill::Wait),
            (None, OnExhausted::Stop) => Some(Standstill::Stop),
            (None, OnExhausted::Grow) if coming => None,
            (None, OnExhausted::Grow) => Some(Standstill::NothingFree),
        };
        let PagerSample { limit, resident, .. } = stall.pager;
        Some(match why {
            Some(why) => (VmState::Stalled, Reason::Stalled { limit, resident, stalled_ms: stall.ms, why }),
            None => (VmState::Distressed, self.stall_reason(stall, Bytes::ZERO)),
        })
    }
}
