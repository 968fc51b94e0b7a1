//! What several of these tests need.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use plimsoll_api::control::PagerStatus;
use plimsoll_api::http::VmView;
use plimsoll_e2e::{Bed, Kind, PATIENCE, Vm, mib, sizes};
use plimsoll_model::Sizes;
use plimsoll_testbed::BedError;
use plimsoll_testbed::guest::resident;
use plimsoll_testbed::skip::unless_available;
use plimsoll_units::Bytes;

/// What the guests are granted, in MiB.
pub(crate) const MEMORY: u64 = 256;
/// What they are told of, in MiB.
pub(crate) const MAXMEM: u64 = 512;

/// For the guest's kernel: no balloon driver, and little on the console.
pub(crate) const NO_DRIVER: &str = "loglevel=5 plimsoll.skip=virtio_balloon";

pub(crate) fn guest_sizes() -> Sizes {
    sizes(MEMORY, MAXMEM, 128)
}

/// `None`, after saying so loudly, where this machine gives nobody a userfaultfd.
pub(crate) fn possible(test: &str) -> Option<()> {
    let switch = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let missing =
        || BedError::Missing { what: "userfaultfd in this kernel (CONFIG_USERFAULTFD)".into(), package: "" };
    unless_available(test, switch.map(drop).map_err(|_| missing()))
}

/// A bed with a QEMU guest of [`guest_sizes`] that has begun to boot, watched from its first page on.
pub(crate) fn begin<'b>(bed: &'b Bed, name: &str, more: &[&str]) -> Option<(Vm<'b>, Meter)> {
    let vm = bed.launch(Kind::Qemu, name, guest_sizes(), more)?;
    let meter = Meter::begin(&vm);
    Some((vm, meter))
}

/// The same, once its workload is ready.
#[track_caller]
pub(crate) fn boot<'b>(bed: &'b Bed, name: &str, more: &[&str]) -> Option<(Vm<'b>, Meter)> {
    let (vm, meter) = begin(bed, name, more)?;
    vm.console.wait_ready(1, PATIENCE * 2).unwrap_or_else(|error| panic!("{name}: {error}"));
    Some((vm, meter))
}

/// What its pager says.
#[track_caller]
pub(crate) fn pager(vm: &Vm<'_>) -> PagerStatus {
    said(&vm.view()).unwrap_or_else(|| panic!("{}'s pager was not heard", vm.name))
}

pub(crate) fn said(view: &VmView) -> Option<PagerStatus> {
    view.pager.and_then(|pager| pager.status)
}

/// Looks at the kernel's count of a guest's memory 20 times a second, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Meter {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    fn begin(vm: &Vm<'_>) -> Self {
        let (stop, most, looks) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (ending, highest, seen, pid) = (Arc::clone(&stop), Arc::clone(&most), Arc::clone(&looks), vm.pid);
        let run = move || {
            while !ending.load(Ordering::Relaxed) {
                // Before QEMU has opened it, and after it has ended, there is nothing to be counted.
                if let Ok(now) = resident(pid, None) {
                    highest.fetch_max(now.0, Ordering::Relaxed);
                    seen.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
        };
        let thread = std::thread::Builder::new().name("meter".into()).spawn(run);
        Self { stop, most, looks, thread: Some(thread.expect("a thread can be started")) }
    }

    /// The most that was there at any look so far.
    pub(crate) fn most(&self) -> Bytes {
        Bytes(self.most.load(Ordering::Relaxed))
    }

    /// Asserts that it never was more than `limit`, and that there were looks.
    #[track_caller]
    pub(crate) fn never_above(&self, limit: Bytes) {
        let looks = self.looks.load(Ordering::Relaxed);
        assert!(looks >= 5, "{looks} looks");
        assert!(self.most() <= limit, "{} of {limit} at one of {looks} looks", self.most());
        assert!(self.most() >= mib(16), "{}: that is no guest's memory", self.most());
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only looks; a test that fails has a better message already.
            let _ = thread.join();
        }
    }
}

/// Checks every byte the guest holds, of which there must be so much.
#[track_caller]
pub(crate) fn verify(vm: &Vm<'_>, least: Bytes) {
    let verdict = vm.send("verify");
    assert!(verdict.number("pages") >= Some(least.pages_floor().0), "{}: {}", vm.name, verdict.text());
    assert_eq!(verdict.number("bad_pages"), Some(0), "{}: {}", vm.name, verdict.text());
}
