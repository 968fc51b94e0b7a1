//! Two guests and not enough for both: one gives what the other needs.

use std::time::{Duration, Instant};

use plimsoll_api::http::ListView;
use plimsoll_e2e::{Bed, Kind, PATIENCE, mib, sizes};
use plimsoll_model::{HostState, Reason};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use crate::verify;

/// Both baselines and the overheads, and nothing beyond.
const BUDGET: Bytes = mib(2 * 160 + 2 * 16);
/// How long the guests may hold more than that, seen from outside on a busy machine. The daemon ticks once a second.
const SOON: Duration = Duration::from_secs(8);
/// Nothing else on this machine matters.
const CONFIG: &str = "
[host]
budget = \"352M\"
low = \"1M\"
overhead-uml = \"16M\"
[policy]
host-stall = \"100%\"
";

#[test]
fn memory_moves_from_the_idle_guest_to_the_busy_one_within_the_budget() {
    const NAME: &str = "memory_moves_from_the_idle_guest_to_the_busy_one_within_the_budget";
    let Some(bed) = Bed::new(NAME, CONFIG) else { return };
    let Some(idle) = bed.run(Kind::Uml, "idle", sizes(160, 256, 64), &[]) else { return };
    let Some(busy) = bed.run(Kind::Uml, "busy", sizes(160, 256, 64), &[]) else { return };
    idle.reaches(mib(160));
    busy.reaches(mib(160));
    // A third does not fit: every byte is granted already.
    let wanted = busy.meminfo("available").plus(mib(48));
    let filling = busy.begin(&format!("fill {}", wanted.0));
    let mut beyond = Beyond::default();
    poll_until(PATIENCE, "memory to move", || {
        let list = bed.list();
        beyond.look(&list);
        let [busy, idle] = list.vms.as_slice() else { panic!("two VMs were expected: {:#?}", list.vms) };
        assert_eq!((busy.name.as_str(), idle.name.as_str()), ("busy", "idle"));
        let settled = [busy, idle].iter().all(|vm| vm.actual == vm.target);
        if settled && busy.target.0 >= mib(160 + 32) && held(&list) <= BUDGET {
            Ok(())
        } else {
            Err(format!("{:#?}", list.vms))
        }
    })
    .unwrap_or_else(|error| panic!("{error}"));
    busy.finish(&filling);
    verify(&busy);

    let idle = idle.view();
    assert!(idle.target.0 < mib(160) && idle.target.0 >= idle.sizes.floor(), "{idle:#?}");
    let change = idle.last_change.expect("its target was changed");
    assert!(matches!(change.reason, Reason::GivesToOthers { .. } | Reason::OverBudget { .. }), "{change:#?}");
}

/// What the guests hold, and the overheads.
fn held(list: &ListView) -> Bytes {
    list.vms.iter().map(|vm| vm.actual.0.plus(vm.overhead)).sum()
}

/// When the VMs were first seen to hold more than the budget, and still do.
#[derive(Default)]
struct Beyond(Option<Instant>);

impl Beyond {
    /// The guests may hold more than the budget for one reason only: the busy one took back from its balloon what
    /// would otherwise have cost it a process. Then the daemon must say that the host is short, and end it soon.
    fn look(&mut self, list: &ListView) {
        if held(list) <= BUDGET {
            self.0 = None;
            return;
        }
        let since = *self.0.get_or_insert_with(Instant::now);
        assert_eq!(list.host.state, HostState::Short, "{list:#?}");
        assert!(since.elapsed() < SOON, "beyond the budget for {:?}: {list:#?}", since.elapsed());
    }
}
