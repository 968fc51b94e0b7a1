//! What is to be done, and why.

use alloc::vec::Vec;
use core::fmt;

use plimsoll_units::{Bytes, MemTarget};
use serde::{Deserialize, Serialize};

use crate::{Reason, VmId};

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
    /// Its guest waits in its pager for memory, and at this tick nothing is done about it.
    Stalled,
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
    /// The guest waits in its pager: it touched a page beyond what it may have.
    Exhausted,
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
            Self::Stalled => "stalled",
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
            Self::Exhausted => "it waits in its pager for memory",
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
