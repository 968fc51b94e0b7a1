//! The guests of a demonstration or an experiment: bare, or started with `plimsoll run`.

mod bare;
mod kept;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use plimsoll_testbed::guest::Reply;
use plimsoll_units::Bytes;

pub(crate) use bare::Bare;
pub(crate) use kept::{Care, Kept, group_name, open_console};

/// What every guest of a fleet is started with, however it is cared for.
#[derive(Clone, Debug)]
pub(crate) struct GuestSpec {
    /// Its name, see [`name`].
    pub(crate) name: String,
    /// What it is told it has.
    pub(crate) told: Bytes,
    /// A file that becomes its disk `ubda`.
    pub(crate) disk: Option<PathBuf>,
    /// Whether it may read the host's files.
    pub(crate) host_files: bool,
    /// How long it may take to boot on a busy machine.
    pub(crate) boot_limit: Duration,
}

/// Guests, and how they are seen from the host.
pub(crate) trait Fleet: Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// Gives a guest a command and waits for what it answers. One that is gone, or answers with an error, is an
    /// error at once.
    fn ask(&self, index: usize, command: &str, limit: Duration) -> Result<Reply>;

    /// What each may have and what of it is in the host's memory.
    fn sizes(&self) -> Vec<Seen>;
}

/// A guest at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Its target, where somebody sets one.
    pub(crate) target: Option<Bytes>,
    /// Host memory behind it; `None` when it is gone.
    pub(crate) resident: Option<Bytes>,
}

/// What a guest is called.
pub(crate) fn name(index: u64) -> String {
    format!("vm{}", index + 1)
}
