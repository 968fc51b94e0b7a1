//! Taking in what the drivers saw, and telling what has changed by it.

use plimsoll_api::http::{Endpoint, Life, ProcessRef};
use plimsoll_model::{OnPagerLoss, Plan, VmId, VmState};
use plimsoll_units::{Bytes, MonoTime};

use crate::{
    daemon::{Daemon, Inner},
    drivers::pager::PagerReading,
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
        let pager = vm.driver.as_ref().and_then(|driver| driver.pager()).map(|pager| pager.read());
        let (pager_problem, pager_failure) = match &pager {
            Some(pager) => (pager.problem.clone(), pager.failure.clone()),
            None => (None, None),
        };
        let failure = reading.failure.or(pager_failure);
        vm.process_resident = resident;
        vm.problem = reading.problem.or(pager_problem);
        let before = vm.told.start;
        vm.told.failing &= vm.problem.is_some();
        let said = vm.told.failing;
        vm.told.failing |= failure.is_some();
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
        if let Some((target, error)) = failure {
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
        if let Some(pager) = pager {
            self.absorb_pager(inner, id, now, &pager);
        }
    }

    /// Takes in what a VM's pager said, and tells when its guest begins to wait, and when it goes on.
    fn absorb_pager(&self, inner: &mut Inner, id: VmId, now: MonoTime, reading: &PagerReading) {
        let Some(vm) = inner.registry.get_mut(id) else { return };
        let name = vm.saved.name.clone();
        let keeper = reading.peer.filter(|_| vm.saved.keeper.is_none()).and_then(|peer| peer.pid);
        if let Some(process) = keeper.and_then(process::now)
            && let Err(error) = self.watch(vm, Role::Keeper, process)
        {
            tracing::debug!(vm = %name, %error, "its keeper cannot be watched over");
        }
        let Some(seen) = reading.seen else { return };
        vm.pager = Some(seen);
        // It is started anew to take the guest's memory over, which nobody need hear of.
        let before = if seen.status.mapped { vm.told.pager_epoch.replace(seen.epoch) } else { None };
        let waits = vm.waits(now);
        let waited = std::mem::replace(&mut vm.told.waits, waits);
        let what = seen.status;
        if before.is_some_and(|before| before != seen.epoch) {
            let text = format!("its pager was restarted (start {})", seen.epoch);
            inner.tell(Some(&name), Kind::BackendRestarted, text);
        }
        if waits && !waited {
            inner.metrics.stalls.inc();
            let text = format!(
                "its guest waits for memory: {}M of the {}M it may have are populated, and {} of its threads stand still",
                what.resident.whole_mib(),
                what.limit.whole_mib(),
                what.stalled.map_or(0, |stalled| stalled.waiting)
            );
            inner.tell(Some(&name), Kind::PodExhausted, text);
        } else if waited && !waits {
            let text = format!("its guest goes on: it may have {}M", what.limit.whole_mib());
            inner.tell(Some(&name), Kind::PodRelieved, text);
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
                if vm.is_pod() {
                    self.lose_pager(inner, death.vm);
                } else {
                    vm.driver = None;
                }
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

    /// A VM's pager is gone for good; its VMM is spoken to as before.
    fn lose_pager(&self, inner: &mut Inner, id: VmId) {
        let Some(vm) = inner.registry.get_mut(id) else { return };
        if let Some(driver) = &mut vm.driver {
            driver.lose_pager();
        }
        vm.told.waits = false;
        let name = vm.saved.name.clone();
        let text = match vm.saved.on_pager_loss {
            OnPagerLoss::Stall => {
                "its pager is gone for good: the guest stands still at the next page it has no memory for, and can only be stopped"
            }
            OnPagerLoss::Open => {
                "its pager is gone for good: the guest goes on, and nothing limits it but its balloon"
            }
        };
        inner.tell(Some(&name), Kind::PagerLost, text.into());
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
            let text = if vm.is_pod() {
                "its keeper has ended while its VMM runs: what it may have can no longer be enforced"
            } else {
                "its keeper has ended while its VMM runs: its target can no longer be enforced, and it is \
                 reckoned with all it was told of"
            };
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
            VmState::Stalled => inner.tell(Some(&name), Kind::Stalled, text),
            VmState::Ok | VmState::Held | VmState::NoDriver | VmState::Unreachable => {
                if before == Some(VmState::Distressed) {
                    inner.tell(Some(&name), Kind::Relieved, "no longer in distress".into());
                }
            }
        }
    }
}
