//! End-to-end tests: the programs as they are shipped, on real guests.
//!
//! Place in the map: `tests/`, above everything. A [`Bed`] is a daemon of its own in a run folder of its own, a [`Vm`]
//! is a guest under its care. Everything is done as an operator does it, by typing `plimsoll`; what a guest has of
//! the host's memory is counted by the host's own file system, and what goes on inside it is said by the workload
//! on its console. So Plimsoll's own figures are compared with others, never with themselves.
//!
//! What it does not do: it takes no short cut to the daemon's socket, and it waits for states, never for times.
//! Its functions panic, with what the bed knows, where a test would have to.
//!
//! ```no_run
//! use plimsoll_e2e::{Bed, CALM, Kind, PATIENCE, mib, sizes};
//!
//! let Some(bed) = Bed::new("an_example", CALM) else { return };
//! let Some(vm) = bed.run(Kind::Uml, "web", sizes(96, 192, 64), &[]) else { return };
//! vm.wait("its baseline", PATIENCE, |view| view.actual.0 == mib(96));
//! vm.send("fill 32M");
//! assert!(vm.resident() > mib(32));
//! ```
#![forbid(unsafe_code)]

mod account;
mod bed;
mod said;
mod vm;
mod watch;

pub use account::{Account, Position, Positions};
pub use bed::{Bed, CALM};
pub use said::{Lasting, Said, only, snapshot};
pub use vm::{Adoptable, Kind, NO_REPORTS, Vm, sizes};
pub use watch::{Limit, Sample, Tick, Watch};

use std::time::Duration;

use plimsoll_units::Bytes;

/// Longer than any single step takes under software emulation on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// So many MiB.
#[must_use]
pub const fn mib(n: u64) -> Bytes {
    Bytes::mib(n)
}
