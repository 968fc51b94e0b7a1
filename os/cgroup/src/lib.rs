//! Memory control groups: version 1, version 2, and both at once.
//!
//! Place in the map: `os/`, depends on `units` only; used by the daemon (the host's budget may be a group), the
//! command line (a group per VM) and the testbed. Where the memory controller is on version 1 and version 2
//! is mounted without controllers, as systemd's hybrid mode has it, limits and counters come from the first and
//! pressure (PSI) from a twin group in the second.
//!
//! One method per file; each says the file and the unit. Sizes are [`plimsoll_units::Bytes`], "no limit" is
//! [`Limit::Max`], and swap is counted alone on both versions (version 1 itself counts memory and swap together).
//! A file this kernel does not have is [`CgroupError::Unsupported`] by name, a group that is gone is
//! [`CgroupError::NoGroup`].
//!
//! What it does not do: other controllers, killing, freezing, moving whole trees, waiting for pressure (see
//! `plimsoll-psi`).
//!
//! Sources: the kernel's `Documentation/admin-guide/cgroup-v1/memory.rst` and `cgroup-v2.rst`; `proc_pid_mountinfo(5)`.
//!
//! ```no_run
//! # fn main() -> Result<(), plimsoll_cgroup::CgroupError> {
//! use plimsoll_cgroup::{Hierarchies, Limit};
//! use plimsoll_units::Bytes;
//!
//! let group = Hierarchies::discover()?.create("plimsoll/web")?;
//! group.set_limit(Limit::Bytes(Bytes::mib(600)))?;
//! group.add(std::process::id())?;
//! println!("{} of {}", group.usage()?, group.limit()?);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod error;
mod file;
mod group;
mod hierarchy;
mod limit;
mod mountinfo;
mod pressure;
mod stat;

pub use error::CgroupError;
pub use group::MemCgroup;
pub use hierarchy::{Hierarchies, Version};
pub use limit::Limit;
pub use pressure::PressureGroup;
pub use stat::{MemEvents, MemStat};
