//! What is known, as the API shows it.

use plimsoll_api::http::{AgentView, Explain, HostView, ListView, PagerView, VmView};
use plimsoll_model::{Link, Reason, Source, VmName, VmState};
use plimsoll_units::{Bytes, MonoTime};

use crate::{
    clock,
    daemon::{Daemon, Inner},
    ops::Refusal,
    registry::Vm,
};

/// A VM.
pub(crate) fn vm(vm: &Vm, now: MonoTime) -> VmView {
    let (saved, link) = (&vm.saved, vm.link(now));
    let (state, reason) = word(vm, link);
    let stats = vm.seen.as_ref().and_then(|seen| seen.stats);
    let agent = vm.seen.as_ref().and_then(|seen| seen.agent);
    VmView {
        id: saved.id,
        name: saved.name.clone(),
        endpoint: saved.endpoint.clone(),
        life: vm.life(now),
        state,
        link,
        sizes: saved.sizes,
        target: saved.target,
        actual: vm.actual(),
        resident: vm.resident(),
        overhead: vm.overhead,
        hold: saved.hold,
        tunables: saved.tunables,
        source: vm.verdict.map_or(Source::Nobody, |v| v.source),
        need: vm.verdict.and_then(|v| v.need),
        spare: vm.verdict.map_or(Bytes::ZERO, |v| v.spare),
        stats,
        stats_age_ms: stats.map(|s| now.millis_since(s.at)),
        agent: agent.map(|a| AgentView { age_ms: now.millis_since(a.at), stats: a.stats }),
        agent_line: vm.seen.as_ref().and_then(|seen| seen.agent_line),
        reason,
        reason_text: reason.to_string(),
        owner_uid: saved.owner_uid,
        vmm: saved.vmm,
        keeper: saved.keeper,
        console: saved.console.clone(),
        backend: vm.seen.as_ref().and_then(|seen| seen.backend),
        pager: pager(vm, now),
        problem: vm.problem.clone(),
        last_change: vm.changes.front().cloned(),
    }
}

fn pager(vm: &Vm, now: MonoTime) -> Option<PagerView> {
    vm.is_pod().then(|| PagerView {
        on_exhausted: vm.saved.on_exhausted,
        on_pager_loss: vm.saved.on_pager_loss,
        lost: vm.keeper_gone,
        epoch: vm.pager.map_or(0, |pager| pager.epoch),
        age_ms: vm.pager.map(|pager| now.millis_since(pager.at)),
        status: vm.pager.map(|pager| pager.status),
    })
}

/// The arbiter's word; before the first tick that saw the VM, what its connection says.
fn word(vm: &Vm, link: Link) -> (VmState, Reason) {
    match (vm.verdict, vm.saved.hold, link) {
        // Silent since the last tick.
        (Some(_), _, Link::Unreachable) => (VmState::Unreachable, Reason::Unreachable),
        (Some(verdict), ..) => (verdict.state, verdict.reason),
        (None, ..) if vm.gone.is_some() => (VmState::Unreachable, Reason::Unreachable),
        (None, Some(hold), _) => (VmState::Held, Reason::Held { hold }),
        (None, None, Link::NoDriver) => (VmState::NoDriver, Reason::NoDriver),
        (None, None, Link::Unreachable) => (VmState::Unreachable, Reason::Unreachable),
        (None, None, Link::Up) => (VmState::Ok, Reason::Baseline { memory: vm.saved.sizes.memory() }),
    }
}

impl Daemon {
    fn host_of(&self, inner: &Inner) -> HostView {
        let alive = || inner.registry.iter().filter(|vm| vm.gone.is_none());
        HostView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cgroup: self.config.host.cgroup.clone(),
            state: inner.last.state,
            sample: inner.host,
            claimed: inner.last.claimed,
            guaranteed: inner.registry.guaranteed(None),
            told: alive().map(|vm| vm.saved.sizes.maxmem()).sum(),
            waiting: inner.last.waiting,
            ticks: inner.last.ticks,
            tick_us: inner.last.micros,
        }
    }

    /// The host.
    pub(crate) fn host(&self) -> HostView {
        self.host_of(&self.lock())
    }

    /// The host and every VM by name.
    pub(crate) fn list(&self) -> ListView {
        let (inner, now) = (self.lock(), clock::now());
        let mut vms: Vec<VmView> = inner.registry.iter().map(|known| vm(known, now)).collect();
        vms.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
        ListView { host: self.host_of(&inner), vms }
    }

    /// Why a VM's target is what it is.
    pub(crate) fn explain(&self, name: &VmName) -> Result<Explain, Refusal> {
        let seen = self.show(name)?;
        let inner = self.lock();
        let changes = inner.registry.get(seen.id).map(|vm| vm.changes.iter().cloned().collect());
        Ok(Explain { vm: seen, host: self.host_of(&inner), changes: changes.unwrap_or_default() })
    }
}
