//! What several of these tests need.

use std::io::Write;
use std::time::Duration;

use plimsoll_api::http::{ListView, VmView};
use plimsoll_e2e::{Bed, Kind, PATIENCE, Vm, mib, sizes};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// Name, what runs it, and memory, maxmem and floor in MiB.
pub(crate) type Spec = (&'static str, Kind, (u64, u64, u64));

/// What a guest in distress is left with while it takes all it gets: less than the 12M at which it is in distress, and
/// enough for its kernel not to look for memory in the balloon, or for a process to kill.
const LEFT: Bytes = mib(6);
/// Not worth being filled.
const NEAR: Bytes = mib(2);

/// A host that has the memory and overheads of these VMs, and nothing beyond; nothing else on this machine matters.
pub(crate) fn budget(specs: &[Spec]) -> Bytes {
    specs.iter().map(|(_, kind, (memory, ..))| mib(memory + if *kind == Kind::Uml { 16 } else { 64 })).sum()
}

/// The configuration for it.
pub(crate) fn config(budget: Bytes) -> String {
    format!(
        "[host]\nbudget = \"{budget}\"\nlow = \"1M\"\noverhead-uml = \"16M\"\noverhead-qemu = \"64M\"\n\
         [policy]\nhost-stall = \"100%\"\n"
    )
}

/// Starts them all at once, and waits until each has what it was promised.
pub(crate) fn start<'b>(bed: &'b Bed, specs: &[Spec]) -> Option<Vec<Vm<'b>>> {
    start_with(bed, specs, &[])
}

/// The same with more arguments to `run`.
pub(crate) fn start_with<'b>(bed: &'b Bed, specs: &[Spec], more: &[&str]) -> Option<Vec<Vm<'b>>> {
    let launch = |(name, kind, (memory, maxmem, floor)): &Spec| {
        bed.launch(*kind, name, sizes(*memory, *maxmem, *floor), more)
    };
    let vms = specs.iter().map(launch).collect::<Option<Vec<_>>>()?;
    for (vm, (.., (memory, ..))) in vms.iter().zip(specs) {
        vm.console.wait_ready(1, PATIENCE * 2).unwrap_or_else(|error| panic!("{}: {error}", vm.name));
        vm.reaches(mib(*memory));
    }
    for (vm, (.., (memory, ..))) in vms.iter().zip(specs) {
        // The worker runs, statistics have come, and the boot's own memory is counted.
        vm.send("fill 1M");
        vm.reaches(mib(*memory));
        vm.wait("statistics", PATIENCE, |view| view.need.is_some());
    }
    Some(vms)
}

/// One of a list.
#[track_caller]
pub(crate) fn of<'l>(list: &'l ListView, name: &str) -> &'l VmView {
    list.vms.iter().find(|vm| vm.name.as_str() == name).unwrap_or_else(|| panic!("no {name} in {list:#?}"))
}

/// The line that `plimsoll list` prints of a VM, which has these words in it.
#[track_caller]
pub(crate) fn is_listed(bed: &Bed, name: &str, words: &[&str]) {
    let text = bed.ok(&["list"]);
    let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    for word in words {
        assert!(line.contains(word), "`{word}` is not said of {name} in\n{text}");
    }
}

/// A guest that takes whatever it is given and is in distress all the time, without ever being so short that its
/// kernel would help itself from the balloon.
pub(crate) struct Needy<'v, 'b>(pub(crate) &'v Vm<'b>);

impl Needy<'_, '_> {
    /// Takes what it has, again and again, until the list is as wanted.
    #[track_caller]
    pub(crate) fn until(&self, limit: Duration, what: &str, is: impl Fn(&ListView) -> bool) -> ListView {
        let look = || {
            self.takes();
            let list = self.0.bed.list();
            if is(&list) { Ok(list) } else { Err(format!("{list:#?}")) }
        };
        poll_until(limit, what, look).unwrap_or_else(|error| panic!("{error}"))
    }

    #[track_caller]
    fn takes(&self) {
        let more = self.0.meminfo("available").minus(LEFT);
        if more > NEAR {
            self.0.send(&format!("fill {}", more.0 & !0xfff));
        }
    }

    /// It has lost nothing of what it was given.
    #[track_caller]
    pub(crate) fn is_whole(&self) {
        let verdict = self.0.send("verify");
        assert_eq!(verdict.number("bad_pages"), Some(0), "{}", verdict.text());
        assert_eq!(self.0.send("balloon").number("oom_kill"), Some(0), "{}", self.0.name);
    }
}

/// Processes that are stopped, and go on when this is dropped at the latest.
pub(crate) struct Stopped(Vec<Pid>);

impl Stopped {
    /// Stops a VMM with all its threads and the processes that help it.
    ///
    /// The programs of a User Mode Linux guest run in processes that it traces. A signal to one of these it would take
    /// for one to the guest's program; they stop by themselves, at their first fault, system call or timer.
    #[track_caller]
    pub(crate) fn vmm(vm: &Vm<'_>) -> Self {
        Self::all(Self::pids(vm))
    }

    /// Its processes.
    pub(crate) fn pids(vm: &Vm<'_>) -> Vec<Pid> {
        let mut pids = vec![vm.pid];
        let mut looked = 0;
        while let Some(pid) = pids.get(looked) {
            pids.extend(children(*pid).into_iter().filter(|child| !is_traced(*child)));
            looked += 1;
        }
        pids
    }

    /// Stops these.
    #[track_caller]
    pub(crate) fn all(pids: Vec<Pid>) -> Self {
        for pid in &pids {
            kill_process(*pid, Signal::STOP).unwrap_or_else(|error| panic!("cannot stop {pid:?}: {error}"));
        }
        Self(pids)
    }

    pub(crate) fn go_on(self) {
        drop(self);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            match kill_process(*pid, Signal::CONT) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => tell(&format!("cannot let {pid:?} go on: {error}")),
            }
        }
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let dir = format!("/proc/{}/task", pid.as_raw_nonzero());
    let threads = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let text: String = lists.collect();
    text.split_ascii_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)).collect()
}

fn is_traced(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let tracer =
        |text: &str| text.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok());
    status.is_ok_and(|text| tracer(&text).is_some_and(|tracer: u32| tracer != 0))
}

/// Tells what was counted, past the test harness, which shows nothing of tests that pass.
pub(crate) fn tell(text: &str) {
    // Nobody is left to be told that it cannot be told.
    drop(writeln!(std::io::stderr(), "{text}"));
}
