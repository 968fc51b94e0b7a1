//! Kernels, disks and daemons that are not what they should be.

use std::fs;

use plimsoll_e2e::{Bed, CALM, Kind, sizes};

use crate::{World, refused};

#[test]
fn a_vm_that_cannot_start_leaves_nothing() {
    let Some(bed) = Bed::new("a_vm_that_cannot_start_leaves_nothing", CALM) else { return };
    let text = bed.scratch().join("text");
    fs::write(&text, "hello").expect("writes");
    let (text, folder) = (text.display().to_string(), bed.scratch().display().to_string());
    let run = |more: &[&str], code: i32, words: &[&str]| {
        let args = [&["run", "--name", "new", "--memory", "64M"], more].concat();
        refused(&bed, &args, code, words)
    };
    run(&["--kernel", "/no/such/kernel"], 1, &["new", "kernel /no/such/kernel", "No such file"]);
    run(
        &["--vmm", "uml", "--kernel", "/no/such/kernel"],
        1,
        &["new", "kernel /no/such/kernel", "No such file"],
    );
    run(&["--kernel", &folder], 1, &["new", &folder, "folder"]);
    run(&["--kernel", &text], 2, &["new", &text, "--vmm"]);
    run(&["--vmm", "uml", "--kernel", &text], 1, &["new", &text, "executed"]);
    run(&["--vmm", "uml", "--initrd", "/no/such/initrd"], 1, &["new", "/no/such/initrd", "No such file"]);
    run(&["--disk", "/no/such/disk"], 1, &["new", "disk /no/such/disk", "No such file"]);
    run(&["--vmm", "uml", "--cgroup", "no-such-group"], 1, &["new", "no-such-group"]);
    run(&[], 2, &["new", "--kernel"]);
    // A program that is no kernel ends at once.
    run(&["--vmm", "uml", "--kernel", "/bin/true"], 1, &["new", "ended with"]);
}

#[test]
fn what_qemu_refuses_is_told_in_its_words() {
    let Some(bed) = Bed::new("what_qemu_refuses_is_told_in_its_words", CALM) else { return };
    let more = ["--qemu-arg", "-no-such-option"];
    let Some(args) = bed.run_args(Kind::Qemu, "new", sizes(64, 64, 64), &more) else { return };
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    refused(&bed, &args, 1, &["new", "ended with", "-no-such-option: invalid option"]);
}

#[test]
fn a_second_daemon_is_told_of_the_first() {
    let Some(bed) = Bed::new("a_second_daemon_is_told_of_the_first", CALM) else { return };
    let before = World::of(&bed);
    let first = bed.daemon_pid();
    let pid = first.as_raw_nonzero().to_string();
    bed.cli(&["daemon"]).refused(1, &["another plimsolld", &pid, "--run-dir"]);
    assert_eq!((World::of(&bed), bed.daemon_pid()), (before, first));
}

#[test]
fn without_a_daemon_it_is_said_how_to_start_one() {
    let Some(bed) = Bed::new("without_a_daemon_it_is_said_how_to_start_one", CALM) else { return };
    bed.kill_daemon();
    for args in [&["list"][..], &["show", "web"], &["host"], &["events"], &["config", "show"]] {
        bed.cli(args).refused(1, &["no daemon answers", "daemon`"]);
    }
    // A socket that a killed daemon left behind is no daemon, and does not keep the next from starting.
    bed.start_daemon();
    assert_eq!(bed.list().vms, []);
}
