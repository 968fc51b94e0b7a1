//! The real daemon, keeper and back end with a real User Mode Linux guest, end to end.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::Told;
use plimsoll_api::http::{Life, ListView, VmView};
use plimsoll_model::Link;
use plimsoll_testbed::BedError;
use plimsoll_testbed::bins::{Bins, Prefer, bins};
use plimsoll_testbed::guard::{Marked, ShmDir, TestCgroup, leftovers};
use plimsoll_testbed::images::{self, Image};
use plimsoll_testbed::skip::{unless_available, unless_root};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

const PATIENCE: Duration = Duration::from_secs(60);

fn images(vmm: &str) -> Result<Image, BedError> {
    if vmm == "uml" { images::uml() } else { images::qemu() }
}

/// A daemon of its own in a folder of its own; everything that is started carries the mark.
pub(crate) struct Bed {
    bins: Bins,
    image: Image,
    dir: ShmDir,
    mark: Marked,
}

impl Bed {
    pub(crate) fn start(test: &str, vmm: &str) -> Option<Self> {
        let bins = unless_available(test, bins(Prefer::Same))?;
        let image = unless_available(test, images(vmm))?;
        let bed =
            Self { bins, image, dir: ShmDir::create("cli").unwrap(), mark: Marked::new("cli-real").unwrap() };
        bed.start_daemon();
        Some(bed)
    }

    fn start_daemon(&self) {
        let log = fs::File::create(self.dir.path().join("daemon.log")).unwrap();
        let mut daemon = self.command(&["daemon"]);
        daemon.stderr(log).stdout(Stdio::null());
        plimsoll_testbed::guard::Process::spawn("plimsolld", daemon).map(std::mem::forget).unwrap();
        poll_until(PATIENCE, "a daemon", || {
            let told = self.run(&["host", "--json"]);
            if told.code == 0 { Ok(()) } else { Err(told.stderr) }
        })
        .unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.bins.plimsoll);
        self.mark.put_on(&mut command);
        command.arg("--run-dir").arg(self.dir.path()).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Told {
        Told::of(self.command(args).output().unwrap())
    }

    pub(crate) fn run_web(&self, more: &[&str]) -> Told {
        let (kernel, initrd) = (self.image.kernel.to_str().unwrap(), self.image.initrd.to_str().unwrap());
        let args = ["run", "--name", "web", "--memory", "96M", "--maxmem", "192M", "--kernel", kernel];
        self.run(&[&args[..], &["--initrd", initrd], more].concat())
    }

    pub(crate) fn web(&self) -> VmView {
        let list: ListView = serde_json::from_str(self.run(&["list", "--json"]).answer()).unwrap();
        list.vms.into_iter().find(|vm| vm.name.as_str() == "web").unwrap()
    }

    /// Waits until the guest holds so much, driver and all.
    fn reaches(&self, wanted: Bytes) -> VmView {
        poll_until(PATIENCE, "the guest to follow", || {
            let vm = self.web();
            if vm.link == Link::Up && vm.actual.0 == wanted { Ok(vm) } else { Err(format!("{vm:?}")) }
        })
        .unwrap()
    }

    /// Waits until the guest holds what it should, whatever that is: Debian's kernel may need more than its baseline.
    fn settles(&self) -> VmView {
        poll_until(PATIENCE, "the guest to settle", || {
            let vm = self.web();
            if vm.link == Link::Up && vm.actual == vm.target { Ok(vm) } else { Err(format!("{vm:?}")) }
        })
        .unwrap()
    }

    pub(crate) fn vm_dir(&self) -> PathBuf {
        self.dir.path().join("run/web")
    }

    /// Nothing of the VM is left: no folder, no process but the daemon.
    #[track_caller]
    pub(crate) fn only_the_daemon_is_left(&self) {
        assert!(!self.vm_dir().exists());
        let left: Vec<String> =
            leftovers(self.mark.mark()).into_iter().filter(|left| !left.contains("plimsolld")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_guest_runs_follows_its_target_explains_itself_and_stops() {
    let Some(bed) = Bed::start("a_guest_runs_follows_its_target_explains_itself_and_stops", "uml") else {
        return;
    };
    assert!(bed.run_web(&[]).answer().starts_with("web runs: pid "));
    let vm = bed.reaches(Bytes::mib(96));
    assert_eq!((vm.life, vm.sizes.maxmem()), (Life::Running, Bytes::mib(192)));
    assert!(vm.vmm.is_some() && vm.keeper.is_some(), "{vm:?}");

    bed.run_web(&[]).refused(1, &["web"]);
    assert_eq!(bed.web().vmm, vm.vmm, "a second one of the name disturbed the first");

    bed.run(&["hold", "web", "64M"]).answer();
    bed.reaches(Bytes::mib(64));
    assert!(bed.run(&["explain", "web"]).answer().contains("`plimsoll release web`"));
    bed.run(&["hold", "web", "500M"]).refused(1, &["cannot hold web"]);
    bed.run(&["hold", "web", "128M"]).answer();
    bed.reaches(Bytes::mib(128));
    bed.run(&["release", "web"]).answer();
    bed.run(&["set", "web", "memory=112M", "weight=200"]).answer();
    assert_eq!(bed.web().sizes.weight(), 200);
    for kind in ["registered", "running", "held", "released"] {
        assert!(bed.run(&["events", "web"]).answer().contains(kind), "{kind}");
    }
    // Linux answers Ctrl-Alt-Del by rebooting; the VM is ended as it comes up again.
    assert_eq!(bed.run(&["stop", "web"]).answer(), "web has shut down\n");
    assert!(bed.run(&["list"]).answer().contains("no VMs"));
    bed.only_the_daemon_is_left();
}

#[test]
fn a_guest_in_a_cgroup_is_killed_and_leaves_neither_process_nor_group() {
    const NAME: &str = "a_guest_in_a_cgroup_is_killed_and_leaves_neither_process_nor_group";
    let Some(()) = unless_root(NAME) else { return };
    let Some(bed) = Bed::start(NAME, "uml") else { return };
    let group = TestCgroup::create("cli", Bytes::mib(512)).unwrap();
    let parent = group.path().file_name().unwrap().to_str().unwrap().to_string();
    bed.run_web(&["--cgroup", &parent]).answer();
    let vm = bed.reaches(Bytes::mib(96));
    let procs = fs::read_to_string(group.path().join("web/cgroup.procs")).unwrap();
    for process in [vm.vmm.unwrap(), vm.keeper.unwrap()] {
        assert!(
            procs.lines().any(|line| line == process.pid.to_string()),
            "{} not in:\n{procs}",
            process.pid
        );
    }
    assert_eq!(bed.run(&["stop", "web", "--kill"]).answer(), "web was killed\n");
    assert!(!group.path().join("web").exists());
    bed.only_the_daemon_is_left();
}

#[test]
fn a_qemu_with_debians_kernel_runs_follows_its_target_and_ends() {
    const NAME: &str = "a_qemu_with_debians_kernel_runs_follows_its_target_and_ends";
    let Some(bed) = Bed::start(NAME, "qemu") else { return };
    bed.run_web(&["--accel", "tcg"]).answer();
    let vm = bed.settles();
    assert!(vm.target.0 >= Bytes::mib(96) && vm.target.0 < Bytes::mib(192), "{vm:?}");
    let pager = vm.pager.and_then(|pager| pager.status).unwrap();
    assert!(pager.mapped && pager.resident <= vm.target.0, "{pager:?}");
    bed.run(&["hold", "web", "128M"]).answer();
    bed.reaches(Bytes::mib(128));
    // This guest has nobody who would answer the power button.
    assert_eq!(
        bed.run(&["stop", "web", "--timeout", "500ms"]).answer(),
        "web did not shut down in time and was ended\n"
    );
    bed.only_the_daemon_is_left();
}

#[test]
fn in_the_foreground_the_console_is_shown_until_ctrl_c() {
    const NAME: &str = "in_the_foreground_the_console_is_shown_until_ctrl_c";
    let Some(bed) = Bed::start(NAME, "uml") else { return };
    let (kernel, initrd) = (bed.image.kernel.to_str().unwrap(), bed.image.initrd.to_str().unwrap());
    let args =
        ["run", "--name", "web", "--memory", "96M", "--kernel", kernel, "--initrd", initrd, "--foreground"];
    let shown = bed.dir.path().join("shown");
    let stdout = fs::File::create(&shown).unwrap();
    let mut child = bed.command(&args).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    poll_until(PATIENCE, "the guest's words", || {
        let text = fs::read_to_string(&shown).unwrap();
        if text.contains("Run /init as init process") { Ok(()) } else { Err(text) }
    })
    .unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    bed.only_the_daemon_is_left();
    assert!(bed.run(&["list"]).answer().contains("no VMs"));
}
