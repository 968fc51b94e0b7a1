//! Pressure stall information (PSI): how long tasks waited for memory, and being woken when they wait too long.
//!
//! Place in the map: `os/`, depends on `units` only; used by the daemon, for the host
//! ([`HOST_MEMORY`]) or for a group (`memory.pressure`, whose path `plimsoll-cgroup` knows).
//!
//! A [`Trigger`] is a file descriptor: it can be waited for with [`Trigger::wait`], with poll and epoll
//! (POLLPRI), or by a thread that calls back, a [`Watch`]. The last is the way into an event loop; tokio's `AsyncFd`
//! (with `Interest::PRIORITY | Interest::ERROR`, then [`Trigger::check`] after each wake-up) works too, but has
//! no constructor that is safe and not deprecated.
//!
//! What it does not do: pressure of CPU and disks (the files have the same form, so they can be read), judging.
//!
//! Source: the kernel's `Documentation/accounting/psi.rst`.
//!
//! ```
//! use plimsoll_psi::{HOST_MEMORY, PsiError, read};
//! match read(HOST_MEMORY.as_ref()) {
//!     Ok(pressure) => println!("some: {} of the last 10 s", pressure.some.avg10),
//!     Err(PsiError::Absent { .. }) => println!("this kernel has no PSI"),
//!     Err(err) => panic!("{err}"),
//! }
//! ```
#![forbid(unsafe_code)]

mod error;
mod pressure;
mod trigger;
mod watch;

pub use error::PsiError;
pub use pressure::{HOST_MEMORY, Pressure, Stall, read};
pub use trigger::{Kind, Threshold, Trigger, Wakeup};
pub use watch::Watch;
