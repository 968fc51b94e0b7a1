//! Plain data that the collector, the arbiter and the journal share.
//!
//! Place in the map: beside `units`, below `policy`. Everything here is data with public fields (or a
//! checked constructor where an invariant exists), can be written to the journal and read back, and
//! does nothing. No clock, no I/O, `no_std`.
//!
//! One tick turns a [`Snapshot`] into a [`Plan`]; the journal holds both, so that a day can be replayed.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

extern crate alloc;

mod agent;
mod name;
mod pager;
mod plan;
mod reason;
mod sample;
mod sizes;
mod stats;
mod tunables;

pub use agent::{AgentSample, AgentStats};
pub use name::{NameError, VmId, VmName};
pub use pager::{OnExhausted, OnPagerLoss, PagerSample, Standstill};
pub use plan::{Action, HostState, Plan, Signal, Source, Verdict, VmState};
pub use reason::Reason;
pub use sample::{HostSample, Link, PsiTotals, Snapshot, VmSample};
pub use sizes::{Sizes, SizesError};
pub use stats::{GuestStats, StatsSample};
pub use tunables::{TunableError, Tunables};
