//! What the scenes are made of.

use plimsoll_model::*;
use plimsoll_policy::{Config, History, decide};
use plimsoll_units::*;

pub(crate) const M: fn(u64) -> Bytes = Bytes::mib;

pub(crate) fn host(budget: Bytes) -> HostSample {
    HostSample { budget, available: budget, low: Bytes::ZERO, psi: None, swap_in_pages: 0, swap_out_pages: 0 }
}

pub(crate) fn snapshot(now_ms: u64, budget: Bytes, vms: Vec<VmSample>) -> Snapshot {
    Snapshot { now: MonoTime(now_ms * 1000), host: host(budget), vms }
}

pub(crate) fn stats(at_ms: u64, available: Bytes) -> Option<StatsSample> {
    let stats = GuestStats { available: Some(available), ..GuestStats::default() };
    Some(StatsSample { at: MonoTime(at_ms * 1000), stats })
}

pub(crate) fn to(plan: &Plan, id: u64) -> Option<Bytes> {
    plan.actions.iter().find(|a| a.vm == VmId(id)).map(|a| a.to.0)
}

/// What an honest agent says of a guest of which `available` is available.
pub(crate) fn agent(at_ms: u64, total: Bytes, available: Bytes, committed: Bytes) -> Option<AgentSample> {
    let stats = AgentStats {
        total: Some(total),
        free: Some(available),
        available: Some(available),
        committed: Some(committed),
        cached: Some(available),
        ..AgentStats::default()
    };
    Some(AgentSample { at: MonoTime(at_ms * 1000), stats })
}

/// Twice the same snapshot in the same history gives the same plan, also after a trip through JSON.
pub(crate) fn plan_twice(snapshot: &Snapshot, config: &Config, history: &mut History) -> Plan {
    let text = serde_json::to_string(&(snapshot, &*history)).unwrap();
    let (copy, mut past): (Snapshot, History) = serde_json::from_str(&text).unwrap();
    let plan = decide(snapshot, config, history);
    assert_eq!(decide(&copy, config, &mut past), plan);
    assert_eq!(&past, &*history);
    plan
}
