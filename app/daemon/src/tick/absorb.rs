//! Taking in what the drivers saw, and telling what has changed by it.

use plimsoll_api::http::{Endpoint, Life, ProcessRef};
use plimsoll_model::{Plan, VmId, VmState};
use plimsoll_units::{Bytes, MonoTime};

use crate::{
    daemon::{Daemon, Inner},
    events::Kind,
    process::{self, Death, Role},
};

impl Daemon {
    /// Takes in every VM's reading; `resident` is what the kernel counts behind the VMMs, by rising number.
    pub(super) fn absorb(&self, inner: &mut Inner, now: MonoTime, resident: &[(VmId, Bytes)]) {
        let ids: Vec<VmId> = inner.registry.iter().map(|vm| vm.saved.id).collect();
        for id in ids {
            let counted = resident.binary_search_by_key(&id, |(id, _)| *id).ok();
            let counted = counted.and_then(|index| resident.get(index)).map(|(_, bytes)| *bytes);
            self.absorb_one(inner, id, now, counted);
            self.expire(inner, id, now);
            tell_life(inner, id, now);
        }
    }

    fn absorb_one(&self, inner: &mut Inner, id: VmId, now: MonoTime, resident: Option<Bytes>) {
        let Some(vm) = inner.registry.get_mut(id) else { return };
        let Some(reading) = vm.driver.as_ref().map(|driver| driver.slot().read()) else { return };
        let name = vm.saved.name.clone();
        vm.process_resident = resident;
        vm.problem = reading.problem;
        let before = vm.told.start;
        vm.told.failing &= vm.problem.is_some();
        let said = vm.told.failing;
        vm.told.failing |= reading.failure.is_some();
        if let Some(seen) = reading.seen {
            vm.told.start = Some((seen.generation, seen.epoch));
            vm.seen = Some(seen);
        }
        let after = vm.told.start;
        vm.rebooted = before.zip(after).is_some_and(|((before, _), (after, _))| before != after);
        let stranger = reading.peer.filter(|_| vm.peer != reading.peer).and_then(|peer| peer.pid);
        vm.peer = reading.peer;
        if let Some(process) = stranger.and_then(process::now) {
            self.meet(inner, id, process, now);
        }
        if let Some((target, error)) = reading.failure {
            inner.metrics.failures.inc();
            if !said {
                tracing::warn!(vm = %name, %target, %error, "a target could not be set; tried again each tick");
            }
            inner.journal.outcome(&name, target, &error);
        }
        if let (Some((generation, epoch)), Some((generation_now, epoch_now))) = (before, after) {
            // The first one is its start.
            if generation_now != generation && generation > 0 {
                let text =
                    format!("its guest was rebooted (start {generation_now}); the target is applied again");
                inner.tell(Some(&name), Kind::Rebooted, text);
            }
            if epoch_now != epoch {
                let text = format!("its back end was restarted (start {epoch_now})");
                inner.tell(Some(&name), Kind::BackendRestarted, text);
            }
        }
    }

    /// Somebody answers for the VM who was not known: note the process, unless it runs another VM's guest.
    fn meet(&self, inner: &mut Inner, id: VmId, process: ProcessRef, now: MonoTime) {
        let Some(vm) = inner.registry.get(id) else { return };
        let is_vmm = matches!(vm.saved.endpoint, Endpoint::Qemu { .. });
        let other = inner.registry.of_vmm(process).filter(|other| is_vmm && other.saved.id != id);
        if let Some(other) = other {
            let (pid, other) = (process.pid, &other.saved.name);
            let text =
                format!("process {pid} answers for it, and that is `{other}` already; not counted twice");
            self.end(inner, id, now, text);
        } else if let Some(vm) = inner.registry.get_mut(id) {
            self.learn_process(vm, process);
        }
    }

    /// Gives up on a VM that never came, and forgets one that ended long ago.
    fn expire(&self, inner: &mut Inner, id: VmId, now: MonoTime) {
        let Some(vm) = inner.registry.get(id) else { return };
        let name = vm.saved.name.clone();
        let waited = std::time::Duration::from_millis(now.millis_since(vm.since));
        let nobody = vm.saved.vmm.is_none() && vm.saved.keeper.is_none();
        if vm.gone.is_none() && vm.seen.is_none() && nobody && waited > self.config.start_timeout {
            let text = format!("nobody answered for it within {} s of its registration", waited.as_secs());
            self.end(inner, id, now, text);
        } else if let Some(gone) = vm.gone
            && u128::from(now.millis_since(gone)) >= self.config.forget_after.as_millis()
        {
            inner.registry.remove(id);
            inner.tell(Some(&name), Kind::Forgotten, "forgotten, since it has ended".into());
        }
    }

    /// A process of a VM's has ended.
    pub(super) fn note_death(&self, inner: &mut Inner, death: Death, now: MonoTime) {
        let Some(vm) = inner.registry.get_mut(death.vm).filter(|vm| vm.gone.is_none()) else { return };
        let known = match death.role {
            Role::Vmm => vm.saved.vmm,
            Role::Keeper => vm.saved.keeper,
        };
        if known != Some(death.process) {
            return;
        }
        let pid = death.process.pid;
        match (death.role, vm.saved.vmm) {
            (Role::Vmm, _) => self.end(inner, death.vm, now, format!("its VMM (process {pid}) has ended")),
            // The keeper ends by itself when its VMM has.
            (Role::Keeper, Some(vmm)) if process::runs(vmm) => {
                vm.keeper_gone = true;
                vm.driver = None;
            }
            (Role::Keeper, Some(vmm)) => {
                self.end(inner, death.vm, now, format!("its VMM (process {}) has ended", vmm.pid));
            }
            (Role::Keeper, None) => {
                self.end(
                    inner,
                    death.vm,
                    now,
                    format!("its keeper (process {pid}) has ended, and no VMM of it is known"),
                );
            }
        }
    }

    /// The VM is gone: it claims nothing, and a daemon that comes back need not look for it.
    fn end(&self, inner: &mut Inner, id: VmId, now: MonoTime, text: String) {
        let Some(vm) = inner.registry.get_mut(id) else { return };
        vm.end(now);
        vm.told.life = Some(Life::Gone);
        let name = vm.saved.name.clone();
        inner.tell(Some(&name), Kind::Gone, text);
        inner.forgotten.push(name);
    }
}

/// Tells of a step in a VM's life.
fn tell_life(inner: &mut Inner, id: VmId, now: MonoTime) {
    let Some(vm) = inner.registry.get_mut(id) else { return };
    let life = vm.life(now);
    let before = vm.told.life.replace(life);
    if before == Some(life) {
        return;
    }
    let name = vm.saved.name.clone();
    let why = vm.problem.clone().unwrap_or_else(|| "it does not answer".into());
    match life {
        Life::Running => inner.tell(Some(&name), Kind::Running, "its VMM answers".into()),
        Life::Unreachable => inner.tell(Some(&name), Kind::Unreachable, why),
        Life::Unprotected => {
            let text = "its keeper has ended while its VMM runs: its target can no longer be enforced, and it is \
                        reckoned with all it was told of";
            inner.tell(Some(&name), Kind::Unprotected, text.into());
        }
        // Told where they happen.
        Life::Starting | Life::Stopping | Life::Gone => {}
    }
}

/// Takes in the arbiter's words and tells of those that changed.
pub(super) fn note_verdicts(inner: &mut Inner, plan: &Plan) {
    for verdict in &plan.verdicts {
        let Some(vm) = inner.registry.get_mut(verdict.vm) else { continue };
        vm.verdict = Some(*verdict);
        let before = vm.told.state.replace(verdict.state);
        if before == Some(verdict.state) {
            continue;
        }
        let name = vm.saved.name.clone();
        let text = verdict.reason.to_string();
        match verdict.state {
            VmState::Distressed => {
                inner.metrics.distress.inc();
                inner.tell(Some(&name), Kind::Distressed, text);
            }
            VmState::Stuck => {
                inner.metrics.stuck.inc();
                inner.tell(Some(&name), Kind::Stuck, text);
            }
            VmState::Ok | VmState::Held | VmState::NoDriver | VmState::Unreachable => {
                if before == Some(VmState::Distressed) {
                    inner.tell(Some(&name), Kind::Relieved, "no longer in distress".into());
                }
            }
        }
    }
}
