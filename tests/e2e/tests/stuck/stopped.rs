//! A guest that is stopped while it is asked to give, and goes on later.

use std::time::Duration;

use plimsoll_api::http::{Life, ListView};
use plimsoll_e2e::{Bed, Kind, Limit, Tick, Watch, mib};
use plimsoll_model::{Reason, VmId, VmState};

use crate::kit::{Needy, Spec, Stopped, budget, config, is_listed, of, start, tell};

/// What has to be moved at least, for it to count.
const MORE: u64 = 24;
/// A guest is judged after 4 s of not moving, by ticks a second apart.
const JUDGED: Duration = Duration::from_secs(15);
/// And asked again so many milliseconds after that, ...
const RETRY: u64 = 10_000;
/// ... and must have moved by then.
const AGAIN: Duration = Duration::from_secs(30);

const UML: [Spec; 3] = [
    ("stopped", Kind::Uml, (192, 256, 64)),
    ("honest", Kind::Uml, (128, 128, 64)),
    ("needy", Kind::Uml, (96, 320, 64)),
];

#[test]
fn a_stopped_uml_guest_is_not_counted_on_until_it_moves_again() {
    const NAME: &str = "a_stopped_uml_guest_is_not_counted_on_until_it_moves_again";
    let budget = budget(&UML);
    // What it said last is believed for as long as the test takes: who is silent is asked no more.
    let config = format!("{}stats-max-age = \"2m\"\n", config(budget));
    let Some(bed) = Bed::journaled(NAME, &config) else { return };
    let Some(vms) = start(&bed, &UML) else { return };
    let [stopped, honest, needy] = vms.as_slice() else { panic!("three VMs were expected") };
    let needy = Needy(needy);
    let watch = Watch::begin(&bed, budget, &[stopped, honest, needy.0]);

    // It was asked before anybody could know.
    let sleep = Stopped::vmm(stopped);
    needy.until(JUDGED, "it to be asked", |list| of(list, "stopped").target.0 < mib(192));
    let is_stuck = |list: &ListView| of(list, "stopped").state == VmState::Stuck;
    let list = needy.until(JUDGED, "it to be found stuck", is_stuck);
    let view = of(&list, "stopped");
    // It keeps what it has, and can take no more when it wakes up.
    assert_eq!((view.target.0, view.actual.0), (mib(192), mib(192)), "{view:#?}");
    let Reason::Stuck { asked, moved, .. } = view.reason else { panic!("{view:#?}") };
    assert!(asked.0 < mib(192 - MORE) && moved.0 == 0, "{view:#?}");
    is_listed(&bed, "stopped", &["stuck", "192M", "does not move, again in"]);
    assert_eq!(bed.count("stopped", "stuck"), 1);
    // What there was came from the one that moves.
    let given = |list: &ListView| of(list, "needy").target.0 >= mib(96 + MORE);
    let list = needy.until(JUDGED, "the honest one's memory to arrive", given);
    assert!(of(&list, "honest").actual.0 <= mib(128 - MORE), "{list:#?}");

    sleep.go_on();
    let before = of(&list, "needy").target.0;
    let gave = |list: &ListView| {
        let enough = of(list, "stopped").actual.0 <= mib(192 - MORE);
        enough && of(list, "needy").target.0 >= before.plus(mib(MORE))
    };
    let list = needy.until(AGAIN, "it to be asked again, and to give", gave);
    assert_ne!(of(&list, "stopped").state, VmState::Stuck, "{list:#?}");
    let (said, _) = watch.end(Limit::Strict);
    was_left_alone(&bed, view.id);
    needy.is_whole();
    stopped.send("ping");
    tell(&said);
}

/// From when it was found stuck it was not asked for as long as was said.
fn was_left_alone(bed: &Bed, id: VmId) {
    let ticks = bed.ticks();
    let stuck =
        |tick: &&Tick| tick.plan.verdicts.iter().any(|one| one.vm == id && one.state == VmState::Stuck);
    let found = ticks.iter().find(stuck).expect("it was found stuck");
    let asks = |tick: &&Tick| tick.plan.actions.iter().any(|one| one.vm == id && one.to < one.from);
    let asked = ticks.iter().skip_while(|tick| tick.number <= found.number).find(asks);
    let after = asked.expect("it was asked again").snapshot.now.millis_since(found.snapshot.now);
    assert!((RETRY..3 * RETRY).contains(&after), "asked again after {after} ms");
}

const QEMU: [Spec; 2] = [("stopped", Kind::Qemu, (256, 256, 96)), ("needy", Kind::Uml, (96, 320, 64))];

#[test]
fn a_stopped_qemu_is_unreachable_and_keeps_what_it_has() {
    const NAME: &str = "a_stopped_qemu_is_unreachable_and_keeps_what_it_has";
    let budget = budget(&QEMU);
    let Some(bed) = Bed::journaled(NAME, &config(budget)) else { return };
    let Some(vms) = start(&bed, &QEMU) else { return };
    let [stopped, needy] = vms.as_slice() else { panic!("two VMs were expected") };
    let needy = Needy(needy);
    let watch = Watch::begin(&bed, budget, &[stopped, needy.0]);

    let sleep = Stopped::vmm(stopped);
    let silent = |list: &ListView| of(list, "stopped").state == VmState::Unreachable;
    let list = needy.until(JUDGED, "it to be shown as unreachable", silent);
    let view = of(&list, "stopped");
    assert_eq!((view.life, view.reason), (Life::Unreachable, Reason::Unreachable), "{view:#?}");
    is_listed(&bed, "stopped", &["unreachable"]);
    // It may have been asked before, but gave nothing, and nothing was given for it.
    assert_eq!((view.actual.0, of(&list, "needy").target.0), (mib(256), mib(96)), "{list:#?}");

    sleep.go_on();
    let gave = |list: &ListView| {
        of(list, "stopped").actual.0 <= mib(256 - MORE) && of(list, "needy").target.0 >= mib(96 + MORE)
    };
    let list = needy.until(AGAIN, "it to answer and to give", gave);
    assert_eq!(of(&list, "stopped").life, Life::Running, "{list:#?}");
    let (said, _) = watch.end(Limit::Strict);
    needy.is_whole();
    stopped.send("ping");
    tell(&said);
}
