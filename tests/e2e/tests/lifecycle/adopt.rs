//! A QEMU that ran before anybody thought of Plimsoll.

use std::time::Duration;

use plimsoll_api::http::Life;
use plimsoll_e2e::{Adoptable, Bed, CALM, PATIENCE, mib, only, sizes, snapshot};
use plimsoll_units::Bytes;

const NAME: &str = "a_running_qemu_is_adopted_moved_forgotten_and_adopted_again";
/// Its memory, and what its guest fills and frees, in MiB. Its balloon reports no free pages.
const MEMORY: u64 = 384;
const FILLED: u64 = 224;

#[test]
fn a_running_qemu_is_adopted_moved_forgotten_and_adopted_again() {
    let Some(qemu) = Adoptable::boot(NAME, mib(MEMORY)) else { return };
    let Some(bed) = Bed::new(NAME, CALM) else { return };
    send(&qemu, &format!("fill {FILLED}M"));
    send(&qemu, "free");
    assert!(resident(&qemu) >= mib(FILLED));
    without_sizes(&bed, &qemu);
    is_adopted_once(&bed, &qemu);
    is_forgotten_and_runs_on(&bed, &qemu);
    with_sizes(&bed, &qemu);
    ends_by_itself(&bed, &qemu);
}

/// Sizes come from QEMU; a lower baseline brings memory back to the host.
fn without_sizes(bed: &Bed, qemu: &Adoptable) {
    bed.ok(&["adopt", "--name", "db", "--qmp", &qemu.qmp()]);
    let view = bed.view("db");
    assert_eq!(view.sizes, sizes(MEMORY, MEMORY, MEMORY / 2));
    assert_eq!(view.vmm.map(|vmm| vmm.pid), u32::try_from(qemu.guest().pid().as_raw_nonzero().get()).ok());
    bed.ok(&["set", "db", "memory=224M"]);
    bed.wait_vm("db", PATIENCE, "its new baseline", |view| view.actual.0 == mib(224));
    assert!(resident(qemu) <= mib(224), "{}", resident(qemu));
    bed.wait_vm("db", PATIENCE, "statistics", |view| {
        view.stats.and_then(|sample| sample.stats.available).is_some_and(|available| available < mib(224))
    });
}

/// The same QEMU under another name would be counted twice.
fn is_adopted_once(bed: &Bed, qemu: &Adoptable) {
    let before = snapshot(&bed.list());
    bed.cli(&["adopt", "--name", "again", "--qmp", &qemu.qmp()]).refused(1, &["again", "db"]);
    assert_eq!(snapshot(&bed.list()), before);
}

/// Nobody cares for it any more, and nothing else happens to it.
fn is_forgotten_and_runs_on(bed: &Bed, qemu: &Adoptable) {
    let (status, _) = bed.http("DELETE", "/v1/vms/db");
    assert_eq!((status, bed.list().vms.len()), (200, 0));
    assert_eq!(bed.count("db", "forgotten"), 1);
    send(qemu, "ping");
    assert!(qemu.guest().exited().is_none());
    assert_eq!(bed.vm_files(), Vec::<String>::new());
}

/// Sizes as they are typed; memory is where it goes at once.
fn with_sizes(bed: &Bed, qemu: &Adoptable) {
    bed.ok(&[
        "adopt",
        "--name",
        "db2",
        "--qmp",
        &qemu.qmp(),
        "--memory",
        "288M",
        "--maxmem",
        "384M",
        "--floor",
        "96M",
    ]);
    let view = bed.wait_vm("db2", PATIENCE, "its baseline", |view| view.actual.0 == mib(288));
    assert_eq!(view.sizes, sizes(288, MEMORY, 96));
    send(qemu, "fill 96M");
    send(qemu, "verify");
}

/// Its end is seen, and it claims nothing from then on.
fn ends_by_itself(bed: &Bed, qemu: &Adoptable) {
    // It goes down without an answer.
    qemu.guest().begin("poweroff").expect("the console takes it");
    bed.wait_vm("db2", PATIENCE, "to be gone", |view| view.life == Life::Gone);
    let list = bed.list();
    assert_eq!(
        (only(&list).life, list.host.claimed, list.host.guaranteed),
        (Life::Gone, Bytes::ZERO, Bytes::ZERO)
    );
}

fn resident(qemu: &Adoptable) -> Bytes {
    qemu.guest().resident().expect("it runs")
}

#[track_caller]
fn send(qemu: &Adoptable, command: &str) {
    qemu.guest().send(command, Duration::from_secs(60)).unwrap_or_else(|error| panic!("{error}"));
}
