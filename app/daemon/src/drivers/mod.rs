//! The ways to speak to a VM: one task for each VM, which owns the connection and nothing else, and one that listens
//! for the agent's distress.

mod agent;
mod alarm;
mod backoff;
pub(crate) mod control;
mod distress;
mod peer;
pub(crate) mod qemu;
pub(crate) mod slot;
pub(crate) mod uml;

use std::sync::Arc;

use plimsoll_api::http::Endpoint;
use plimsoll_units::{Bytes, MonoTime};
use tokio::{sync::Notify, task::JoinHandle};

use agent::Ear;
use alarm::Alarm;
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
    /// The one that drives, and the one that listens for the agent's distress.
    tasks: Vec<JoinHandle<()>>,
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
        let tasks = match endpoint {
            Endpoint::Qemu { qmp, agent } => {
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
                tasks.push(tokio::spawn(qemu::drive(qemu, Arc::clone(&slot), first, ear)));
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
        Self { slot, tasks }
    }

    pub(crate) const fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Whether two reckonings of a moment may mean the same one. Statistics come once a second.
pub(crate) fn same_moment(a: MonoTime, b: MonoTime) -> bool {
    a.0.abs_diff(b.0) < 300_000
}
