//! Changing, stopping and forgetting a VM that is registered.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_api::http::{Hold, Patch, ProcessRef, StopHow, VmView};
use plimsoll_model::{Tunables, VmId, VmName};

use super::Refusal;
use crate::{
    api::view,
    clock,
    daemon::{Daemon, Inner},
    drivers::Errand,
    events::Kind,
    process::{self, Role},
    registry::{Vm, admission::admit},
};

/// How long an answer waits for the tick that carries out what was asked.
const TICK_WAIT: Duration = Duration::from_secs(1);

/// How long a VMM may take to do what an operator wants.
const ERRAND_WAIT: Duration = Duration::from_secs(3);

impl Inner {
    /// The VM of that name, which must not be gone.
    fn alive(&self, name: &VmName) -> Result<VmId, Refusal> {
        let vm = self.registry.named(name).ok_or_else(|| super::unknown(name))?;
        match vm.gone {
            None => Ok(vm.saved.id),
            Some(_) => Err(Refusal::impossible(format!("`{name}` has ended; nothing of it can be changed"))),
        }
    }

    /// The VM of that name if `uid` may change it.
    fn owned(&mut self, name: &VmName, uid: u32, what: &str) -> Result<&mut Vm, Refusal> {
        let id = self.alive(name)?;
        let vm = self.registry.get_mut(id).ok_or_else(|| super::unknown(name))?;
        allowed(vm, uid, what)?;
        Ok(vm)
    }
}

/// Only the owner and root may change a VM; membership of the API's group is no licence for others' VMs.
fn allowed(vm: &Vm, uid: u32, what: &str) -> Result<(), Refusal> {
    let (name, owner) = (&vm.saved.name, vm.saved.owner_uid);
    if uid == 0 || uid == owner {
        return Ok(());
    }
    Err(Refusal::forbidden(format!(
        "user {uid} may not {what} `{name}`, which belongs to user {owner}; ask that user or root"
    )))
}

/// The settings after what was asked for: all of it or nothing.
pub(super) fn tuned(
    name: &VmName,
    before: Tunables,
    asked: &BTreeMap<String, String>,
) -> Result<Tunables, Refusal> {
    let mut tunables = before;
    for (key, value) in asked {
        tunables.set(key, value).map_err(|e| Refusal::impossible(format!("`{name}`: {e}")))?;
    }
    if tunables.frontswap_selfshrinking {
        return Err(Refusal::impossible(format!(
            "`{name}`: frontswap_selfshrinking=on needs a swap store to shrink, and `{name}` has none"
        )));
    }
    Ok(tunables)
}

/// A process must run, and be the asker's own.
fn check_process(name: &VmName, process: ProcessRef, uid: u32) -> Result<(), Refusal> {
    let pid = process.pid;
    if process::now(pid) != Some(process) {
        let ended = process::WatchError::Ended(process);
        return Err(Refusal::impossible(format!("`{name}`: {ended}")));
    }
    if uid != 0 && process::owner(pid) != Some(uid) {
        return Err(Refusal::forbidden(format!(
            "process {pid} is not user {uid}'s; it cannot be `{name}`'s"
        )));
    }
    Ok(())
}

impl Daemon {
    /// Changes a VM.
    pub(crate) async fn patch(&self, name: &VmName, patch: Patch, uid: u32) -> Result<VmView, Refusal> {
        let ticks = self.change(|inner| {
            self.patch_now(inner, name, patch, uid)?;
            Ok(inner.last.ticks)
        })?;
        self.after_tick(name, ticks).await
    }

    /// All of it or nothing.
    fn patch_now(&self, inner: &mut Inner, name: &VmName, patch: Patch, uid: u32) -> Result<(), Refusal> {
        let vm = inner.owned(name, uid, "change")?;
        let (id, overhead, before) = (vm.saved.id, vm.overhead, vm.saved.sizes);
        if patch.on_exhausted.is_some() && !vm.is_pod() {
            return Err(Refusal::impossible(format!(
                "`{name}`: on-exhausted is for memory that is populated on demand, which `{name}`'s is not"
            )));
        }
        let mut sizes = before;
        if let Some(memory) = patch.memory {
            sizes = sizes.with_memory(memory).map_err(|e| Refusal::impossible(format!("`{name}`: {e}")))?;
        }
        if let Some(weight) = patch.weight {
            sizes = sizes.with_weight(weight).map_err(|e| Refusal::impossible(format!("`{name}`: {e}")))?;
        }
        let tunables = tuned(name, vm.saved.tunables, &patch.tunables)?;
        // Less memory always fits, also where a budget has shrunk below what was guaranteed.
        if sizes.memory() > before.memory() {
            let guaranteed = inner.registry.guaranteed(Some(id));
            admit(name, sizes.memory(), overhead, guaranteed, inner.host.budget)
                .map_err(|e| Refusal::impossible(e.to_string()))?;
        }
        for process in [patch.vmm, patch.keeper].into_iter().flatten() {
            check_process(name, process, uid)?;
        }
        if let Some(process) = patch.vmm
            && let Some(other) = inner.registry.of_vmm(process).filter(|other| other.saved.id != id)
        {
            let (pid, other) = (process.pid, &other.saved.name);
            return Err(Refusal::conflict(format!(
                "process {pid} is registered already, as `{other}`'s VMM"
            )));
        }
        let vm = inner.owned(name, uid, "change")?;
        for (role, process) in [(Role::Vmm, patch.vmm), (Role::Keeper, patch.keeper)] {
            let Some(process) = process else { continue };
            self.watch(vm, role, process).map_err(|e| Refusal::impossible(format!("`{name}`: {e}")))?;
        }
        let tuned = tunables != vm.saved.tunables;
        if tuned {
            vm.saved.tunables = tunables;
            vm.dirty = true;
        }
        if let Some(on_exhausted) = patch.on_exhausted {
            vm.saved.on_exhausted = on_exhausted;
            vm.dirty = true;
        }
        if sizes != before {
            vm.saved.sizes = sizes;
            vm.baseline_by = patch.memory.map(|_| uid);
            vm.dirty = true;
        }
        if tuned {
            let settings: Vec<String> = patch.tunables.iter().map(|(k, v)| format!("{k}={v}")).collect();
            inner.tell(Some(name), Kind::Tuned, format!("{} set by user {uid}", settings.join(" ")));
        }
        Ok(())
    }

    /// Pins a VM.
    pub(crate) async fn hold(&self, name: &VmName, hold: Hold, uid: u32) -> Result<VmView, Refusal> {
        let ticks = self.change(|inner| {
            let vm = inner.owned(name, uid, "hold")?;
            let wanted = hold.target.unwrap_or(vm.saved.target);
            let (sizes, pin) = (vm.saved.sizes, vm.saved.sizes.clamp(wanted.0));
            if wanted.0 < sizes.floor() || wanted.0 > sizes.maxmem() {
                return Err(Refusal::impossible(format!(
                    "`{name}` cannot be held at {wanted}: its floor is {}, its maxmem {}",
                    sizes.floor(),
                    sizes.maxmem()
                )));
            }
            vm.saved.hold = Some(pin);
            vm.held_by = Some(uid);
            vm.dirty = true;
            inner.tell(Some(name), Kind::Held, format!("held at {pin} by user {uid}"));
            Ok(inner.last.ticks)
        })?;
        self.after_tick(name, ticks).await
    }

    /// Ends a pin.
    pub(crate) async fn release(&self, name: &VmName, uid: u32) -> Result<VmView, Refusal> {
        let ticks = self.change(|inner| {
            let vm = inner.owned(name, uid, "release")?;
            let Some(pin) = vm.saved.hold.take() else {
                return Err(Refusal::impossible(format!(
                    "`{name}` is not held; there is nothing to release"
                )));
            };
            vm.held_by = None;
            vm.dirty = true;
            inner.tell(Some(name), Kind::Released, format!("released from {pin} by user {uid}"));
            Ok(inner.last.ticks)
        })?;
        self.after_tick(name, ticks).await
    }

    /// A step of stopping a VM.
    pub(crate) async fn stop(&self, name: &VmName, how: StopHow, uid: u32) -> Result<VmView, Refusal> {
        let waiting = self.change(|inner| {
            let vm = inner.owned(name, uid, "stop")?;
            let sent = match (how, &vm.driver) {
                (StopHow::Announce, _) => Ok(None),
                (_, None) => Err("its keeper has ended".to_owned()),
                (StopHow::Powerdown, Some(driver)) => driver.slot().send(Errand::Powerdown).map(Some),
                (StopHow::Quit, Some(driver)) => driver.slot().send(Errand::Quit).map(Some),
            };
            let waiting = sent.map_err(|why| Refusal::unavailable(format!("cannot stop `{name}`: {why}")))?;
            if vm.stopping.replace(clock::now()).is_none() {
                inner.tell(Some(name), Kind::Stopping, format!("being stopped by user {uid}"));
            }
            Ok(waiting)
        })?;
        if let Some(receiver) = waiting {
            let why = match tokio::time::timeout(ERRAND_WAIT, receiver).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(why))) => Some(why),
                Ok(Err(_)) => Some("its connection was lost meanwhile".into()),
                Err(_) => Some(format!("its VMM did not answer within {} s", ERRAND_WAIT.as_secs())),
            };
            if let Some(why) = why {
                return Err(Refusal::unavailable(format!("cannot stop `{name}`: {why}")));
            }
        }
        self.show(name)
    }

    /// Forgets a VM and leaves it running.
    pub(crate) fn forget(&self, name: &VmName, uid: u32) -> Result<VmView, Refusal> {
        let seen = self.change(|inner| {
            let vm = inner.registry.named(name).ok_or_else(|| super::unknown(name))?;
            allowed(vm, uid, "forget")?;
            let seen = view::vm(vm, clock::now());
            inner.registry.remove(seen.id);
            inner.tell(Some(name), Kind::Forgotten, format!("forgotten at the wish of user {uid}"));
            inner.forgotten.push(name.clone());
            Ok(seen)
        })?;
        self.poke.notify_one();
        Ok(seen)
    }

    /// The VM after the next tick, which does what was just asked. If the tick is late, as it is.
    async fn after_tick(&self, name: &VmName, ticks: u64) -> Result<VmView, Refusal> {
        self.poke.notify_one();
        let mut ended = self.ticks.subscribe();
        // Either way the VM is shown as it is then.
        let _ = tokio::time::timeout(TICK_WAIT, ended.wait_for(|n| *n > ticks)).await;
        self.show(name)
    }

    /// The VM as it is.
    pub(crate) fn show(&self, name: &VmName) -> Result<VmView, Refusal> {
        let inner = self.lock();
        let vm = inner.registry.named(name).ok_or_else(|| super::unknown(name))?;
        Ok(view::vm(vm, clock::now()))
    }
}
