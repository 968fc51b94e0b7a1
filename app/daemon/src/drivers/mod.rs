//! The ways to speak to a VM: one task for each VM, which owns the connection and nothing else.

mod backoff;
pub(crate) mod control;
pub(crate) mod qemu;
pub(crate) mod slot;
pub(crate) mod uml;

use std::sync::Arc;

use plimsoll_api::http::Endpoint;
use plimsoll_units::{Bytes, MonoTime};
use tokio::task::JoinHandle;

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

/// A VM's driver; dropping it ends the task and hangs up.
#[derive(Debug)]
pub(crate) struct Driver {
    slot: Arc<Slot>,
    task: JoinHandle<()>,
}

impl Driver {
    /// Starts speaking to a VM.
    pub(crate) fn start(
        endpoint: &Endpoint,
        owner: u32,
        maxmem: Bytes,
        slot: Arc<Slot>,
        first: Option<First>,
    ) -> Self {
        let task = match endpoint {
            Endpoint::Qemu { qmp, .. } => {
                let qemu = qemu::Qemu { qmp: qmp.into(), owner, maxmem };
                let first = match first {
                    Some(First::Qemu(connection)) => Some(*connection),
                    Some(First::Uml(_)) | None => None,
                };
                tokio::spawn(qemu::drive(qemu, Arc::clone(&slot), first))
            }
            Endpoint::Uml { control } => {
                let uml = uml::Uml { control: control.into(), owner, maxmem };
                let first = match first {
                    Some(First::Uml(connection)) => Some(connection),
                    Some(First::Qemu(_)) | None => None,
                };
                tokio::spawn(uml::drive(uml, Arc::clone(&slot), first))
            }
        };
        Self { slot, task }
    }

    pub(crate) const fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether two reckonings of a moment may mean the same one. Statistics come once a second.
pub(crate) fn same_moment(a: MonoTime, b: MonoTime) -> bool {
    a.0.abs_diff(b.0) < 300_000
}
