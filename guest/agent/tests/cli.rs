//! The program as it is typed, on this machine: options, exit codes, a port that comes and goes.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use plimsoll_agent_proto::{Decoder, Report};
use plimsoll_testbed::wait::poll_until;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const STEP: Duration = Duration::from_secs(60);

fn agent(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"));
    command.args(args).stdin(Stdio::null());
    command
}

fn said(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = agent(args).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// A terminal: its near end, and the path of the other.
fn terminal() -> (OwnedFd, PathBuf) {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("opens");
    grantpt(&near).expect("grants");
    unlockpt(&near).expect("unlocks");
    let path = ptsname(&near, Vec::new()).expect("named");
    fcntl_setfl(&near, fcntl_getfl(&near).expect("known") | OFlags::NONBLOCK).expect("sets");
    (near, path.to_str().expect("text").into())
}

/// Reads until there is a report.
fn report_from(near: OwnedFd) -> (Report, File) {
    let (mut near, mut decoder) = (File::from(near), Decoder::new());
    let found = poll_until(STEP, "a report", || {
        let (mut bytes, mut report) = ([0; 4096], None);
        // While nobody has the other end open, reading is an error.
        let n = near.read(&mut bytes).map_err(|error| error.to_string())?;
        decoder.feed(&bytes[..n], |found| report = Some(found));
        report.ok_or_else(|| format!("{:?}", decoder.counters()))
    });
    assert_eq!((decoder.counters().bad_frames, decoder.counters().skipped_bytes), (0, 0));
    (found.unwrap_or_else(|error| panic!("{error}")), near)
}

/// Ends what was started, whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_report_as_text() {
    let (code, out, err) = said(&["--once", "--print"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.starts_with("seq=1 urgent=false total="), "{out}");
    for name in [" available=", " committed=", " reserve=", " swap_in=", " alloc_stalls="] {
        assert!(out.contains(name), "{name} is not in {out}");
    }
    assert_eq!(out.lines().count(), 1);
}

#[test]
fn wrong_use_is_2_and_help_is_0() {
    let (code, out, err) = said(&["--prot", "/dev/ttyS0"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.starts_with("plimsoll-agent: `--prot` is no option"), "{err}");
    let (code, out, _) = said(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("--port PATH") && out.contains("Exit codes: 0, 1 failed, 2 wrong use"), "{out}");
}

#[test]
fn a_port_that_cannot_be_used_is_1_and_named() {
    let file = tempfile::NamedTempFile::new().expect("makes");
    let path = file.path().to_str().expect("text");
    let (code, _, err) = said(&["--once", "--port", path]);
    assert_eq!(code, Some(1));
    assert!(err.contains(path) && err.contains("ordinary file"), "{err}");
}

#[test]
fn one_report_through_a_terminal() {
    let (near, path) = terminal();
    let child = agent(&["--once", "--port"]).arg(&path).spawn().expect("runs");
    let mut child = Running(child);
    let (report, _near) = report_from(near);
    assert!(report.seq == 1 && report.stats.total.is_some(), "{report:?}");
    assert_eq!(child.0.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_port_that_vanishes_is_opened_again_and_sigterm_ends() {
    let dir = tempfile::tempdir().expect("makes");
    let link = dir.path().join("port");
    let (near, path) = terminal();
    symlink(path, &link).expect("links");
    let child = agent(&["--interval", "100", "--port"]).arg(&link).stderr(Stdio::null()).spawn();
    let mut child = Running(child.expect("runs"));
    let (first, near) = report_from(near);
    // Another terminal behind the same name; only then does the first one vanish.
    let (other, path) = terminal();
    std::fs::remove_file(&link).expect("removes");
    symlink(path, &link).expect("links");
    drop(near);
    let (later, _near) = report_from(other);
    assert!(later.session == first.session && later.seq > first.seq, "{first:?} {later:?}");

    let pid = i32::try_from(child.0.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::TERM).expect("signals");
    let ended = poll_until(STEP, "its end", || match child.0.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(ended.expect("ends").code(), None, "ended by the signal");
}
