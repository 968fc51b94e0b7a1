//! What `plimsoll` said, and what may be expected of it.

use std::process::Output;

use plimsoll_api::http::{ListView, VmView};
use plimsoll_model::Sizes;
use plimsoll_units::MemTarget;

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
    /// Takes over what a process left.
    #[must_use]
    pub fn new(typed: String, output: &Output) -> Self {
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
    /// every one of `words`, ends with no full stop and is no trace of a panic.
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
        for never in ["panicked", "RUST_BACKTRACE", "thread 'main'"] {
            assert!(!self.stderr.contains(never), "{self:#?}");
        }
        self.stderr
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
