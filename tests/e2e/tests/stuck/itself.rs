//! A guest that is owed memory itself.

use std::time::Duration;

use plimsoll_e2e::{Bed, Kind, Limit, PATIENCE, Watch, mib, sizes};
use plimsoll_testbed::wait::poll_until;

use crate::kit::{Spec, budget, config, start, tell};

const UML: [Spec; 2] = [("web", Kind::Uml, (160, 256, 64)), ("other", Kind::Uml, (128, 128, 64))];
/// Beyond what both have, in MiB.
const ROOM: u64 = 16;
/// For the daemon to look often, with something to move and without.
const LOOKS: u64 = 6;

/// An operator gives an idle guest a higher baseline than there is room for. Nobody else needs anything, so nobody is to
/// be asked, and least of all the guest itself.
#[test]
fn a_guest_that_is_owed_memory_is_not_asked_to_give_for_itself() {
    const NAME: &str = "a_guest_that_is_owed_memory_is_not_asked_to_give_for_itself";
    let budget = budget(&UML).plus(mib(ROOM));
    let Some(bed) = Bed::journaled(NAME, &config(budget)) else { return };
    let Some(vms) = start(&bed, &UML) else { return };
    let [web, other] = vms.as_slice() else { panic!("two VMs were expected") };
    bed.ok(&["hold", "other", "128M"]);
    let watch = Watch::begin(&bed, budget, &[web, other]);
    let first = bed.list().host.ticks;
    bed.ok(&["set", "web", "memory=240M"]);
    let ticked = || match bed.list().host.ticks - first {
        n if n >= LOOKS => Ok(()),
        n => Err(format!("{n} ticks")),
    };
    poll_until(PATIENCE.min(Duration::from_secs(30)), "some ticks", ticked)
        .unwrap_or_else(|error| panic!("{error}"));
    tell(&watch.end(Limit::Strict).0);
    let id = web.view().id;
    for tick in bed.ticks().iter().filter(|tick| tick.number > first) {
        let lowered = tick.plan.actions.iter().find(|action| action.vm == id && action.to < action.from);
        assert_eq!(lowered, None, "tick {}: {tick:#?}", tick.number);
    }
    let view = web.view();
    assert!(view.target.0 >= mib(160) && view.actual.0 >= mib(160), "{view:#?}");
    assert_eq!(view.sizes, sizes(240, 256, 64));
}
