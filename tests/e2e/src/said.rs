//! What `plimsoll` said, and what may be expected of it.

use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};

use plimsoll_api::http::{ListView, VmView};
use plimsoll_model::Sizes;
use plimsoll_units::MemTarget;
use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    /// What was typed.
    pub typed: String,
    /// Its exit code, `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Runs a command to its end. One that takes longer than two minutes is killed, and has no exit code then.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    #[track_caller]
    pub fn by(command: &mut Command) -> Self {
        let typed = format!("{command:?}");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot run {typed}: {error}"));
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        let (done, ended) = channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if ended.recv_timeout(PATIENCE * 2) == Err(RecvTimeoutError::Timeout) {
                // Gone at this very moment is as good.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let output = child.wait_with_output();
        drop(done);
        watchdog.join().expect("it only waits");
        let output = output.unwrap_or_else(|error| panic!("cannot read what {typed} says: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { typed, code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Standard output, provided that all went well.
    ///
    /// # Panics
    /// When the exit code is not 0.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// Asserts a refusal: this exit code, nothing on standard output, and a message of this program's that has
    /// every one of `words` and is no trace of a panic.
    ///
    /// # Panics
    /// When it is not one.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in {self:#?}");
        }
        // No trace of a panic, and no colours where there is no terminal, nor what is left of them when made harmless.
        for never in ["panicked", "RUST_BACKTRACE", "thread 'main'", "\u{1b}", "\u{fffd}["] {
            assert!(!self.stderr.contains(never), "{self:#?}");
        }
        self.says_nothing_twice();
        self.stderr
    }
}

impl Said {
    /// Each cause and each hint of a message's first line is told once.
    #[track_caller]
    fn says_nothing_twice(&self) {
        let line = self.stderr.lines().next().unwrap_or_default();
        let mut parts: Vec<_> =
            line.split([':', ';']).map(str::trim).filter(|part| part.contains(' ')).collect();
        parts.sort_unstable();
        let twice = parts.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "{self:#?}");
    }
}

/// The only VM of a list.
///
/// # Panics
/// When there is not exactly one.
#[must_use]
#[track_caller]
pub fn only(list: &ListView) -> &VmView {
    let [vm] = list.vms.as_slice() else { panic!("one VM was expected: {:#?}", list.vms) };
    vm
}

/// What a mistake must not change of a VM: name, sizes, target, pin and processes.
pub type Lasting = (String, Sizes, MemTarget, Option<MemTarget>, Option<u32>, Option<u32>);

/// What a mistake must not change: the VMs there are, and of each all that does not move by itself.
#[must_use]
pub fn snapshot(list: &ListView) -> Vec<Lasting> {
    let lasting = |vm: &VmView| {
        let pid = |process: Option<plimsoll_api::http::ProcessRef>| process.map(|process| process.pid);
        (vm.name.to_string(), vm.sizes, vm.target, vm.hold, pid(vm.vmm), pid(vm.keeper))
    };
    list.vms.iter().map(lasting).collect()
}
