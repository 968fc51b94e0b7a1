//! Stopping a VM whose guest has used up what it may have, where that was wished for.

use std::time::Duration;

use plimsoll_api::http::ProcessRef;
use plimsoll_model::{Reason, Standstill, VmId};
use plimsoll_units::MonoTime;

use crate::{
    daemon::{Daemon, Inner},
    drivers::Errand,
    events::Kind,
    process,
};

/// How long a VMM may take to end when it was told to. One whose CPU waits for memory cannot: it waits for its CPU.
const QUIT_WAIT: Duration = Duration::from_secs(2);

impl Daemon {
    /// Stops the VMs of which the arbiter says that they are to be stopped.
    pub(super) fn stop_exhausted(&self, inner: &mut Inner, now: MonoTime) {
        let is_due = |reason| matches!(reason, Reason::Stalled { why: Standstill::Stop, .. });
        let due: Vec<(VmId, String)> = inner
            .registry
            .iter()
            .filter(|vm| vm.gone.is_none() && !vm.told.stopped)
            .filter_map(|vm| vm.verdict.map(|verdict| (vm.saved.id, verdict.reason)))
            .filter(|(_, reason)| is_due(*reason))
            .map(|(id, reason)| (id, reason.to_string()))
            .collect();
        for (id, reason) in due {
            let Some(vm) = inner.registry.get_mut(id) else { continue };
            vm.told.stopped = true;
            vm.stopping = Some(now);
            if let Some(driver) = &vm.driver
                && let Err(why) = driver.slot().send(Errand::Quit)
            {
                tracing::info!(vm = %vm.saved.name, %why, "its VMM cannot be told to end");
            }
            if let Some(vmm) = vm.saved.vmm {
                tokio::spawn(end(vmm, vm.saved.owner_uid));
            }
            let name = vm.saved.name.clone();
            inner.tell(Some(&name), Kind::Stopping, format!("it is stopped: {reason}"));
        }
    }
}

/// Kills a VMM that does not end by itself. It was checked to be its VM's owner's when it was made known.
async fn end(vmm: ProcessRef, owner: u32) {
    tokio::time::sleep(QUIT_WAIT).await;
    if !process::runs(vmm) {
        return;
    }
    if owner != 0 && process::owner(vmm.pid) != Some(owner) {
        tracing::warn!(pid = vmm.pid, owner, "it is not its VM's owner's process any more, and is not ended");
        return;
    }
    if let Err(error) = process::kill(vmm) {
        tracing::warn!(pid = vmm.pid, %error, "a VMM whose guest waits for memory cannot be ended");
    }
}
