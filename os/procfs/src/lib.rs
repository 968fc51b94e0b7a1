//! The few files of `/proc` that Plimsoll reads, processes that are not mistaken for later ones of the same
//! number, and the clock.
//!
//! Place in the map: `os/`, depends on `units` only; used by the daemon (every second, for the host and each VM),
//! the command line and the testbed. One [`Procfs`] keeps one buffer, so that reading allocates nothing once it
//! has grown.
//!
//! What it does not do: `smaps` (too slow to read each second), lists of all processes, writing.
//!
//! Sources: `proc_meminfo(5)`, `proc_vmstat(5)`, `proc_pid_stat(5)`, `proc_pid_statm(5)`, `proc_pid_status(5)`,
//! `pidfd_open(2)`.
//!
//! ```
//! # fn main() -> Result<(), plimsoll_procfs::ProcError> {
//! use plimsoll_procfs::{Pidfd, Procfs};
//!
//! let mut proc = Procfs::new();
//! assert!(proc.meminfo()?.available <= proc.meminfo()?.total);
//! let me = proc.identify(std::process::id())?;
//! assert!(proc.is_alive(me)?);
//! assert!(!Pidfd::open(&mut proc, me)?.has_exited()?);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod clock;
mod error;
mod host;
mod parse;
mod pidfd;
mod process;
mod reader;

pub use clock::now;
pub use error::ProcError;
pub use host::{MemInfo, VmStat};
pub use parse::{fields, number, words};
pub use pidfd::Pidfd;
pub use process::{Memory, ProcessId, ProcessStat, ProcessState, StatM};
pub use reader::Procfs;
