//! Real User Mode Linux guests behind a real keeper.

mod common;

use std::time::Duration;

use common::{Keeper, LIMIT, pages};
use plimsoll_testbed::guest::{Guest, UmlSpec, VhostUserDevice};
use plimsoll_testbed::{images, skip};
use plimsoll_units::Bytes;

const MEM: Bytes = Bytes::mib(192);

fn boot(test: &str, more: &[&str]) -> Option<(Keeper, Guest)> {
    let image = skip::unless_available(test, images::uml())?;
    let keeper = Keeper::start(test, MEM, more);
    let mut spec = UmlSpec::new(test, MEM, image);
    spec.devices.push(VhostUserDevice { socket: keeper.socket(), virtio_id: 5 });
    let guest = spec.boot().unwrap_or_else(|error| panic!("{error}\n{}", keeper.log()));
    keeper.wait("the driver", |keeper| keeper.status().driver_ready.then_some(()));
    Some((keeper, guest))
}

#[test]
fn memory_goes_out_and_comes_back() {
    let Some((keeper, guest)) = boot("out-and-back", &[]) else { return };
    let status = keeper.status();
    assert_eq!((status.generation, status.connected), (1, true));
    guest.send("fill 96M 1", LIMIT).unwrap();
    guest.send("free", LIMIT).unwrap();
    let before = guest.resident().unwrap();
    assert_eq!(keeper.status().resident, before, "both by the kernel's count");

    keeper.set_balloon(Bytes::mib(64));
    keeper.wait("64 MiB in the balloon", |k| (k.status().actual == pages(Bytes::mib(64))).then_some(()));
    let after = guest.resident().unwrap();
    assert!(before.minus(after) > Bytes::mib(48), "{before} before, {after} after");
    let status = keeper.status();
    assert_eq!(status.ledger.ballooned, pages(Bytes::mib(64)).0);

    keeper.wait("statistics", |k| k.status().stats.and_then(|stats| stats.total));
    keeper.set_balloon(Bytes::ZERO);
    keeper.wait("an empty balloon", |k| (k.status().actual == pages(Bytes::ZERO)).then_some(()));
    assert_eq!(keeper.status().ledger.ballooned.0, 0);
    guest.send("fill 96M 2", LIMIT).unwrap();
    guest.send("verify", LIMIT).unwrap();
    guest.send("poweroff", Duration::from_secs(1)).ok();
    guest.wait_exit(LIMIT).unwrap();
}
