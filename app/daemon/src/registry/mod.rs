//! The VMs by number and by name.

pub(crate) mod admission;
mod vm;

use std::collections::BTreeMap;

use plimsoll_api::http::{Endpoint, ProcessRef};
use plimsoll_model::{VmId, VmName};
use plimsoll_units::Bytes;

pub(crate) use vm::Vm;

/// All registered VMs, those that are gone and not yet forgotten included.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    vms: BTreeMap<VmId, Vm>,
    last_id: u64,
}

impl Registry {
    /// The next number. Numbers are never used again while the daemon runs.
    pub(crate) fn next_id(&mut self) -> VmId {
        self.last_id = self.last_id.saturating_add(1);
        VmId(self.last_id)
    }

    /// Adds a VM under the number it has.
    pub(crate) fn insert(&mut self, vm: Vm) {
        self.last_id = self.last_id.max(vm.saved.id.0);
        self.vms.insert(vm.saved.id, vm);
    }

    pub(crate) fn remove(&mut self, id: VmId) -> Option<Vm> {
        self.vms.remove(&id)
    }

    pub(crate) fn get(&self, id: VmId) -> Option<&Vm> {
        self.vms.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: VmId) -> Option<&mut Vm> {
        self.vms.get_mut(&id)
    }

    /// By rising number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values()
    }

    /// By rising number.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Vm> {
        self.vms.values_mut()
    }

    /// The VM of that name; one that runs before one that is gone.
    pub(crate) fn named(&self, name: &VmName) -> Option<&Vm> {
        let all = || self.iter().filter(|vm| vm.saved.name == *name);
        all().find(|vm| vm.gone.is_none()).or_else(|| all().last())
    }

    /// The VM that is spoken to there.
    pub(crate) fn at(&self, endpoint: &Endpoint) -> Option<&Vm> {
        self.iter().find(|vm| vm.is_at(endpoint))
    }

    /// The VM whose guest that process runs.
    pub(crate) fn of_vmm(&self, process: ProcessRef) -> Option<&Vm> {
        self.iter().find(|vm| vm.gone.is_none() && vm.saved.vmm == Some(process))
    }

    /// What is guaranteed to all but `except`: floors and overheads.
    pub(crate) fn guaranteed(&self, except: Option<VmId>) -> Bytes {
        self.iter().filter(|vm| Some(vm.saved.id) != except).map(Vm::guaranteed).sum()
    }
}
