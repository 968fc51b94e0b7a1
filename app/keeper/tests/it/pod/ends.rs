//! How keeper, VMM and back end end, and what becomes of the others.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use plimsoll_testbed::guard::ShmDir;
use plimsoll_uffd::agreement::{OnPagerLoss, exit};
use plimsoll_units::{Bytes, PAGE_SIZE};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::Signal;

use super::guest::{MAXMEM, TARGET, guest_memory, pages, resident, uffd};
use super::process::Vmm;
use crate::common::{Keeper, LIMIT, backend};

/// A VMM with its memory served, and four pages of it touched.
fn served(test: &str, loss: OnPagerLoss) -> Option<(OwnedFd, Keeper, Vmm)> {
    uffd(test)?;
    let memory = guest_memory(MAXMEM.0);
    let keeper = Keeper::start_pod(test, &memory, TARGET, &[]);
    let mut vmm = Vmm::start(&keeper, &memory, loss);
    assert_eq!(vmm.ask("map"), "ok", "{}", keeper.log());
    assert_eq!(vmm.ask("touch 0 4"), "ok 4");
    Some((memory, keeper, vmm))
}

fn kill(keeper: &mut Keeper) {
    keeper.process.signal(Signal::KILL).unwrap();
    keeper.process.wait_exit(LIMIT).unwrap();
}

#[test]
fn a_keeper_that_is_killed_leaves_a_guest_that_stalls_or_goes_on_as_was_agreed() {
    let far = 40 << 20;
    let touch = format!("touch {far} 4");
    let Some((memory, mut keeper, mut vmm)) = served("pod-loss-stall", OnPagerLoss::Stall) else { return };
    let before = resident(&memory);
    kill(&mut keeper);
    assert_eq!(vmm.ask("touch 0 4"), "ok 4", "what is there can be used");
    vmm.begin(&touch);
    vmm.waits();
    assert_eq!(resident(&memory), before);

    let Some((memory, mut keeper, mut vmm)) = served("pod-loss-open", OnPagerLoss::Open) else { return };
    let all = pages(MAXMEM);
    vmm.begin(&format!("touch 0 {all}"));
    keeper.wait("a stall", |k| k.pager().stalled);
    kill(&mut keeper);
    assert_eq!(vmm.reply(), format!("ok {all}"));
    assert_eq!(resident(&memory), MAXMEM.0, "nothing limits it any more");
}

#[test]
fn with_its_vmm_the_keeper_ends_and_the_memory_is_the_hosts() {
    let Some((memory, mut keeper, mut vmm)) = served("pod-vmm-killed", OnPagerLoss::Stall) else { return };
    let back_end = keeper.back_end().unwrap();
    assert!(resident(&memory) > 0);
    vmm.process.kill().unwrap();
    assert!(keeper.process.wait_exit(LIMIT).unwrap().success(), "{}", keeper.log());
    // Although this process has the file open.
    assert_eq!(resident(&memory), 0);
    assert!(!keeper.socket().exists() && !keeper.control_socket().exists());
    assert!(!std::path::Path::new(&format!("/proc/{back_end}")).exists());
}

#[test]
fn told_to_end_it_takes_everything_along() {
    let Some((_memory, mut keeper, mut vmm)) = served("pod-term", OnPagerLoss::Open) else { return };
    keeper.process.signal(Signal::TERM).unwrap();
    assert!(keeper.process.wait_exit(LIMIT).unwrap().success());
    assert!(!keeper.socket().exists() && !keeper.control_socket().exists());
    assert_eq!(vmm.ask("touch 4096 4"), "ok 4");
}

#[test]
fn a_vmm_may_unmap_its_memory_and_map_it_anew() {
    let Some((memory, keeper, mut vmm)) = served("pod-anew", OnPagerLoss::Stall) else { return };
    let twice = MAXMEM.0;
    assert_eq!(vmm.ask(&format!("unmap 0 {twice}")), "ok");
    assert_eq!(vmm.ask("map"), "ok", "{}", keeper.log());
    let status = keeper.status();
    assert_eq!((status.generation, status.pager.unwrap().mapped), (2, true));
    let mut first = [0; 1];
    rustix::io::pread(&memory, &mut first, PAGE_SIZE).unwrap();
    assert_eq!(first, [7], "what was in the file stays");
    assert_eq!(vmm.ask("touch 8388608 4"), "ok 4");
    assert_eq!(keeper.pager().resident.0, resident(&memory));
}

#[test]
fn without_a_back_end_a_vmm_is_refused_and_the_keeper_gives_up() {
    if uffd("pod-no-back-end").is_none() {
        return;
    }
    let memory = guest_memory(MAXMEM.0);
    // A back end that ends as soon as there is something to be served.
    let fails = ShmDir::create("fails").unwrap();
    let script = fails.path().join("backend");
    let real = backend().display();
    let flag = fails.path().join("flag");
    let text = format!("#!/bin/sh\n[ -e {} ] && exit 1\nexec {real} \"$@\"\n", flag.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut keeper = Keeper::start_pod_with("no-back-end", &memory, TARGET, &script, &[]);
    keeper.status();
    std::fs::write(&flag, "").unwrap();
    let mut vmm = Vmm::start(&keeper, &memory, OnPagerLoss::Stall);
    vmm.begin("map");
    let status = vmm.process.wait_exit(LIMIT).unwrap();
    assert_eq!(status.code(), Some(exit::PAGER));
    assert!(vmm.said().contains("refuses this guest's memory"), "{}", vmm.said());
    assert!(!keeper.process.wait_exit(LIMIT).unwrap().success());
    assert!(keeper.log().contains("no VMM is connected"), "{}", keeper.log());
}

#[test]
fn mistakes_are_told() {
    let memory = |bytes, seals| {
        let memory = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memory, bytes).unwrap();
        rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
        Stdio::from(memory)
    };
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let good = || memory(Bytes::mib(16).0, sealed);
    for (arguments, stdin, word) in [
        ("--pod --maxmem 16M", good(), "--target"),
        ("--target 8M --maxmem 16M", good(), "--pod"),
        ("--pod --target 8M --maxmem 16M --agent-line", good(), "--agent-line"),
        ("--pod --target 8M --maxmem 16M --initial-balloon 5", good(), "--initial-balloon"),
        ("--pod --target 32M --maxmem 16M", good(), "more than --maxmem"),
        ("--pod --target 0 --maxmem 16M", good(), "whole pages"),
        ("--pod --target 8M --maxmem 16777215", good(), "whole pages"),
        ("--pod --target 8M --maxmem 16M", Stdio::null(), "no memfd"),
        ("--pod --target 8M --maxmem 16M", memory(Bytes::mib(16).0, SealFlags::SHRINK), "not sealed"),
        ("--pod --target 8M --maxmem 16M", memory(Bytes::mib(8).0, sealed), "8388608 bytes"),
    ] {
        let dir = ShmDir::create("mistakes").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-keeper"));
        command.args(["--name", "x", "--dir"]).arg(dir.path()).arg("--backend").arg(backend());
        let output = command.args(arguments.split(' ')).stdin(stdin).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{arguments}: {said}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
