//! Taking in a VM: one that is about to be started, one that runs, or one that an earlier daemon knew.

use std::sync::Arc;

use plimsoll_api::control::Op;
use plimsoll_api::http::{Endpoint, ProcessRef, Register, VmView};
use plimsoll_model::{Sizes, Tunables, VmId, VmName};
use plimsoll_qmp::QmpError;
use plimsoll_units::{Bytes, MemTarget};

use super::{Refusal, change::tuned};
use crate::{
    api::view,
    clock,
    daemon::{Daemon, Inner},
    drivers::{Driver, First, PeerId, Slot, control, qemu},
    events::Kind,
    process::{self, Role, Watch},
    registry::{Vm, admission::admit},
    state::SavedVm,
};

/// The longest path of a Unix socket, in bytes (unix(7): 108 with the end).
const SOCKET_PATH: usize = 107;

/// VMs at a time: far beyond what a host can run, and a bound on what asking can make the daemon hold.
const MAX_VMS: usize = 4096;

/// The longest path that is only shown.
const SHOWN_PATH: usize = 4096;

/// A VM that answered when it was adopted.
struct Found {
    first: First,
    peer: PeerId,
    maxmem: Bytes,
    actual: MemTarget,
}

impl Daemon {
    /// Registers a VM for `uid`.
    pub(crate) async fn register(self: &Arc<Self>, request: Register, uid: u32) -> Result<VmView, Refusal> {
        let tunables = tuned(&request.name, Tunables::default(), &request.tunables)?;
        check_form(&request)?;
        self.lock().check_free(&request.name, &request.endpoint)?;
        let found = if request.adopt { Some(find(&request.endpoint, uid).await?) } else { None };
        let sizes = sizes_of(&request, found.as_ref())?;
        let view = self.change(|inner| self.take_in(inner, request, uid, (sizes, tunables), found))?;
        self.poke.notify_one();
        Ok(view)
    }

    /// Once more under the lock: while a VM was being asked, another may have taken its place.
    fn take_in(
        &self,
        inner: &mut Inner,
        request: Register,
        uid: u32,
        (sizes, tunables): (Sizes, Tunables),
        found: Option<Found>,
    ) -> Result<VmView, Refusal> {
        inner.check_free(&request.name, &request.endpoint)?;
        let process = found.as_ref().and_then(|f| f.peer.pid).and_then(process::now);
        let vmm = process.filter(|_| matches!(request.endpoint, Endpoint::Qemu { .. }));
        if let Some(other) = vmm.and_then(|p| inner.registry.of_vmm(p)) {
            let (pid, other) = (process.map_or(0, |p| p.pid), &other.saved.name);
            return Err(Refusal::conflict(format!(
                "process {pid} is registered already, as `{other}`; a VM cannot be counted twice"
            )));
        }
        if inner.registry.iter().count() >= MAX_VMS {
            return Err(Refusal::impossible(format!(
                "{MAX_VMS} VMs are registered, which is the most there can be"
            )));
        }
        let overhead = self.overhead(&request.endpoint);
        let guaranteed = inner.registry.guaranteed(None);
        admit(&request.name, sizes.memory(), overhead, guaranteed, inner.host.budget)
            .map_err(|e| Refusal::impossible(e.to_string()))?;
        self.forget_namesake(inner, &request.name);
        let id = inner.registry.next_id();
        let mut saved = SavedVm::new(id, request.name, request.endpoint, sizes, uid, request.console);
        saved.tunables = tunables;
        saved.on_exhausted = request.on_exhausted;
        saved.on_pager_loss = request.on_pager_loss;
        let mut vm = Vm::new(saved, overhead, clock::now(), found.is_some());
        if let (Some(found), Some(process)) = (&found, process) {
            vm.peer = Some(found.peer);
            self.learn_process(&mut vm, process);
        }
        self.start_driver(&mut vm, found.map(|f| f.first));
        let mut text = format!(
            "registered by user {uid}: memory {}, maxmem {}, floor {}",
            sizes.memory(),
            sizes.maxmem(),
            sizes.floor()
        );
        for (key, value) in &request.tunables {
            text.push_str(&format!(", {key}={value}"));
        }
        let name = vm.saved.name.clone();
        inner.registry.insert(vm);
        inner.tell(Some(&name), Kind::Registered, text);
        inner
            .registry
            .get(id)
            .map(|vm| view::vm(vm, clock::now()))
            .ok_or_else(|| Refusal::unavailable(format!("`{name}` was forgotten while it was registered")))
    }

    /// A VM's memory beyond its guest's.
    pub(crate) const fn overhead(&self, endpoint: &Endpoint) -> Bytes {
        match endpoint {
            Endpoint::Qemu { .. } => self.config.host.overhead_qemu,
            Endpoint::Uml { .. } => self.config.host.overhead_uml,
        }
    }

    fn start_driver(&self, vm: &mut Vm, first: Option<First>) {
        let (saved, slot) = (&vm.saved, Slot::new(vm.saved.target));
        let maxmem = saved.sizes.maxmem();
        let (endpoint, owner) = (&saved.endpoint, saved.owner_uid);
        vm.driver = Some(Driver::start(endpoint, owner, maxmem, slot, first, &self.poke));
    }

    /// A gone VM makes room for one of the same name.
    fn forget_namesake(&self, inner: &mut Inner, name: &VmName) {
        let gone: Vec<VmId> =
            inner.registry.iter().filter(|vm| vm.saved.name == *name).map(|vm| vm.saved.id).collect();
        for id in gone {
            inner.registry.remove(id);
        }
    }

    /// Notes the process that answers for a VM, if none was told: a QEMU itself, or a User Mode Linux' keeper.
    pub(crate) fn learn_process(&self, vm: &mut Vm, process: ProcessRef) {
        let role = match vm.saved.endpoint {
            Endpoint::Qemu { .. } => Role::Vmm,
            Endpoint::Uml { .. } => Role::Keeper,
        };
        let known = match role {
            Role::Vmm => vm.saved.vmm,
            Role::Keeper => vm.saved.keeper,
        };
        if known.is_none()
            && let Err(error) = self.watch(vm, role, process)
        {
            tracing::debug!(vm = %vm.saved.name, %error, "whoever answers for the VM cannot be watched over");
        }
    }

    /// Notes a process of a VM's and watches over it.
    pub(crate) fn watch(
        &self,
        vm: &mut Vm,
        role: Role,
        process: ProcessRef,
    ) -> Result<(), process::WatchError> {
        let watch = Watch::start(vm.saved.id, role, process, self.deaths.clone())?;
        vm.dirty = true;
        match role {
            Role::Vmm => {
                vm.saved.vmm = Some(process);
                vm.vmm_watch = Some(watch);
            }
            Role::Keeper => {
                vm.saved.keeper = Some(process);
                vm.keeper_watch = Some(watch);
                vm.keeper_gone = false;
            }
        }
        Ok(())
    }

    /// Takes in what an earlier daemon wrote down. A VM whose VMM has ended meanwhile is forgotten.
    pub(crate) fn restore(&self, saved: Vec<SavedVm>) {
        for saved in saved {
            let name = saved.name.clone();
            let kept = self.change(|inner| self.restore_one(inner, saved));
            if !kept {
                self.state.remove(&name);
            }
        }
    }

    fn restore_one(&self, inner: &mut Inner, saved: SavedVm) -> bool {
        let overhead = self.overhead(&saved.endpoint);
        let mut vm = Vm::new(saved, overhead, clock::now(), true);
        let name = vm.saved.name.clone();
        if let Some(vmm) = vm.saved.vmm
            && let Err(error) = self.watch(&mut vm, Role::Vmm, vmm)
        {
            let ended = matches!(error, process::WatchError::Ended(_));
            if ended {
                inner.tell(Some(&name), Kind::Gone, "its VMM ended while no daemon watched".into());
                return false;
            }
            tracing::warn!(vm = %name, %error, "its VMM cannot be watched over");
        }
        if let Some(keeper) = vm.saved.keeper
            && let Err(error) = self.watch(&mut vm, Role::Keeper, keeper)
        {
            if vm.saved.vmm.is_none() {
                let text = format!("its keeper ended while no daemon watched ({error})");
                inner.tell(Some(&name), Kind::Gone, text);
                return false;
            }
            vm.keeper_gone = true;
            vm.told.waits = false;
        }
        if !vm.keeper_gone || vm.is_pod() {
            self.start_driver(&mut vm, None);
        }
        if let Some(driver) = vm.driver.as_mut().filter(|_| vm.keeper_gone) {
            driver.lose_pager();
        }
        inner.registry.insert(vm);
        true
    }
}

impl Inner {
    fn check_free(&self, name: &VmName, endpoint: &Endpoint) -> Result<(), Refusal> {
        if let Some(vm) = self.registry.named(name).filter(|vm| vm.gone.is_none()) {
            let id = vm.saved.id.0;
            return Err(Refusal::conflict(format!(
                "there is a VM called `{name}` already (number {id}); choose another name, or stop that one first"
            )));
        }
        if let Some(vm) = self.registry.at(endpoint) {
            return Err(Refusal::conflict(format!(
                "{} is registered already, as `{}`; a VM cannot be counted twice",
                endpoint.socket(),
                vm.saved.name
            )));
        }
        Ok(())
    }
}

fn check_socket(path: &str) -> Result<(), Refusal> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Refusal::bad_request(format!("the socket `{path}` is not an absolute path")));
    }
    if path.len() > SOCKET_PATH {
        return Err(Refusal::bad_request(format!(
            "the socket's path has {} bytes; a Unix socket's has {SOCKET_PATH} at most",
            path.len()
        )));
    }
    Ok(())
}

fn check_form(request: &Register) -> Result<(), Refusal> {
    check_socket(request.endpoint.socket())?;
    request.endpoint.agent_socket().map_or(Ok(()), check_socket)?;
    request.endpoint.pager_socket().map_or(Ok(()), check_socket)?;
    if request.console.as_ref().is_some_and(|c| c.len() > SHOWN_PATH) {
        return Err(Refusal::bad_request(format!("the console's path has more than {SHOWN_PATH} bytes")));
    }
    if !request.adopt && request.sizes.is_none() {
        return Err(Refusal::impossible(format!(
            "`{}` needs sizes; only a VM that runs can be asked for them",
            request.name
        )));
    }
    Ok(())
}

/// The sizes that were asked for, or what the VM says of itself: the floor is half of what it holds now.
fn sizes_of(request: &Register, found: Option<&Found>) -> Result<Sizes, Refusal> {
    match (request.sizes, found) {
        (Some(sizes), Some(found)) if sizes.maxmem() != found.maxmem => Err(Refusal::impossible(format!(
            "maxmem={} does not fit `{}`: its guest was told it has {}",
            sizes.maxmem(),
            request.name,
            found.maxmem
        ))),
        (Some(sizes), _) => Ok(sizes),
        (None, Some(found)) => {
            let memory = found.actual.0.pages_floor().bytes();
            Sizes::new(memory, found.maxmem, None, None).map_err(|e| {
                Refusal::impossible(format!("`{}` says of itself what cannot be: {e}", request.name))
            })
        }
        (None, None) => Err(Refusal::impossible(format!("`{}` needs sizes", request.name))),
    }
}

/// Asks a running VM.
async fn find(endpoint: &Endpoint, uid: u32) -> Result<Found, Refusal> {
    match endpoint {
        Endpoint::Qemu { qmp, .. } => {
            let mut connection = qemu::Connection::open(qmp.into(), uid).await.map_err(refuse_qemu)?;
            let found = connection.look().await.map_err(|e| refuse_qemu(e.into()))?;
            let peer = connection.peer();
            Ok(Found {
                first: First::Qemu(Box::new(connection)),
                peer,
                maxmem: found.maxmem,
                actual: found.actual,
            })
        }
        Endpoint::Uml { control } => {
            let mut connection = control::Connection::open(control.into(), uid).await.map_err(refuse_uml)?;
            let status = connection.exchange(Op::Status).await.map_err(refuse_uml)?;
            let status =
                status.map_err(|e| Refusal::impossible(format!("{control} refused: {}", e.message)))?;
            let (peer, maxmem) = (connection.peer(), status.maxmem);
            let actual = MemTarget::from_balloon(maxmem, status.actual);
            Ok(Found { first: First::Uml(connection), peer, maxmem, actual })
        }
    }
}

fn refuse_qemu(error: qemu::OpenError) -> Refusal {
    let message = error.to_string();
    match error {
        qemu::OpenError::NotOwner { .. } => Refusal::forbidden(message),
        qemu::OpenError::Qmp(
            QmpError::NoGreeting { .. } | QmpError::NobodyAccepts { .. } | QmpError::Timeout { .. },
        ) => Refusal::unavailable(message),
        qemu::OpenError::Qmp(_) => Refusal::impossible(message),
    }
}

fn refuse_uml(failure: control::Failure) -> Refusal {
    let message = failure.to_string();
    match failure {
        control::Failure::NotOwner { .. } => Refusal::forbidden(message),
        control::Failure::Timeout { .. } => Refusal::unavailable(message),
        control::Failure::Connect { .. }
        | control::Failure::Closed { .. }
        | control::Failure::Io { .. }
        | control::Failure::Garbage { .. } => Refusal::impossible(message),
    }
}
