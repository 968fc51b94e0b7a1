//! What is to be done, and why.

use alloc::vec::Vec;
use core::fmt;

use plimsoll_units::{Bytes, MemTarget, Ppm};
use serde::{Deserialize, Serialize};

use crate::VmId;

/// What the arbiter made of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How the host stands.
    pub host: HostState,
    /// Sum of what is claimed: for each VM the larger of its target and what it holds, and its overhead.
    pub claimed: Bytes,
    /// Targets to set, shrinking ones first.
    pub actions: Vec<Action>,
    /// One for each VM, by rising id.
    pub verdicts: Vec<Verdict>,
    /// Memory that distressed VMs still wait for. While it is not 0 the next tick should come soon.
    pub waiting: Bytes,
}

/// How the host stands, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Nothing is wanted that is not there.
    Ample,
    /// Guests want more than is free; others are asked to give.
    Tight,
    /// Over budget, below the low mark, or stalling.
    Short,
}

/// A new target for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Whose.
    pub vm: VmId,
    /// The target until now.
    pub from: MemTarget,
    /// The target from now on.
    pub to: MemTarget,
    /// Why.
    pub reason: Reason,
}

/// What the arbiter thinks of a VM at this tick, whether or not it acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which.
    pub vm: VmId,
    /// Its state.
    pub state: VmState,
    /// Whose word that is.
    #[serde(default)]
    pub source: Source,
    /// What the guest needs by its own word, with headroom; `None` if nobody speaks for it.
    pub need: Option<Bytes>,
    /// What it could give without needing it.
    pub spare: Bytes,
    /// Why its target is what it is.
    pub reason: Reason,
}

/// A VM's state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Nothing to note.
    Ok,
    /// It needs memory now.
    Distressed,
    /// It was asked to move and does not.
    Stuck,
    /// Its target is pinned by an operator.
    Held,
    /// Its guest has no balloon driver (yet).
    NoDriver,
    /// Nobody answers for it.
    Unreachable,
}

/// Whose word a guest's demand is taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nobody's: nothing fresh is known.
    #[default]
    Nobody,
    /// Its balloon driver's statistics.
    Device,
    /// The agent's inside it.
    Agent,
}

/// What told of a guest's distress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Little memory is available in the guest.
    Available,
    /// The guest's use grows so fast that it will soon be out of memory.
    Growing,
    /// The guest swaps.
    Swap,
    /// The guest's kernel ended processes for want of memory.
    OomKill,
    /// The guest's allocations stall.
    Stall,
    /// The guest's tasks wait for memory (its PSI).
    Pressure,
    /// The guest took memory back from its balloon by itself (DEFLATE_ON_OOM).
    TookBack,
}

/// Why a target is what it is, with the numbers that made it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// Nothing calls for a change.
    Steady,
    /// An operator holds it there.
    Held {
        /// The pin, inside floor and maxmem.
        hold: MemTarget,
    },
    /// It stands at, or goes back to, its baseline.
    Baseline {
        /// The baseline.
        memory: Bytes,
    },
    /// The guest is in distress and was given what there is.
    Distress {
        /// What told.
        signal: Signal,
        /// Who told.
        #[serde(default)]
        source: Source,
        /// What the guest has left by its own word.
        available: Bytes,
        /// What it was to have at least.
        low: Bytes,
        /// What it wants in all: what it will soon use, or maxmem where that is not measured closely.
        wanted: Bytes,
        /// What the host had to grant beyond the target.
        granted: Bytes,
    },
    /// It reads page cache again soon after giving it up: what it works with does not fit.
    WorkingSet {
        /// What it needs, with headroom and the page cache it uses.
        need: Bytes,
        /// What of that is page cache.
        cache: Bytes,
    },
    /// It proposed this itself (self-ballooning).
    SelfBalloon {
        /// What it holds.
        holds: Bytes,
        /// Where it goes, from what its programs were promised.
        goal: Bytes,
    },
    /// It gives what it can spare to VMs in distress.
    GivesToOthers {
        /// By whose word it can spare that.
        #[serde(default)]
        source: Source,
        /// What the others lack in all.
        lacking: Bytes,
        /// What this VM could spare.
        spare: Bytes,
    },
    /// It holds more than its baseline while others in distress hold less than theirs.
    BackToBaselineForOthers {
        /// What the others lack in all.
        lacking: Bytes,
        /// The baseline.
        memory: Bytes,
    },
    /// The VMs claim more than the budget.
    OverBudget {
        /// What is claimed in all.
        claimed: Bytes,
        /// What may be.
        budget: Bytes,
        /// What this VM could spare.
        spare: Bytes,
    },
    /// The host itself is short of memory.
    HostShort {
        /// What the host has left.
        available: Bytes,
        /// What it should have.
        low: Bytes,
        /// Share of the last tick in which something waited for memory.
        stalled: Ppm,
        /// What this VM could spare.
        spare: Bytes,
    },
    /// It holds more than its baseline and does not need it.
    Idle {
        /// By whose word it is.
        #[serde(default)]
        source: Source,
        /// What it needs, with headroom.
        need: Bytes,
        /// The baseline.
        memory: Bytes,
    },
    /// It was asked to move and did not: not counted on, and clamped so that it cannot take later what was
    /// given away meanwhile.
    Stuck {
        /// The target it was asked to reach.
        asked: MemTarget,
        /// How far it came in the last window.
        moved: Bytes,
        /// The window in milliseconds.
        window_ms: u64,
        /// Milliseconds until it is tried again.
        retry_ms: u64,
    },
    /// The guest has no balloon driver (yet); its target is set for when it has.
    NoDriver,
    /// Nobody answers for the VM; nothing is changed.
    Unreachable,
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ample => "ample",
            Self::Tight => "tight",
            Self::Short => "short",
        })
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Distressed => "distressed",
            Self::Stuck => "stuck",
            Self::Held => "held",
            Self::NoDriver => "no-driver",
            Self::Unreachable => "unreachable",
        })
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Available => "little memory is available in it",
            Self::Growing => "its use grows so fast that it will be out of memory within a second",
            Self::Swap => "it swaps",
            Self::OomKill => "its kernel ended processes for want of memory",
            Self::Stall => "its allocations stall",
            Self::Pressure => "its tasks wait for memory",
            Self::TookBack => "it took memory back from its balloon by itself",
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "nobody speaks for the guest",
            Self::Device => "by its balloon's statistics, no agent is heard",
            Self::Agent => "by its agent",
        })
    }
}

/// The reason in one sentence, for `explain` and the log. Sizes in whole MiB: this is for people.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = |b: &Bytes| b.whole_mib();
        match self {
            Self::Steady => write!(f, "nothing calls for a change"),
            Self::Held { hold } => {
                write!(f, "an operator holds it at {}M; `plimsoll release` ends that", m(&hold.0))
            }
            Self::Baseline { memory } => {
                write!(f, "its baseline is {}M and the host has room for it", m(memory))
            }
            Self::Distress { signal, source, available, low, wanted, granted } => write!(
                f,
                "the guest is in distress: {signal} ({}M available, {}M wanted as a margin, {source}); it wants {}M in all, {}M more was granted",
                m(available),
                m(low),
                m(wanted),
                m(granted)
            ),
            Self::WorkingSet { need, cache } => write!(
                f,
                "it reads again what it had to give up: it needs {}M, {}M of it page cache, by its agent",
                m(need),
                m(cache)
            ),
            Self::SelfBalloon { holds, goal } => write!(
                f,
                "it proposed this itself: it holds {}M, and {}M is what its programs were promised and a reserve",
                m(holds),
                m(goal)
            ),
            Self::GivesToOthers { source, lacking, spare } => {
                write!(f, "other guests lack {}M; this one could spare {}M, {source}", m(lacking), m(spare))
            }
            Self::BackToBaselineForOthers { lacking, memory } => write!(
                f,
                "guests in distress below their baseline lack {}M; this one goes back to its own, {}M",
                m(lacking),
                m(memory)
            ),
            Self::OverBudget { claimed, budget, spare } => write!(
                f,
                "the VMs claim {}M of a budget of {}M; this one could spare {}M",
                m(claimed),
                m(budget),
                m(spare)
            ),
            Self::HostShort { available, low, stalled, spare } => write!(
                f,
                "the host is short: {}M available ({}M wanted), tasks waited {stalled} of the time; this one could spare {}M",
                m(available),
                m(low),
                m(spare)
            ),
            Self::Idle { source, need, memory } => write!(
                f,
                "it needs {}M, {source}, and holds more than its baseline of {}M; the rest goes back slowly",
                m(need),
                m(memory)
            ),
            Self::Stuck { asked, moved, window_ms, retry_ms } => write!(
                f,
                "it was asked for {}M and moved {}K in {window_ms} ms: not counted on, asked again in {} s",
                m(&asked.0),
                moved.0 >> 10,
                retry_ms.div_ceil(1000)
            ),
            Self::NoDriver => {
                write!(f, "the guest has no balloon driver running; the target holds from when it has")
            }
            Self::Unreachable => write!(f, "nobody answers for the VM; what was last known stands"),
        }
    }
}
