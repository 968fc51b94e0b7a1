//! What the arbiter remembers from tick to tick.

use alloc::vec::Vec;

use plimsoll_model::{AgentStats, GuestStats, PsiTotals, Signal, VmId};
use plimsoll_units::{Bytes, MonoTime};
use serde::{Deserialize, Serialize};

use crate::demand::Used;
use crate::exhausted::Exhausted;
use crate::selfballoon::{TotalRam, Voluntary};

/// Everything that is remembered. It is part of the journal, so that any stretch of it can be replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The last tick's time and stall totals.
    pub(crate) host: Option<(MonoTime, Option<PsiTotals>)>,
    /// When slow moves (idle, relax) were last considered.
    pub(crate) slow_at: Option<MonoTime>,
    /// By rising id.
    pub(crate) vms: Vec<VmHistory>,
}

/// What is remembered of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmHistory {
    pub(crate) id: VmId,
    /// What it held at the last tick.
    pub(crate) actual: Bytes,
    /// The last statistics that were looked at, and when they came.
    pub(crate) stats: Option<(MonoTime, GuestStats)>,
    /// The agent's last report that was looked at, and when it came.
    pub(crate) agent: Option<(MonoTime, AgentStats)>,
    /// When the agent last said anything, believed or not.
    pub(crate) heard: Option<MonoTime>,
    /// Ticks since then.
    pub(crate) unheard: u32,
    /// What the guest used when it last said so.
    pub(crate) used: Option<Used>,
    /// Page cache that it has lately been seen to read again.
    pub(crate) cache: Bytes,
    /// What its kernel keeps for itself.
    pub(crate) total_ram: Option<TotalRam>,
    /// Its own proposal, while self-ballooning is on and its agent speaks.
    pub(crate) voluntary: Option<Voluntary>,
    /// The last sign of distress.
    pub(crate) distress: Option<(MonoTime, Signal)>,
    /// When the last sign of distress was.
    pub(crate) hurt: Option<MonoTime>,
    /// The sign of distress that was over before its quiet time was.
    pub(crate) eased: Option<MonoTime>,
    /// In how many reports in a row it was in distress: what it was given was not enough.
    pub(crate) pleas: u32,
    /// It has waited in its pager lately.
    #[serde(default)]
    pub(crate) exhausted: Option<Exhausted>,
    /// Its baseline at the last tick: a new one is sought at once.
    pub(crate) memory: Bytes,
    /// A new baseline was set and is not reached yet.
    pub(crate) seeks: bool,
    /// The stretch over which its progress is being judged.
    pub(crate) window: Option<Window>,
    /// It was found stuck.
    pub(crate) stuck: Option<Stuck>,
}

/// A stretch in which a VM should be moving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) since: MonoTime,
    pub(crate) from: Bytes,
    pub(crate) shrinking: bool,
}

/// A VM that did not move. Kept after it is forgiven, so that the next time it is left alone for longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stuck {
    pub(crate) asked: Bytes,
    pub(crate) moved: Bytes,
    pub(crate) window_ms: u64,
    /// What it held when it was found stuck.
    pub(crate) actual: Bytes,
    pub(crate) retry_at: MonoTime,
    pub(crate) backoff_ms: u64,
    /// Whether it still counts as stuck.
    pub(crate) now: bool,
}

impl VmHistory {
    pub(crate) fn new(id: VmId, actual: Bytes, memory: Bytes) -> Self {
        Self {
            id,
            actual,
            stats: None,
            agent: None,
            heard: None,
            unheard: 0,
            used: None,
            cache: Bytes::ZERO,
            total_ram: None,
            voluntary: None,
            distress: None,
            hurt: None,
            eased: None,
            pleas: 0,
            exhausted: None,
            memory,
            seeks: false,
            window: None,
            stuck: None,
        }
    }
}
