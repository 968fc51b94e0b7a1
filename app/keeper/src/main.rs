//! `plimsoll-keeper`: stands between a VM's front ends and its back end, so that the back end may die at any
//! instant and no front end notices.
//!
//! Place in the map: a program of `app/`, one per VM. It reads vhost-user messages, all of them hostile, and
//! nothing else of a guest's: it maps no guest memory and looks into no ring. It holds what must outlive a
//! back end: the front ends' sockets and descriptors, the listening control socket and the line from the agent in the
//! guest (neither of which it ever reads), and the sealed shared memory in which rings, configuration and ledger stand.
//!
//! ```text
//!   VMM ── DIR/balloon.sock ──> keeper ── socket pair ──> back end <── DIR/control.sock ── plimsolld
//!                                  └───── shared memory ─────┘
//! ```
//!
//! # A device's life
//! * *Connected*: a request is checked, forwarded, answered; then remembered, if it set something.
//! * *Back end dead*: another is started, the remembered requests are said again, then the one that was under way.
//!   The front end waits a little longer, and that is all.
//! * *Front end gone*: what it said is forgotten, the back end replaced by one that begins with a cleared memory. User
//!   Mode Linux connects anew when its guest reboots.
//! * *Resting*: for 30 seconds after 5 deaths within 10. The front end's requests are answered as if all were well, the
//!   guest goes on with the balloon it has; the control socket is gone meanwhile.
//!
//! It ends when the VMM that connected first has ended, when none connects in time, and on SIGTERM or SIGINT. It
//! takes its back end and its sockets along, and, where it was told so, the memory that a VMM has left behind.
#![forbid(unsafe_code)]

mod args;
mod back;
mod device;
mod events;
mod front;
mod keeper;
mod leavings;
mod link;
mod offered;
mod sockets;
mod state;

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;

use crate::args::Args;

/// Keeper and back end (which inherits it) take a few thousandths of a processor. But a guest that moves memory waits for them
/// three times for each MiB, and on a host whose guests compete for the processors each wait is one for a turn.
const NICE: i32 = -10;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    // Without the rights to it the guest's requests are answered in turn.
    let _ = rustix::process::setpriority_process(None, NICE);
    let name = args.name.clone();
    keeper::Keeper::new(args)?.run().with_context(|| format!("the keeper of {name} has to give up"))
}
