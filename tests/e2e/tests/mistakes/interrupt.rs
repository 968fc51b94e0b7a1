//! `run`, interrupted.

use std::process::Stdio;
use std::time::Duration;

use plimsoll_api::http::Life;
use plimsoll_e2e::{Bed, CALM, Kind, PATIENCE, sizes};
use plimsoll_testbed::guard::Process;
use plimsoll_testbed::wait::poll_until;
use rustix::process::{Signal, kill_process_group};

/// Types `run`, with its console and messages into a file of the bed.
fn begin(bed: &Bed, args: &[String]) -> Process {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let log = std::fs::File::create(bed.scratch().join("typed")).expect("makes");
    let mut command = bed.command(&args);
    command.stdout(Stdio::from(log.try_clone().expect("another"))).stderr(Stdio::from(log));
    Process::spawn("plimsoll run", command).expect("starts")
}

/// What Ctrl-C does: every process in the terminal's foreground gets it.
fn ctrl_c(process: &Process) {
    kill_process_group(process.pid(), Signal::INT).expect("it runs");
}

fn said(bed: &Bed) -> String {
    std::fs::read_to_string(bed.scratch().join("typed")).expect("reads")
}

/// Ctrl-C at one stage after the other of the way up: whatever was done by then is undone.
fn interrupted_on_the_way_up(test: &str, kind: Kind) {
    let Some(bed) = Bed::new(test, CALM) else { return };
    let Some(args) = bed.run_args(kind, "new", sizes(64, 64, 64), &[]) else { return };
    let dir = bed.vm_dir("new");
    let mut interrupted = 0;
    for stage in ["vm.json", "console.in", "console.log"] {
        let mut run = begin(&bed, &args);
        let look = || if dir.join(stage).exists() { Ok(()) } else { Err(said(&bed)) };
        poll_until(PATIENCE, stage, look).unwrap_or_else(|error| panic!("{error}"));
        // It may have come all the way already.
        let _ = kill_process_group(run.pid(), Signal::INT);
        let status = run.wait_exit(PATIENCE).expect("ends");
        if status.success() {
            bed.ok(&["stop", "new", "--kill"]);
        } else {
            assert_eq!(status.code(), Some(1), "{}", said(&bed));
            // The signal also reaches what it is just starting, as long as that has no session of its own.
            let words = said(&bed);
            assert!(words.contains("stopped by Ctrl-C") || words.contains("SIGINT"), "{words}");
            interrupted += 1;
        }
        assert_eq!(bed.list().vms, [], "{}", said(&bed));
        bed.only_the_daemon_is_left();
    }
    assert!(interrupted > 0, "every run came up before it could be interrupted");
}

#[test]
fn a_uml_guest_interrupted_on_its_way_up_leaves_nothing() {
    interrupted_on_the_way_up("a_uml_guest_interrupted_on_its_way_up_leaves_nothing", Kind::Uml);
}

#[test]
fn a_qemu_guest_interrupted_on_its_way_up_leaves_nothing() {
    interrupted_on_the_way_up("a_qemu_guest_interrupted_on_its_way_up_leaves_nothing", Kind::Qemu);
}

/// In the foreground the first Ctrl-C asks the guest, the second does not.
#[test]
fn a_guest_in_the_foreground_ends_with_the_second_ctrl_c() {
    const NAME: &str = "a_guest_in_the_foreground_ends_with_the_second_ctrl_c";
    let Some(bed) = Bed::new(NAME, CALM) else { return };
    let Some(args) = bed.run_args(Kind::Uml, "new", sizes(64, 64, 64), &["--foreground"]) else { return };
    let mut run = begin(&bed, &args);
    let ready = || if said(&bed).contains("@plimsoll - ready") { Ok(()) } else { Err(said(&bed)) };
    poll_until(PATIENCE, "the guest's console", ready).unwrap_or_else(|error| panic!("{error}"));
    ctrl_c(&run);
    // The workload does not care for Ctrl-Alt-Del.
    bed.wait_vm("new", PATIENCE, "to be stopping", |view| view.life == Life::Stopping);
    let words = said(&bed);
    assert!(words.contains("again to end it at once"), "{words}");
    ctrl_c(&run);
    let status = run.wait_exit(Duration::from_secs(10)).expect("ends at once");
    assert!(status.success(), "{status}: {}", said(&bed));
    assert_eq!(bed.list().vms, []);
    bed.only_the_daemon_is_left();
}

/// Nobody who reads the console is no reason to leave a guest behind.
#[test]
fn a_guest_in_the_foreground_goes_with_its_terminal() {
    const NAME: &str = "a_guest_in_the_foreground_goes_with_its_terminal";
    let Some(bed) = Bed::new(NAME, CALM) else { return };
    let Some(args) = bed.run_args(Kind::Uml, "new", sizes(64, 64, 64), &["--foreground"]) else { return };
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut command = bed.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    bed.wait_vm("new", PATIENCE, "to run", |view| view.life == Life::Running);
    drop(child.stdout.take());
    let ended = || child.try_wait().ok().flatten().ok_or_else(|| "it runs".to_owned());
    poll_until(PATIENCE, "the end of it", ended).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(bed.list().vms, []);
    bed.only_the_daemon_is_left();
}
