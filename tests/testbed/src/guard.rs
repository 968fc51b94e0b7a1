//! Puts things back, whatever happens to the test.
//!
//! What a test changes on the host is a [`Deed`], registered when it is done.
//! It is undone by the guard's `Drop` (a panic unwinds through it), by the handler of SIGINT and SIGTERM, which then
//! exits with 130, and when this process is gone without either, SIGKILL included, by its *guardian*: a shell that
//! waits for the end of a pipe this process holds and then undoes what is left.
//! (The kernel's parent-death signal would not do: it reaches a UML guest's main process only, and its helpers go
//! on and keep the guest's memory.)
//!
//! Everything carries the [`run_id`] in its name, so [`leftovers()`] can tell whether anything remains.

mod cgroup;
mod deed;
mod dirs;
mod guardian;
mod leftovers;
mod marked;
mod process;
mod registry;
mod setting;

mod swap;

pub use cgroup::TestCgroup;
pub use deed::Deed;
pub use dirs::{DiskDir, ShmDir};
pub use leftovers::leftovers;
pub use marked::{Marked, RUN_VARIABLE};
pub use process::Process;
pub use registry::{Undo, undo_everything};
pub use setting::{Setting, ZSWAP_ENABLED};

pub use swap::TempSwap;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every name of ours begins with it.
pub const PREFIX: &str = "plimsoll-test-";

/// This process's mark: [`PREFIX`], its process id and the time it started, in clock ticks since boot.
pub fn run_id() -> &'static str {
    static RUN_ID: OnceLock<String> = OnceLock::new();
    RUN_ID.get_or_init(|| {
        let pid = std::process::id();
        format!("{PREFIX}{pid}-{}", leftovers::start_time(pid).unwrap_or(0))
    })
}

/// A name that no other thing of this machine has: the run, a number, and `what` for the eye.
fn unique_name(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}-{what}", run_id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
