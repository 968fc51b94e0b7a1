//! Why.

use core::fmt;

use plimsoll_units::{Bytes, MemTarget, Ppm};
use serde::{Deserialize, Serialize};

use crate::{Signal, Source, Standstill};

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
    /// The guest waits in its pager: it has used up what it may have populated, and was given what there is.
    Exhausted {
        /// What it may have.
        limit: Bytes,
        /// What it has.
        resident: Bytes,
        /// For how long it has waited, in milliseconds.
        stalled_ms: u64,
        /// What it wants in all.
        wanted: Bytes,
        /// What the host had to grant beyond what it may have.
        granted: Bytes,
    },
    /// The guest waits in its pager, and nothing is done about it.
    Stalled {
        /// What it may have.
        limit: Bytes,
        /// What it has.
        resident: Bytes,
        /// For how long it has waited, in milliseconds.
        stalled_ms: u64,
        /// Why nothing is done.
        why: Standstill,
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

/// The reason in one sentence, for `explain` and the log. Sizes in whole MiB: this is for people.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = |b: &Bytes| b.whole_mib();
        match self {
            Self::Steady => f.write_str("nothing calls for a change"),
            Self::Held { hold: MemTarget(hold) } => {
                write!(f, "an operator holds it at {}M; `plimsoll release` ends that", m(hold))
            }
            Self::Baseline { memory } => {
                write!(f, "its baseline is {}M and the host has room for it", m(memory))
            }
            Self::Distress { signal, source, available, low, wanted, granted } => {
                suffers(f, (*signal, *source), (*available, *low), (*wanted, *granted))
            }
            Self::Exhausted { limit, resident, stalled_ms, wanted, granted } => {
                waited(f, (*resident, *limit), *stalled_ms, (*wanted, *granted))
            }
            Self::Stalled { limit, resident, stalled_ms, why } => {
                waits(f, (*resident, *limit), *stalled_ms, *why)
            }
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
            Self::OverBudget { claimed, budget, spare } => {
                let [claimed, budget, spare] = [claimed, budget, spare].map(m);
                write!(f, "the VMs claim {claimed}M of a budget of {budget}M; this one could spare {spare}M")
            }
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
                f.write_str("the guest has no balloon driver running; the target holds from when it has")
            }
            Self::Unreachable => f.write_str("nobody answers for the VM; what was last known stands"),
        }
    }
}

/// What is said of a guest in distress.
fn suffers(
    f: &mut fmt::Formatter<'_>,
    (signal, source): (Signal, Source),
    (available, low): (Bytes, Bytes),
    (wanted, granted): (Bytes, Bytes),
) -> fmt::Result {
    let [available, low, wanted, granted] = [available, low, wanted, granted].map(Bytes::whole_mib);
    write!(
        f,
        "the guest is in distress: {signal} ({available}M available, {low}M wanted as a margin, {source}); it wants {wanted}M \
         in all, {granted}M more was granted"
    )
}

/// What is said of a guest that waited in its pager and was given `granted`.
fn waited(
    f: &mut fmt::Formatter<'_>,
    (resident, limit): (Bytes, Bytes),
    stalled_ms: u64,
    (wanted, granted): (Bytes, Bytes),
) -> fmt::Result {
    let [resident, limit, wanted, granted] = [resident, limit, wanted, granted].map(Bytes::whole_mib);
    write!(
        f,
        "the guest has waited for memory for {stalled_ms} ms: {resident}M of the {limit}M it may have are populated; it wants \
         {wanted}M in all, {granted}M more was granted"
    )
}

/// What is said of one that waits, and about which nothing is done.
fn waits(
    f: &mut fmt::Formatter<'_>,
    (resident, limit): (Bytes, Bytes),
    stalled_ms: u64,
    why: Standstill,
) -> fmt::Result {
    let [resident, limit] = [resident, limit].map(Bytes::whole_mib);
    write!(
        f,
        "the guest has stood still for {} s: it touched a page beyond the {limit}M it may have ({resident}M are populated), \
         and {why}",
        stalled_ms / 1000
    )
}
