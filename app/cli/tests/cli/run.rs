//! VMs that are started and stopped: real processes under a daemon that is none.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{FakeDaemon, Told, uml};
use plimsoll_api::http::{ProcessRef, StopHow};
use plimsoll_testbed::guard::Marked;
use plimsoll_testbed::paths::program;
use plimsoll_testbed::skip::{unless_available, unless_root};
use plimsoll_testbed::wait::poll_until;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon, a disk with nothing on it, and a mark on all that is started, which ends with the test.
struct Bed {
    daemon: FakeDaemon,
    disk: PathBuf,
    mark: Marked,
}

impl Bed {
    /// `None`, loudly, where there is no QEMU.
    fn with_qemu(test: &str) -> Option<Self> {
        unless_available(test, program("qemu-system-x86_64", "qemu-system-x86"))?;
        let daemon = FakeDaemon::start();
        let disk = daemon.run_dir().join("disk.img");
        fs::write(&disk, [0; 512]).unwrap();
        Some(Self { daemon, disk, mark: Marked::new("cli").unwrap() })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.daemon.command(args);
        self.mark.put_on(&mut command);
        command
    }

    /// `run` of a QEMU that finds nothing to boot and stays.
    fn run_command(&self, more: &[&str]) -> Command {
        let disk = self.disk.to_str().unwrap();
        let args = ["run", "--name", "q", "--memory", "32M", "--accel", "tcg", "--disk", disk];
        self.command(&[&args[..], more].concat())
    }

    fn vm_dir(&self) -> PathBuf {
        self.daemon.run_dir().join("run/q")
    }

    /// The VMM, as `run` wrote it down.
    fn vmm(&self) -> Option<ProcessRef> {
        recorded(&self.vm_dir())
    }

    /// No process, no folder, no registration.
    #[track_caller]
    fn nothing_left(&self) {
        assert!(!self.vm_dir().exists());
        assert!(self.daemon.world().vms.is_empty());
        let left = plimsoll_testbed::guard::leftovers(self.mark.mark());
        assert!(left.is_empty(), "{left:?}");
    }
}

fn recorded(dir: &Path) -> Option<ProcessRef> {
    let json: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("vm.json")).ok()?).ok()?;
    serde_json::from_value(json["vmm"].clone()).ok()
}

fn told(mut command: Command) -> Told {
    Told::of(command.output().unwrap())
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

fn is_alive(process: ProcessRef) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", process.pid)).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_qemu_runs_keeps_its_name_and_is_stopped_without_the_daemon() {
    let Some(mut bed) = Bed::with_qemu("a_qemu_runs_keeps_its_name_and_is_stopped_without_the_daemon") else {
        return;
    };
    let run = told(bed.run_command(&[]));
    let vmm = bed.vmm().unwrap();
    let console = bed.vm_dir().join("console.log");
    assert_eq!(run.answer(), format!("q runs: pid {}, console {}\n", vmm.pid, console.display()));
    assert_eq!(fs::metadata(bed.vm_dir()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(fs::metadata(bed.vm_dir().join("console.in")).unwrap().file_type().is_fifo());
    assert_eq!(bed.daemon.world().vms["q"].vmm, Some(vmm));
    let stat = fs::read_to_string(format!("/proc/{}/stat", vmm.pid)).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_string();
    assert_eq!(session, vmm.pid.to_string(), "it must lead a session of its own");

    told(bed.run_command(&[])).refused(1, &["the name `q` is taken"]);
    assert_eq!(bed.vmm(), Some(vmm), "the second one disturbed the first");

    // The fake said that it runs before QEMU had come so far.
    let qmp = bed.vm_dir().join("qmp.sock");
    poll_until(PATIENCE, "QMP", || qmp.exists().then_some(()).ok_or("no socket".to_string())).unwrap();
    bed.daemon.kill();
    let stop = told(bed.command(&["stop", "q", "--timeout", "300ms"]));
    assert_eq!(stop.answer(), "q did not shut down in time and was ended\n");
    assert!(stop.stderr.contains("the daemon is not running; going on without it"), "{stop:?}");
    assert!(!is_alive(vmm));
    bed.daemon.world().vms.clear();
    bed.nothing_left();
}

#[test]
fn the_daemon_is_told_each_step_of_a_stop() {
    let Some(bed) = Bed::with_qemu("the_daemon_is_told_each_step_of_a_stop") else { return };
    told(bed.run_command(&[])).answer();
    // This daemon does nothing about it, so that it comes to the last step.
    let stop = told(bed.command(&["stop", "q", "--timeout", "200ms"]));
    assert_eq!(stop.answer(), "q was killed\n");
    let steps: Vec<StopHow> = bed.daemon.world().stops.iter().map(|stop| stop.how).collect();
    assert_eq!(steps, [StopHow::Announce, StopHow::Powerdown, StopHow::Quit]);
    bed.nothing_left();
}

#[test]
fn a_vmm_that_ends_at_once_leaves_its_words_and_nothing_else() {
    let Some(bed) = Bed::with_qemu("a_vmm_that_ends_at_once_leaves_its_words_and_nothing_else") else {
        return;
    };
    bed.daemon.world().never_running = true;
    let run = told(bed.run_command(&["--qemu-arg", "-no-such-option"]));
    run.refused(1, &["cannot run q: its VMM ended with exit status: 1", "ended with:", "no-such-option"]);
    bed.nothing_left();
}

#[test]
fn ctrl_c_during_run_takes_everything_back() {
    let Some(bed) = Bed::with_qemu("ctrl_c_during_run_takes_everything_back") else { return };
    bed.daemon.world().never_running = true;
    let child = bed.run_command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let vmm = poll_until(PATIENCE, "a VMM", || bed.vmm().ok_or("none".to_string())).unwrap();
    interrupt(&child);
    Told::of(child.wait_with_output().unwrap()).refused(1, &["cannot run q: stopped by Ctrl-C"]);
    assert!(!is_alive(vmm));
    bed.nothing_left();
}

#[test]
fn in_the_foreground_ctrl_c_stops_and_a_second_one_ends() {
    let Some(bed) = Bed::with_qemu("in_the_foreground_ctrl_c_stops_and_a_second_one_ends") else { return };
    let child =
        bed.run_command(&["--foreground"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let running = || bed.daemon.world().vms.get("q").is_some_and(|vm| vm.vmm.is_some());
    poll_until(PATIENCE, "a VMM", || running().then_some(()).ok_or("none".to_string())).unwrap();
    let asked = |n: usize| {
        poll_until(PATIENCE, "a stop", || {
            let seen = bed.daemon.world().stops.len();
            (seen >= n).then_some(()).ok_or(format!("{seen}"))
        })
        .unwrap();
    };
    // The fake is told the VMM before the command has seen that the VM runs, so the first Ctrl-C may come while
    // it is still starting; its own log tells when it follows.
    let following = || bed.daemon.world().asked.iter().filter(|asked| *asked == "GET q").count() >= 2;
    poll_until(PATIENCE, "following", || following().then_some(()).ok_or("not yet".to_string())).unwrap();
    interrupt(&child);
    asked(2);
    assert!(bed.vmm().is_some_and(is_alive), "a guest was not given time to shut down");
    interrupt(&child);
    let told = Told::of(child.wait_with_output().unwrap());
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.stderr.contains("ending it at once"), "{told:?}");
    bed.nothing_left();
}

#[test]
fn a_vm_that_has_ended_by_itself_makes_room_and_is_cleared() {
    let Some(bed) = Bed::with_qemu("a_vm_that_has_ended_by_itself_makes_room_and_is_cleared") else { return };
    told(bed.run_command(&[])).answer();
    let first = bed.vmm().unwrap();
    kill_process(Pid::from_raw(i32::try_from(first.pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    poll_until(PATIENCE, "its end", || (!is_alive(first)).then_some(()).ok_or("alive".to_string())).unwrap();
    bed.daemon.world().vms.get_mut("q").unwrap().life = plimsoll_api::http::Life::Gone;
    told(bed.run_command(&[])).answer();
    let second = bed.vmm().unwrap();
    assert_ne!(first, second);
    kill_process(Pid::from_raw(i32::try_from(second.pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    poll_until(PATIENCE, "its end", || (!is_alive(second)).then_some(()).ok_or("alive".to_string())).unwrap();
    assert_eq!(told(bed.command(&["stop", "q"])).answer(), "q had ended already; cleared away\n");
    bed.nothing_left();
}

/// A folder with a copy of the command and programs of our own beside it.
fn with_programs(programs: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(env!("CARGO_BIN_EXE_plimsoll"), dir.path().join("plimsoll")).unwrap();
    for (name, script) in programs {
        let path = dir.path().join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

#[test]
fn a_keeper_that_ends_at_once_leaves_its_words_and_nothing_else() {
    let bin = with_programs(&[
        ("plimsoll-keeper", "#!/bin/sh\necho 'the sea is rough' >&2\nexit 7\n"),
        ("plimsoll-backend", "#!/bin/sh\nexit 1\n"),
    ]);
    let daemon = FakeDaemon::start();
    let told = Command::new(bin.path().join("plimsoll"))
        .arg("--run-dir")
        .arg(daemon.run_dir())
        .args(["run", "--name", "u", "--memory", "32M", "--vmm", "uml", "--kernel", "/bin/sh"])
        .output()
        .unwrap();
    Told::of(told).refused(1, &["cannot run u: its keeper ended with exit status: 7", "the sea is rough"]);
    assert!(!daemon.run_dir().join("run/u").exists());
    assert!(daemon.world().vms.is_empty());
}

#[test]
fn a_process_of_somebody_else_is_never_killed() {
    let Some(()) = unless_root("a_process_of_somebody_else_is_never_killed") else { return };
    let daemon = FakeDaemon::start();
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.id())).unwrap();
    let start_time = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let it = ProcessRef { pid: bystander.id(), start_time };
    let mut vm = uml("bait");
    (vm.owner_uid, vm.vmm) = (65534, Some(it));
    daemon.world().vms.insert("bait".to_string(), vm.clone());
    daemon.run(&["stop", "bait", "--kill"]).refused(1, &["belongs to user 0", "not touched"]);
    // A number that was used again is not taken for the process that had it.
    vm.vmm = Some(ProcessRef { start_time: start_time + 1, ..it });
    daemon.world().vms.insert("bait".to_string(), vm);
    assert_eq!(daemon.run(&["stop", "bait", "--kill"]).answer(), "bait had ended already; cleared away\n");
    assert!(bystander.try_wait().unwrap().is_none(), "a bystander was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}
