//! The command line.

use std::path::PathBuf;

use clap::Parser;
use plimsoll_units::Bytes;

/// Keeps the sockets of one VM's devices, whatever happens to the back end that serves them.
///
/// DIR gets `balloon.sock`, for the VMM (vhost-user), and `control.sock`, for plimsolld. With --pod it gets `pod.sock` instead of
/// `balloon.sock`, for the library that is preloaded into the VMM.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// The VM's name, for logs.
    #[arg(long)]
    pub(crate) name: String,
    /// Folder for the sockets; made if it is not there.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The plimsoll-backend program.
    #[arg(long)]
    pub(crate) backend: PathBuf,
    /// What the guest is told it has, in bytes or as 512M or 2G.
    #[arg(long)]
    pub(crate) maxmem: Bytes,
    /// Pages of 4 KiB the guest is asked to give up from the beginning.
    #[arg(long, default_value_t = 0)]
    pub(crate) initial_balloon: u64,
    /// Seconds in which a VMM has to connect.
    #[arg(long, default_value_t = 60)]
    pub(crate) connect_timeout: u64,
    /// Deaths of the back end within 10 seconds after which it is not started again for 30 seconds, with --pod for 5.
    #[arg(long, default_value_t = 5)]
    pub(crate) give_up_after: u32,
    /// Give the guest's memory back to the host when the VMM has ended, also where others still have it open.
    ///
    /// For User Mode Linux: killed, it leaves helper processes that have all of it mapped. Not for a VMM that goes on
    /// in another process than the one that connects.
    #[arg(long)]
    pub(crate) memory_ends_with_vmm: bool,
    /// Standard input is the host's end of the line from the agent in the guest: a stream socket, handed to each back end.
    ///
    /// The keeper never reads it.
    #[arg(long)]
    pub(crate) agent_line: bool,
    /// The guest's memory is populated on demand. It is standard input: a memfd of MAXMEM bytes, sealed against shrinking and growing.
    #[arg(long, requires = "target", conflicts_with_all = ["agent_line", "initial_balloon", "memory_ends_with_vmm"])]
    pub(crate) pod: bool,
    /// How much of its memory the guest may have to begin with, in bytes or as 512M or 2G.
    #[arg(long, requires = "pod")]
    pub(crate) target: Option<Bytes>,
}
