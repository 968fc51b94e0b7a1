//! Staying able to speak in a guest that is out of memory. All of it as far as the rights go.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::setpriority_process;

/// Never the OOM killer's choice (proc_pid_oom_score_adj(5)).
const NEVER: &str = "-1000";
/// A report is due when everybody else competes for the CPU too. It takes less than a thousandth of it.
const NICE: i32 = -10;

/// Keeps this process' memory from being swapped or dropped, its life from the OOM killer, and its turn from being
/// late. To be called when everything that is needed has been allocated: only that is kept.
pub(crate) fn protect() {
    // Without the rights to it each of these fails, and a report under distress may be late or be the last.
    let _ = std::fs::write("/proc/self/oom_score_adj", NEVER);
    let _ = mlockall(MlockAllFlags::CURRENT);
    let _ = setpriority_process(None, NICE);
}
