//! The testbed itself on real guests: what tests of Plimsoll rely on.

use std::process::Command;
use std::time::{Duration, Instant};

use plimsoll_testbed::guard::{DiskDir, TestCgroup};
use plimsoll_testbed::guest::{Accel, Guest, QemuSpec, UmlSpec, probe_kvm};
use plimsoll_testbed::skip::{skip, unless_available, unless_root};
use plimsoll_testbed::wait::poll_until;
use plimsoll_testbed::{BedError, images, paths};
use plimsoll_units::Bytes;

/// Longer than any step takes under emulation on a busy machine.
const STEP: Duration = Duration::from_secs(120);
/// What a guest needs beside what it is told to fill: page tables, the worker, the kernel's bookkeeping.
const BESIDE: Bytes = Bytes::mib(12);

/// Memory filled is on the host, survives a check of every byte, and the guest lives on.
/// `touched`: what the guest may have used and freed while it booted, which the host counts already.
fn fill_and_verify(guest: &Guest, filled: Bytes, touched: Bytes) {
    assert!(guest.send("ping", STEP).expect("answers").text().starts_with("pong"));
    // Starting the worker takes memory of its own.
    guest.send("fill 1M", STEP).expect("fills");
    let before = guest.resident().expect("counted");
    let done = guest.send(&format!("fill {} 7", filled.0), STEP).expect("fills");
    assert_eq!(done.number("pages"), Some(filled.pages_floor().0));
    let after = guest.resident().expect("counted");
    let grown = after.minus(before);
    let expected = filled.minus(touched)..=filled.plus(BESIDE);
    assert!(expected.contains(&grown), "grew by {grown} from {before} to {after}");
    let verdict = guest.send("verify", STEP).expect("verifies");
    assert_eq!(verdict.number("pages"), Some(filled.plus(Bytes::mib(1)).pages_floor().0));
    assert_eq!(guest.send("free", STEP).expect("frees").number("held"), Some(0));
    let meminfo = guest.send("meminfo", STEP).expect("answers");
    assert!(meminfo.number("available") > Some(filled.0), "{}", meminfo.text());
}

/// A long command does not keep short ones from being answered, and can be stopped.
fn ask_while_busy(guest: &Guest) {
    guest.send("fill 4M", STEP).expect("fills");
    let long = guest.begin("touch 3600").expect("begins");
    guest.send("ping", STEP).expect("answers");
    let counted = || {
        let stats = guest.send("stats", STEP).map_err(|error| error.to_string())?;
        if stats.number("seconds") >= Some(1) { Ok(()) } else { Err(stats.text().to_owned()) }
    };
    poll_until(STEP, "a second of touching", counted).expect("in time");
    guest.send("stop", STEP).expect("stops");
    let touched = guest.wait(&long, STEP).expect("ends well");
    assert!(touched.number("pages") > Some(0), "{}", touched.text());
    assert!(touched.text().contains("stopped=true"), "{}", touched.text());
    guest.send("free", STEP).expect("frees");
}

/// A command that is too much for the guest costs the worker, and nothing else.
fn run_out_of_memory(guest: &Guest) {
    let refused = guest.send("fill 2G", STEP).expect_err("the guest has less");
    assert!(matches!(&refused, BedError::Refused { answer, .. } if answer.contains("killed=9")), "{refused}");
    assert!(guest.send("balloon", STEP).expect("answers").number("oom_kill") >= Some(1));
    guest.send("fill 1M", STEP).expect("a new worker fills");
    guest.send("verify", STEP).expect("verifies");
}

fn reboot_and_power_off(guest: &Guest) {
    guest.send("reboot", STEP).expect("goes down");
    guest.wait_boots(2, STEP).expect("comes up again");
    assert!(guest.send("ping", STEP).expect("answers").text().starts_with("pong"));
    guest.send("poweroff", STEP).expect("goes down");
    let status = guest.wait_exit(STEP).expect("ends");
    assert!(status.success(), "{status}: {}", guest.console().tail(5));
}

#[test]
fn uml_boots_fills_reboots_and_ends() {
    let Some(image) = unless_available("uml_boots_fills_reboots_and_ends", images::uml()) else { return };
    let guest = UmlSpec::new("uml", Bytes::mib(160), image).boot().expect("boots");
    fill_and_verify(&guest, Bytes::mib(64), Bytes::mib(8));
    ask_while_busy(&guest);
    run_out_of_memory(&guest);
    reboot_and_power_off(&guest);
}

#[test]
fn qemu_boots_fills_reboots_and_ends() {
    let Some(image) = unless_available("qemu_boots_fills_reboots_and_ends", images::qemu()) else { return };
    let guest = QemuSpec::new("qemu", Bytes::mib(384), image).boot().expect("boots");
    fill_and_verify(&guest, Bytes::mib(192), Bytes::mib(64));
    ask_while_busy(&guest);
    run_out_of_memory(&guest);
    reboot_and_power_off(&guest);
}

#[test]
fn modules_can_be_left_out_and_loaded_later() {
    let Some(image) = unless_available("modules_can_be_left_out_and_loaded_later", images::qemu()) else {
        return;
    };
    let mut spec = QemuSpec::new("modules", Bytes::mib(192), image);
    spec.append = "plimsoll.skip=virtio_balloon,zram".into();
    let guest = spec.boot().expect("boots");
    assert!(matches!(guest.send("unload virtio_balloon", STEP), Err(BedError::Refused { .. })));
    guest.send("load virtio_balloon", STEP).expect("loads");
    guest.send("unload virtio_balloon", STEP).expect("unloads");
}

#[test]
fn a_script_runs_by_itself_in_a_control_group() {
    let name = "a_script_runs_by_itself_in_a_control_group";
    let Some(image) = unless_available(name, images::uml()) else { return };
    let Some(()) = unless_root(name) else { return };
    let cgroup = TestCgroup::create("script", Bytes::mib(256)).expect("makes");
    let mut spec = UmlSpec::new("script", Bytes::mib(128), image);
    spec.script = Some("fill:32M,verify,churn:0.5:16M,free,poweroff".into());
    spec.cgroup = Some(&cgroup);
    let guest = spec.launch().expect("starts");
    guest.wait_exit(STEP).expect("ends by itself");
    let peak = cgroup.peak().expect("counted");
    assert!(peak > Bytes::mib(32) && peak < Bytes::mib(200), "{peak}");
    let events = guest.console().events().expect("reads");
    let ended = |step: &str| {
        let found = events.iter().map(|event| &event.line);
        found
            .filter(|line| line.id == "script" && line.text.starts_with("end "))
            .any(|line| line.text.contains(step))
    };
    for step in [
        "\"fill 33554432 1\" ok",
        "\"verify\" ok pages=8192 bad_pages=0",
        "\"churn 0.5 16777216\" ok",
        "\"free\" ok",
    ] {
        assert!(ended(step), "{step} is not in {events:?}");
    }
}

#[test]
fn a_guest_that_cannot_boot_is_told_of_with_its_last_words() {
    let name = "a_guest_that_cannot_boot_is_told_of_with_its_last_words";
    let Some(mut image) = unless_available(name, images::uml()) else { return };
    image.initrd = "/dev/null".into();
    let error = UmlSpec::new("unbootable", Bytes::mib(64), image).boot().expect_err("has no first program");
    let BedError::Gone { console, .. } = &error else { panic!("{error}") };
    assert!(console.contains("Kernel panic") || console.contains("panic"), "{error}");
}

#[test]
fn the_kvm_probe_ends_and_tells_the_truth() {
    let name = "the_kvm_probe_ends_and_tells_the_truth";
    let Some(image) = unless_available(name, images::qemu()) else { return };
    let begin = Instant::now();
    if !probe_kvm() {
        assert!(begin.elapsed() < Duration::from_secs(60), "took {:?}", begin.elapsed());
        return skip("guests under KVM", "a probe boot under KVM does not come up on this machine");
    }
    let spec = QemuSpec { accel: Accel::Kvm, ..QemuSpec::new("kvm", Bytes::mib(192), image) };
    spec.boot().expect("the probe said that it boots").send("ping", STEP).expect("answers");
}

/// The compiler, the sources and the list are the host's; the guest has nothing of them in its image.
#[test]
fn the_hosts_compiler_works_in_a_guest_and_the_page_cache_keeps_it() {
    let name = "guests::the_hosts_compiler_works_in_a_guest_and_the_page_cache_keeps_it";
    let Some(image) = unless_available(name, images::uml()) else { return };
    let Some(compiler) = unless_available(name, paths::program("gcc", "gcc")) else { return };
    let dir = DiskDir::create("compile").expect("a directory");
    let (source, list) = (dir.path().join("a.c"), dir.path().join("list"));
    std::fs::write(&source, "int twice(int n) { return 2 * n; }\n").expect("writes");
    let cc1 = Command::new(&compiler).arg("-print-prog-name=cc1").output().expect("runs").stdout;
    let cc1 = String::from_utf8(cc1).expect("a path");
    let (compiler, source) = (compiler.display(), source.display());
    let good = format!("{compiler} -O2 -c {source} -o %o\n");
    std::fs::write(&list, format!("keep {}\n{good}{compiler} -c /no/such.c -o %o\n", cc1.trim()))
        .expect("writes");
    let mut spec = UmlSpec::new("compile", Bytes::mib(160), image);
    spec.disks = vec![dir.sparse_file("swap", Bytes::mib(16)).expect("makes")];
    let guest = spec.boot().expect("boots");
    guest.send("swapon /dev/ubda", STEP).expect("swaps");
    assert!(guest.send("meminfo", STEP).expect("answers").number("swap_total") > Some(8 << 20));
    guest.send("hostfs", STEP).expect("sees the host's files");
    let list = list.display();
    let built = guest.send(&format!("build {list} 2 1"), STEP).expect("compiles");
    assert_eq!((built.number("made"), built.number("failed")), (Some(1), Some(0)), "{}", built.text());
    let faults = || guest.send("vmstat", STEP).expect("answers").number("pgmajfault").expect("counted");
    let cold = faults();
    guest.send(&format!("build {list} 0 1"), STEP).expect("compiles");
    let warm = faults() - cold;
    // What is not kept (the assembler, libraries) is read again.
    assert!(warm < cold / 2, "{cold} faults that had to read, and then {warm}");
    let refused = guest.send(&format!("build {list} 0 2"), STEP).expect_err("one cannot").to_string();
    assert!(refused.contains("made=1") && refused.contains("/no/such.c"), "{refused}");
}
