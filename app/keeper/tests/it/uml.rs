//! Real User Mode Linux guests behind a real keeper.

use std::fs::File;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::common::{self, Keeper, LIMIT, pages};
use plimsoll_frames::Ledger;
use plimsoll_shm::SharedWords;
use plimsoll_testbed::guest::{Guest, UmlSpec, VhostUserDevice};
use plimsoll_testbed::{images, skip};
use plimsoll_units::Bytes;
use plimsoll_vhost_user::layout::Layout;

const MEM: Bytes = Bytes::mib(192);

/// For tests of reports. Linux reports whole blocks, which are 4 MiB in User Mode Linux, and only while 32 of them are free
/// (mm/page_reporting.c); and a processor keeps hundreds of freed pages on lists of its own, each of which holds its block
/// back, unless it is told to keep fewer (Documentation/admin-guide/sysctl/vm.rst).
const MEM_TO_REPORT: Bytes = Bytes::mib(320);
const SHORT_LISTS: &str = "sysctl.vm.percpu_pagelist_high_fraction=65536";

/// Kills after which a keeper of a test that kills on purpose still does not give up.
const PATIENT: [&str; 2] = ["--give-up-after", "1000"];

fn boot(test: &str, more: &[&str]) -> Option<(Keeper, Guest)> {
    boot_with(test, MEM, more)
}

fn boot_with(test: &str, mem: Bytes, more: &[&str]) -> Option<(Keeper, Guest)> {
    let image = skip::unless_available(test, images::uml())?;
    let keeper = Keeper::start(test, mem, more);
    let mut spec = UmlSpec::new(test, mem, image);
    spec.append = SHORT_LISTS.into();
    spec.devices.push(VhostUserDevice { socket: keeper.socket(), virtio_id: 5 });
    let guest = spec.boot().unwrap_or_else(|error| panic!("{error}\n{}", keeper.log()));
    keeper.wait("the driver", |keeper| keeper.status().driver_ready.then_some(()));
    Some((keeper, guest))
}

fn wait_actual(keeper: &Keeper, size: Bytes) {
    keeper.wait(&format!("{size} in the balloon"), |k| (k.status().actual == pages(size)).then_some(()));
}

/// The ledger as it lies in the keeper's memory, checked from end to end. Nobody may be writing.
fn audit(keeper: &Keeper) -> Ledger<Vec<AtomicU64>> {
    let folder = format!("/proc/{}/fd", keeper.pid());
    let memory = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            std::fs::read_link(path)
                .is_ok_and(|link| link.to_string_lossy().contains("memfd:plimsoll-keeper"))
        })
        .expect("the keeper's memory");
    let memory = File::options().read(true).write(true).open(memory).unwrap();
    let layout = Layout::attach(SharedWords::attach_all(memory).unwrap()).unwrap();
    let copy: Vec<_> =
        layout.ledger().unwrap().iter().map(|word| AtomicU64::new(word.load(SeqCst))).collect();
    let (ledger, _) = Ledger::attach(copy).unwrap();
    ledger.audit().unwrap();
    ledger
}

fn assert_console_is_quiet(guest: &Guest) {
    let text = guest.console().text().unwrap();
    for word in
        ["virtio_uml", "reports error", "BUG", "Oops", "panic", "hung task", "Call Trace", "mismatches=1"]
    {
        let bad: Vec<_> = text.lines().filter(|line| line.contains(word)).collect();
        assert!(bad.is_empty(), "the guest noticed: {bad:?}");
    }
}

#[test]
fn memory_goes_out_and_comes_back() {
    let Some((keeper, guest)) = boot("out-and-back", &[]) else { return };
    let status = keeper.status();
    assert_eq!((status.generation, status.connected), (1, true));
    guest.send("fill 96M 1", LIMIT).unwrap();
    guest.send("free", LIMIT).unwrap();
    let before = guest.resident().unwrap();

    keeper.set_balloon(Bytes::mib(64));
    wait_actual(&keeper, Bytes::mib(64));
    let after = guest.resident().unwrap();
    assert!(before.minus(after) > Bytes::mib(48), "{before} before, {after} after");
    let status = keeper.status();
    assert_eq!(status.ledger.ballooned, pages(Bytes::mib(64)).0);
    assert!(status.ledger.present.0 < MEM.pages_floor().0 - status.ledger.ballooned.0);

    keeper.wait("statistics", |k| k.status().stats.and_then(|stats| stats.total));
    keeper.set_balloon(Bytes::ZERO);
    wait_actual(&keeper, Bytes::ZERO);
    assert_eq!(keeper.status().ledger.ballooned.0, 0);
    guest.send("fill 96M 2", LIMIT).unwrap();
    guest.send("verify", LIMIT).unwrap();
    assert_console_is_quiet(&guest);
    audit(&keeper);

    // Its end is the keeper's.
    guest.begin("poweroff").unwrap();
    guest.wait_exit(LIMIT).unwrap();
    let (socket, control) = (keeper.socket(), keeper.control_socket());
    keeper.wait("the keeper to end", |_| (!socket.exists() && !control.exists()).then_some(()));
}

#[test]
fn freed_memory_is_back_on_the_host_without_being_asked_for() {
    let Some((keeper, guest)) = boot_with("reports", MEM_TO_REPORT, &[]) else { return };
    guest.send("fill 200M 1", LIMIT).unwrap();
    let full = guest.resident().unwrap();
    guest.send("free", LIMIT).unwrap();
    keeper.wait("memory", |_| (full.minus(guest.resident().unwrap()) > Bytes::mib(160)).then_some(()));
    let status = keeper.status();
    assert!(status.counters.reported_pages > 20_000 && status.ledger.ballooned.0 == 0, "{status:?}");
    guest.send("fill 200M 2", LIMIT).unwrap();
    guest.send("verify", LIMIT).unwrap();
}

#[test]
fn twenty_kills_under_load_go_unnoticed() {
    const KILLS: u64 = 20;
    let Some((keeper, guest)) = boot("kills", &PATIENT) else { return };
    guest.send("fill 40M 7", LIMIT).unwrap();
    let mut seed = 1u64;
    let mut moments = [0u32; 3];
    for kill in 0..KILLS {
        let epoch = keeper.status().epoch;
        let target = if kill % 2 == 0 { Bytes::mib(96) } else { Bytes::mib(4) };
        let before = keeper.set_balloon(target).actual;
        // Wait until the balloon moves, then a little more, so that death comes at another place each time.
        keeper.wait("the balloon to move", |k| {
            let now = k.status().actual;
            (now != before || now == pages(target)).then_some(())
        });
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let until = Instant::now() + Duration::from_micros(seed >> 48);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let moving = keeper.status().actual != pages(target);
        assert!(keeper.kill_back_end());
        keeper.wait("another back end", |k| (k.status().epoch > epoch).then_some(()));
        moments[if !moving { 2 } else { usize::try_from(kill % 2).unwrap() }] += 1;
        assert_eq!(keeper.status().num_pages, pages(target), "what is wanted is not forgotten");
        wait_actual(&keeper, target);
        let status = keeper.status();
        assert_eq!(status.ledger.ballooned, status.actual.0, "the ledger knows what is in the balloon");
        if kill % 4 == 3 {
            // Pages freed and filled anew, so that reports come and pages that were given back are used again.
            guest.send("verify", LIMIT).unwrap();
            guest.send("free", LIMIT).unwrap();
            guest.send(&format!("fill 40M {kill}"), LIMIT).unwrap();
        }
    }
    assert!(moments[0] >= 3 && moments[1] >= 3, "inflating, deflating, at rest: {moments:?}");
    guest.send("verify", LIMIT).unwrap();
    let fresh = keeper.status().stats_age_ms;
    keeper.wait("new statistics", |k| {
        let status = k.status();
        (status.stats.is_some() && status.stats_age_ms < fresh.max(900)).then_some(())
    });
    assert_console_is_quiet(&guest);
    audit(&keeper);
    guest.begin("poweroff").unwrap();
    guest.wait_exit(LIMIT).unwrap();
}

#[test]
fn kills_during_reports_go_unnoticed() {
    let Some((keeper, guest)) = boot_with("report-kills", MEM_TO_REPORT, &PATIENT) else { return };
    for round in 0..5u64 {
        guest.send(&format!("fill 200M {round}"), LIMIT).unwrap();
        guest.send("free 168M", LIMIT).unwrap();
        let epoch = keeper.status().epoch;
        keeper.wait("a report", |k| (k.status().counters.reported_pages > 1000).then_some(()));
        assert!(keeper.kill_back_end());
        keeper.wait("another back end", |k| (k.status().epoch > epoch).then_some(()));
        guest.send("verify", LIMIT).unwrap();
        guest.send("free", LIMIT).unwrap();
    }
    assert_console_is_quiet(&guest);
}

#[test]
fn a_guest_reboots_while_inflated() {
    let Some((keeper, guest)) = boot("reboot", &[]) else { return };
    keeper.set_balloon(Bytes::mib(80));
    wait_actual(&keeper, Bytes::mib(80));
    guest.begin("reboot").unwrap();
    guest.wait_boots(2, LIMIT).unwrap_or_else(|error| panic!("{error}\n{}", keeper.log()));
    keeper.wait("the next driver", |k| {
        let status = k.status();
        (status.generation == 2 && status.driver_ready).then_some(())
    });
    // What the host wants has not changed, so the new guest gives it too.
    wait_actual(&keeper, Bytes::mib(80));
    let status = keeper.status();
    assert_eq!(
        status.ledger.ballooned,
        pages(Bytes::mib(80)).0,
        "and nothing of the guest before is counted"
    );
    keeper.set_balloon(Bytes::ZERO);
    wait_actual(&keeper, Bytes::ZERO);
    guest.send("fill 128M 3", LIMIT).unwrap();
    guest.send("verify", LIMIT).unwrap();
    assert_console_is_quiet(&guest);
}

#[test]
fn a_driver_is_removed_and_comes_back() {
    let Some((keeper, guest)) = boot("reload", &[]) else { return };
    keeper.set_balloon(Bytes::mib(32));
    wait_actual(&keeper, Bytes::mib(32));
    guest.send("unload virtio_balloon", LIMIT).unwrap();
    keeper.wait("the driver to go", |k| (!k.status().driver_ready).then_some(()));
    assert_eq!(keeper.status().ledger.ballooned.0, 0);
    assert!(keeper.kill_back_end(), "a successor must not start the old driver's rings");
    keeper.wait("another back end", |k| (k.status().epoch > 1).then_some(()));
    assert!(!keeper.status().driver_ready);
    guest.send("load virtio_balloon", LIMIT).unwrap();
    wait_actual(&keeper, Bytes::mib(32));
    assert_eq!(keeper.status().ledger.ballooned, pages(Bytes::mib(32)).0);
    assert_console_is_quiet(&guest);
}

#[test]
fn a_back_end_that_dies_again_and_again_rests_and_the_guest_goes_on() {
    let Some((keeper, guest)) = boot("given-up", &["--give-up-after", "3"]) else { return };
    keeper.set_balloon(Bytes::mib(16));
    wait_actual(&keeper, Bytes::mib(16));
    guest.send("fill 32M 1", LIMIT).unwrap();
    keeper.wait("the control socket to go", |k| {
        k.kill_back_end();
        (!k.control_socket().exists()).then_some(())
    });
    assert!(keeper.back_end().is_none());
    guest.send("verify", LIMIT).unwrap();
    // Its shutdown empties the balloon and waits for each answer; the next back end gives them.
    guest.begin("reboot").unwrap();
    guest.wait_boots(2, LIMIT).unwrap_or_else(|error| panic!("{error}\n{}", keeper.log()));
    wait_actual(&keeper, Bytes::mib(16));
}

#[test]
fn an_idle_keeper_and_its_back_end_cost_next_to_nothing() {
    let Some((keeper, _guest)) = boot("idle", &[]) else { return };
    keeper.wait("statistics", |k| k.status().stats);
    let both = [keeper.pid(), keeper.back_end().unwrap()];
    let used = || both.iter().map(|pid| common::ticks(*pid)).sum::<u64>();
    let begin = (Instant::now(), used());
    // Not a wait for a state: it is the time over which is measured.
    std::thread::sleep(Duration::from_secs(5));
    let ticks = used() - begin.1;
    // A tick is 10 ms, so this is 1 % of a core; there is one statistics buffer a second to be read.
    assert!(ticks <= 5, "{ticks} ticks in {:?}", begin.0.elapsed());
    let rss: Vec<_> = both.iter().map(|pid| common::resident_kib(*pid)).collect();
    assert!(rss.iter().sum::<u64>() < 24 * 1024, "keeper and back end hold {rss:?} KiB");
}
