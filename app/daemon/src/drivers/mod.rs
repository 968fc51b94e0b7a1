//! The ways to speak to a VM: one task for each VM, which owns the connection and nothing else, one that listens for
//! the agent's distress, and where its memory is populated on demand two for its pager.

mod agent;
mod alarm;
mod anew;
mod backoff;
pub(crate) mod control;
mod distress;
pub(crate) mod pager;
mod peer;
pub(crate) mod qemu;
pub(crate) mod slot;
pub(crate) mod uml;

use std::sync::Arc;

use plimsoll_api::http::Endpoint;
use plimsoll_units::{Bytes, MemTarget, MonoTime};
use tokio::{sync::Notify, task::JoinHandle};

use agent::Ear;
use alarm::Alarm;
use pager::{Pager, PagerSlot};
pub(crate) use slot::{Errand, Observation, PeerId, Round, Slot};

/// An observation older than this no longer counts: its VM is unreachable.
pub(crate) const STALE_MS: u64 = 3_000;

/// A connection that was made before its driver was started, when a running VM was adopted.
#[derive(Debug)]
pub(crate) enum First {
    /// To a QEMU.
    Qemu(Box<qemu::Connection>),
    /// To a back end.
    Uml(control::Connection),
}

/// A VM's driver; dropping it ends its tasks and hangs up.
#[derive(Debug)]
pub(crate) struct Driver {
    slot: Arc<Slot>,
    pager: Option<Arc<PagerSlot>>,
    /// The one that drives, and the one that listens for the agent's distress.
    tasks: Vec<JoinHandle<()>>,
    /// Those that speak to the pager.
    pager_tasks: Vec<JoinHandle<()>>,
}

impl Driver {
    /// Starts speaking to a VM. `wake` is told when the agent in the guest says that the guest is in distress.
    pub(crate) fn start(
        endpoint: &Endpoint,
        owner: u32,
        maxmem: Bytes,
        slot: Arc<Slot>,
        first: Option<First>,
        wake: &Arc<Notify>,
    ) -> Self {
        let alarm = Alarm::new(Arc::clone(&slot), Arc::clone(wake));
        let pager = endpoint
            .pager_socket()
            .map(|control| PagerSlot::new(Pager { control: control.into(), owner, maxmem }, slot.target()));
        let pager_tasks = pager.iter().flat_map(|pager| {
            let listen = pager::listen(Arc::clone(pager), Arc::clone(wake));
            [tokio::spawn(listen), tokio::spawn(pager::drive(Arc::clone(pager)))]
        });
        let pager_tasks = pager_tasks.collect();
        let tasks = match endpoint {
            Endpoint::Qemu { qmp, agent, pager: _ } => {
                let ear = agent.as_ref().map(|_| Arc::new(Ear::default()));
                let listen = ear.iter().zip(agent).map(|(ear, socket)| {
                    tokio::spawn(Arc::clone(ear).listen(socket.into(), owner, alarm.clone()))
                });
                let mut tasks: Vec<_> = listen.collect();
                let qemu = qemu::Qemu { qmp: qmp.into(), owner, maxmem };
                let first = match first {
                    Some(First::Qemu(connection)) => Some(*connection),
                    Some(First::Uml(_)) | None => None,
                };
                tasks.push(tokio::spawn(qemu::drive(qemu, Arc::clone(&slot), first, (ear, pager.clone()))));
                tasks
            }
            Endpoint::Uml { control } => {
                let uml = uml::Uml { control: control.into(), owner, maxmem };
                let first = match first {
                    Some(First::Uml(connection)) => Some(connection),
                    Some(First::Qemu(_)) | None => None,
                };
                let listen = distress::listen(uml.control.clone(), owner, alarm);
                vec![tokio::spawn(uml::drive(uml, Arc::clone(&slot), first)), tokio::spawn(listen)]
            }
        };
        Self { slot, pager, tasks, pager_tasks }
    }

    pub(crate) const fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    pub(crate) const fn pager(&self) -> Option<&Arc<PagerSlot>> {
        self.pager.as_ref()
    }

    /// Sets the target; the drivers apply it at once, and again whenever it is lost.
    pub(crate) fn set_target(&self, target: MemTarget) {
        if let Some(pager) = &self.pager {
            pager.set_target(target);
        }
        self.slot.set_target(target);
    }

    /// The pager is gone for good; the VMM is spoken to as before.
    pub(crate) fn lose_pager(&mut self) {
        if let Some(pager) = self.pager.take() {
            pager.lose();
        }
        self.pager_tasks.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.tasks.iter().chain(&self.pager_tasks).for_each(JoinHandle::abort);
    }
}

/// Whether two reckonings of a moment may mean the same one. Statistics come once a second.
pub(crate) fn same_moment(a: MonoTime, b: MonoTime) -> bool {
    a.0.abs_diff(b.0) < 300_000
}
