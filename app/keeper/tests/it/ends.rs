//! How keepers begin and end.

use std::process::Command;
use std::time::Duration;

use plimsoll_testbed::guard::{Process, ShmDir};
use plimsoll_units::Bytes;
use rustix::process::Signal;

use crate::common::{Keeper, LIMIT, backend, children};
use crate::driver::Front;

const MEM: Bytes = Bytes::mib(16);

#[test]
fn told_to_end_it_takes_everything_along() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut keeper = Keeper::start("term", MEM, &[]);
        keeper.status();
        let back_end = keeper.back_end().unwrap();
        keeper.process.signal(signal).unwrap();
        assert!(keeper.process.wait_exit(LIMIT).unwrap().success());
        assert!(!keeper.socket().exists() && !keeper.control_socket().exists());
        assert!(!std::path::Path::new(&format!("/proc/{back_end}")).exists());
    }
}

#[test]
fn killed_it_takes_its_back_end_along_and_another_takes_its_place() {
    let mut keeper = Keeper::start("killed", MEM, &[]);
    keeper.status();
    let back_end = keeper.back_end().unwrap();
    // The keeper alone, not its group: what the back end does then is the point.
    keeper.process.signal(Signal::KILL).unwrap();
    let status = format!("/proc/{back_end}/status");
    keeper.wait("the back end to end too", |_| {
        let gone = std::fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"));
        gone.then_some(())
    });
    keeper.process.wait_exit(LIMIT).unwrap();
    assert!(keeper.socket().exists(), "nobody could remove it");
    let again = run(&["--name", "x", "--maxmem", "16M", "--connect-timeout", "0"], &keeper);
    assert!(again.contains("no VMM has connected within 0 seconds"), "{again}");
    assert!(!keeper.socket().exists());
}

/// Runs a keeper in another's folder to its end; what it said.
fn run(arguments: &[&str], beside: &Keeper) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-keeper"));
    command.args(arguments).arg("--dir").arg(beside.dir()).arg("--backend").arg(backend());
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let keeper = Keeper::start("mistakes", MEM, &[]);
    let twice = run(&["--name", "x", "--maxmem", "16M"], &keeper);
    assert!(twice.contains("another keeper serves"), "{twice}");
    let status = keeper.status();
    assert_eq!(status.epoch, 1);
    for (arguments, word) in [
        (vec!["--name", "x", "--maxmem", "0"], "maxmem is 0"),
        (vec!["--name", "x", "--maxmem", "lots"], "does not begin with a number"),
        (vec!["--name", "x"], "--maxmem"),
    ] {
        let other = ShmDir::create("mistakes").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-keeper"));
        command.args(&arguments).arg("--dir").arg(other.path()).arg("--backend").arg(backend());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{arguments:?}: {said}");
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_back_end_that_cannot_be_started_is_an_error() {
    let dir = ShmDir::create("nothing").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-keeper"));
    command.args(["--name", "x", "--maxmem", "16M", "--backend", "/nonexistent", "--dir"]).arg(dir.path());
    let log = dir.path().join("log");
    command.stderr(std::fs::File::create(&log).unwrap());
    let status = Process::spawn("nothing", command).unwrap().wait_exit(Duration::from_secs(20)).unwrap();
    let said = std::fs::read_to_string(log).unwrap();
    assert!(!status.success() && said.contains("/nonexistent"), "{said}");
}

#[test]
fn started_by_hand_the_back_end_says_who_should_have() {
    let output = Command::new(backend())
        .args(["--name", "x", "--maxmem", "16M", "--ledger-frames", "20"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("plimsoll-keeper starts this program"), "{said}");
}

#[test]
fn what_is_wanted_outlives_back_ends_and_guests() {
    let keeper = Keeper::start("wanted", MEM, &["--initial-balloon", "100", "--give-up-after", "100"]);
    assert_eq!(keeper.status().num_pages.0.0, 100);
    keeper.set_balloon(Bytes(4096 * 77));
    for generation in 1..4 {
        let mut front = Front::connect(&keeper);
        front.start();
        front.inflate(&[700, 701]);
        keeper.wait("the inflation", |k| (k.status().ledger.ballooned.0 == 2).then_some(()));
        let epoch = keeper.status().epoch;
        keeper.kill_back_end();
        keeper.wait("another", |k| (k.status().epoch > epoch).then_some(()));
        let status = keeper.status();
        assert_eq!((status.generation, status.num_pages.0.0, status.ledger.ballooned.0), (generation, 77, 2));
        drop(front);
        keeper.wait("a cleared device", |k| {
            let status = k.status();
            (!status.connected && status.ledger.ballooned.0 == 0).then_some(())
        });
    }
    assert_eq!(children(keeper.pid()).len(), 1, "one back end at a time");
}
