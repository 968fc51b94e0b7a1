//! Guests that lose their balloon driver: nobody can move them, and what was in the balloon is theirs again.

use std::time::Duration;

use plimsoll_api::http::{ListView, VmView};
use plimsoll_e2e::{Bed, Kind, Limit, PATIENCE, Vm, Watch, mib};
use plimsoll_model::{HostState, Link, Reason, VmState};

use crate::kit::{Needy, Spec, budget, config, is_listed, of, start, tell};

/// What has to be moved at least, for it to count.
const MORE: u64 = 24;
/// For memory to be moved from whoever can be asked.
const MOVED: Duration = Duration::from_secs(20);
/// How long the host may be beyond its budget because of what a guest took, on a busy machine.
const SOON: Duration = Duration::from_secs(8);

const UML: [Spec; 3] = [
    ("empty", Kind::Uml, (128, 128, 64)),
    ("inflated", Kind::Uml, (160, 256, 64)),
    ("needy", Kind::Uml, (96, 320, 64)),
];

/// The arbiter's word for a guest without a driver.
fn has_no_driver(view: &VmView) -> bool {
    (view.link, view.state, view.reason) == (Link::NoDriver, VmState::NoDriver, Reason::NoDriver)
}

#[test]
fn a_uml_guest_without_a_driver_is_not_asked_and_pays_for_nobody() {
    const NAME: &str = "a_uml_guest_without_a_driver_is_not_asked_and_pays_for_nobody";
    let budget = budget(&UML);
    let Some(bed) = Bed::journaled(NAME, &config(budget)) else { return };
    let Some(vms) = start(&bed, &UML) else { return };
    let [empty, inflated, needy] = vms.as_slice() else { panic!("three VMs were expected") };
    let needy = Needy(needy);
    let said = is_passed_over(&bed, empty, inflated, &needy);
    tell(&said);
    let said = takes_its_balloon_back(&bed, inflated, &[empty, inflated, needy.0]);
    tell(&said);
    needy.is_whole();
}

/// With an empty balloon: what is needed comes from others, until the driver is back.
fn is_passed_over(bed: &Bed, empty: &Vm<'_>, other: &Vm<'_>, needy: &Needy<'_, '_>) -> String {
    let budget = bed.list().host.sample.budget;
    empty.send("unload virtio_balloon");
    empty.wait("to be without a driver", PATIENCE, has_no_driver);
    let watch = Watch::begin(bed, budget, &[empty, other, needy.0]);
    is_listed(bed, "empty", &["no-driver", "128M", "no balloon driver"]);
    let list = needy
        .until(MOVED, "the other's memory to arrive", |list| of(list, "needy").target.0 >= mib(96 + MORE));
    let view = of(&list, "empty");
    assert!(has_no_driver(view) && view.target.0 == mib(128), "{view:#?}");

    empty.send("load virtio_balloon");
    let gave = |list: &ListView| of(list, "empty").actual.0 <= mib(128 - MORE);
    let list = needy.until(MOVED, "it to give as well", gave);
    assert_eq!(of(&list, "empty").link, Link::Up);
    watch.end(Limit::Strict).0
}

/// With an inflated one: the guest has it all again, the host is short, and others give at once.
fn takes_its_balloon_back(bed: &Bed, vm: &Vm<'_>, all: &[&Vm<'_>]) -> String {
    let budget = bed.list().host.sample.budget;
    let before = vm.view();
    assert!(before.actual.0 <= mib(160 - MORE), "{before:#?}");
    let watch = Watch::begin(bed, budget, all);
    vm.send("unload virtio_balloon");
    let view = vm.wait("to be without a driver", PATIENCE, has_no_driver);
    assert_eq!(view.actual.0, mib(256), "{view:#?}");
    // Nothing was given to it.
    assert!(view.target.0 <= mib(160), "{view:#?}");
    // Those in need before it need it no more: they have something to give.
    all.iter().filter(|other| other.name != vm.name).for_each(|other| drop(other.send("free")));
    vm.send("fill 160M");
    assert!(vm.resident() >= mib(160), "{}", vm.resident());

    vm.send("free");
    vm.send("load virtio_balloon");
    let back =
        |view: &VmView| view.link == Link::Up && view.state == VmState::Ok && view.actual == view.target;
    vm.wait("to be where it belongs", PATIENCE, back);
    let (said, samples) = watch.end(Limit::TakenFor(SOON));
    let short = samples.iter().find(|sample| sample.list.host.state == HostState::Short);
    let short = short.expect("the host was short of what the guest took");
    is_listed(bed, &vm.name, &["ok"]);
    assert!(short.list.host.claimed > budget, "{short:#?}");
    said
}

const QEMU: [Spec; 2] = [("qemu", Kind::Qemu, (256, 256, 96)), ("needy", Kind::Uml, (96, 320, 64))];

/// QEMU does not tell whether its guest has a driver: that shows only when the guest is asked to move.
#[test]
fn a_qemu_guest_without_a_driver_is_found_stuck_until_it_moves_again() {
    const NAME: &str = "a_qemu_guest_without_a_driver_is_found_stuck_until_it_moves_again";
    let budget = budget(&QEMU);
    let Some(bed) = Bed::journaled(NAME, &config(budget)) else { return };
    let Some(vms) = start(&bed, &QEMU) else { return };
    let [qemu, needy] = vms.as_slice() else { panic!("two VMs were expected") };
    let needy = Needy(needy);
    let watch = Watch::begin(&bed, budget, &[qemu, needy.0]);
    qemu.send("unload virtio_balloon");
    let is_stuck = |list: &ListView| of(list, "qemu").state == VmState::Stuck;
    let list = needy.until(MOVED, "it to be found stuck", is_stuck);
    let view = of(&list, "qemu");
    assert_eq!((view.target.0, view.actual.0), (mib(256), mib(256)), "{view:#?}");
    is_listed(&bed, "qemu", &["stuck", "256M", "does not move, again in"]);
    assert_eq!(of(&list, "needy").target.0, mib(96), "{list:#?}");

    qemu.send("load virtio_balloon");
    let gave = |list: &ListView| {
        of(list, "qemu").actual.0 <= mib(256 - MORE) && of(list, "needy").target.0 >= mib(96 + MORE)
    };
    needy.until(MOVED, "it to be asked again, and to give", gave);
    tell(&watch.end(Limit::Strict).0);
    needy.is_whole();
}
