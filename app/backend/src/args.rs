//! The command line, which the keeper writes.

use clap::Parser;
use plimsoll_units::Bytes;

/// Serves the devices of one VM. Started by plimsoll-keeper, which passes everything else over standard input.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// The VM's name, for the log.
    #[arg(long)]
    pub(crate) name: String,
    /// What the guest was told it has.
    #[arg(long)]
    pub(crate) maxmem: Bytes,
    /// Pages the guest is asked for from the beginning.
    #[arg(long, default_value_t = 0)]
    pub(crate) initial_balloon: u64,
    /// How much of its memory the guest may have to begin with, where that is populated on demand.
    #[arg(long, default_value_t)]
    pub(crate) target: Bytes,
    /// Frames the ledger has room for.
    #[arg(long)]
    pub(crate) ledger_frames: u32,
}
