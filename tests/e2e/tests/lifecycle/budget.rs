//! Two guests and not enough for both: one gives what the other needs.

use std::time::{Duration, Instant};

use plimsoll_api::http::{Change, Explain, ListView};
use plimsoll_e2e::{Bed, Kind, PATIENCE, mib, sizes};
use plimsoll_model::{HostState, Reason};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use crate::verify;

/// How long the guests may hold more than that, seen from outside on a busy machine. The daemon ticks once a second.
const SOON: Duration = Duration::from_secs(8);
/// The busy guest's sizes, in MiB.
const BUSY: (u64, u64, u64) = (160, 256, 64);
/// What the busy guest must come to have, beyond its baseline.
const MORE: u64 = 32;

/// A budget of both baselines and the overheads, and nothing beyond; nothing else on this machine matters.
fn config(budget: Bytes) -> String {
    format!(
        "[host]\nbudget = \"{budget}\"\nlow = \"1M\"\noverhead-uml = \"16M\"\noverhead-qemu = \"64M\"\n\
         [policy]\nhost-stall = \"100%\"\n"
    )
}

fn memory_moves(test: &str, kind: Kind, (memory, maxmem, floor): (u64, u64, u64)) {
    let overhead = if kind == Kind::Uml { 16 } else { 64 };
    let budget = mib(memory + overhead + BUSY.0 + 16);
    let Some(bed) = Bed::new(test, &config(budget)) else { return };
    let Some(idle) = bed.run(kind, "idle", sizes(memory, maxmem, floor), &[]) else { return };
    let Some(busy) = bed.run(Kind::Uml, "busy", sizes(BUSY.0, BUSY.1, BUSY.2), &[]) else { return };
    idle.reaches(mib(memory));
    busy.reaches(mib(BUSY.0));
    poll_until(PATIENCE, "both to be within the budget", || {
        let held = held(&bed.list());
        if held <= budget { Ok(()) } else { Err(format!("{held} of {budget}")) }
    })
    .unwrap_or_else(|error| panic!("{error}"));
    let wanted = busy.meminfo("available").plus(mib(MORE + 16));
    let filling = busy.begin(&format!("fill {}", wanted.0));
    let mut beyond = Beyond { budget, since: None };
    poll_until(PATIENCE, "memory to move", || {
        let list = bed.list();
        beyond.look(&list);
        let [busy, idle] = list.vms.as_slice() else { panic!("two VMs were expected: {:#?}", list.vms) };
        assert_eq!((busy.name.as_str(), idle.name.as_str()), ("busy", "idle"));
        let settled = [busy, idle].iter().all(|vm| vm.actual == vm.target);
        if settled && busy.target.0 >= mib(BUSY.0 + MORE) && held(&list) <= budget {
            Ok(())
        } else {
            Err(format!("{:#?}", list.vms))
        }
    })
    .unwrap_or_else(|error| panic!("{error}"));
    busy.finish(&filling);
    verify(&busy);

    let idle = idle.view();
    assert!(idle.target.0 < mib(memory) && idle.target.0 >= idle.sizes.floor(), "{idle:#?}");
    let explain: Explain = bed.json(&["explain", "idle"]);
    let gave = |change: &Change| {
        change.to.0 < change.from.0
            && matches!(change.reason, Reason::GivesToOthers { .. } | Reason::OverBudget { .. })
    };
    assert!(explain.changes.iter().any(gave), "{explain:#?}");
}

/// What the guests hold, and the overheads.
fn held(list: &ListView) -> Bytes {
    list.vms.iter().map(|vm| vm.actual.0.plus(vm.overhead)).sum()
}

/// Watches what the guests hold.
struct Beyond {
    budget: Bytes,
    /// When they were first seen to hold more, if they still do.
    since: Option<Instant>,
}

impl Beyond {
    /// The guests may hold more than the budget for one reason only: the busy one took back from its balloon what
    /// would otherwise have cost it a process. Then the daemon must say that the host is short, and end it soon.
    fn look(&mut self, list: &ListView) {
        if held(list) <= self.budget {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        assert_eq!(list.host.state, HostState::Short, "{list:#?}");
        assert!(since.elapsed() < SOON, "beyond the budget for {:?}: {list:#?}", since.elapsed());
    }
}

#[test]
fn memory_moves_between_uml_guests_within_the_budget() {
    memory_moves("memory_moves_between_uml_guests_within_the_budget", Kind::Uml, BUSY);
}

#[test]
fn memory_moves_from_a_qemu_guest_to_a_uml_guest_within_the_budget() {
    const NAME: &str = "memory_moves_from_a_qemu_guest_to_a_uml_guest_within_the_budget";
    memory_moves(NAME, Kind::Qemu, (256, 384, 96));
}
