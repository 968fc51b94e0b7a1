//! `plimsoll-keeper`: stands between a VM's VMM and its back end, so that the back end may die at any
//! instant and no VMM notices.
//!
//! Place in the map: a program of `app/`, one per VM. It reads what a VMM says to begin with, all of it hostile, and
//! nothing of a guest's: it maps no guest memory, looks into no ring, answers no fault. It holds what must outlive a
//! back end: sockets and descriptors of the VMM, the listening control socket and the line from the agent in the
//! guest (neither of which it ever reads), and the sealed shared memory in which rings, configuration and ledger stand.
//!
//! There are two kinds of VM. The one has devices, which front ends use:
//!
//! ```text
//!   VMM ── DIR/balloon.sock ──> keeper ── socket pair ──> back end <── DIR/control.sock ── plimsolld
//!                                  └───── shared memory ─────┘
//! ```
//!
//! * *Connected*: a request is checked, forwarded, answered; then remembered, if it set something.
//! * *Back end dead*: another is started, the remembered requests are said again, then the one that was under way.
//!   The front end waits a little longer, and that is all.
//! * *Front end gone*: what it said is forgotten, the back end replaced by one that begins with a cleared memory. User
//!   Mode Linux connects anew when its guest reboots.
//! * *Resting*: for 30 seconds after 5 deaths within 10. The front end's requests are answered as if all were well, the
//!   guest goes on with the balloon it has; the control socket is gone meanwhile.
//!
//! The other's memory is populated on demand (`--pod`), by whoever holds the userfaultfd that its VMM hands over:
//!
//! ```text
//!   VMM ── DIR/pod.sock ──> keeper ──────────────> back end <── DIR/control.sock ── plimsolld
//!    └──── userfaultfd, the guest's memory, and hints ──┘
//! ```
//!
//! * *Handed over*: what came is checked; the VMM is answered, and runs its guest, when a back end serves.
//! * *Back end dead*: another is started. What the guest touches meanwhile waits.
//! * *Resting*: the same, for 5 seconds.
//!
//! It ends when the VMM that connected first has ended, when none connects in time, and on SIGTERM or SIGINT. It
//! takes its back end and its sockets along, and, where it was told so or with `--pod`, the memory that a VMM has left behind.
#![forbid(unsafe_code)]

mod args;
mod back;
mod base;
mod devices;
mod keeper;
mod leavings;
mod pod;
mod sockets;

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;

use crate::args::Args;
use crate::devices::Devices;
use crate::keeper::Keeper;
use crate::pod::Pod;

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
    keep(args).with_context(|| format!("the keeper of {name} has to give up"))
}

fn keep(args: Args) -> anyhow::Result<()> {
    if args.pod {
        let (base, pod) = Pod::new(args)?;
        Keeper::new(base, pod)?.run()
    } else {
        let (base, devices) = Devices::new(args)?;
        Keeper::new(base, devices)?.run()
    }
}
