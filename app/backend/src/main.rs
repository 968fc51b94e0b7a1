//! `plimsoll-backend`: serves one VM, its devices or its memory. It may be killed at any instant.
//!
//! Place in the map: a program of `app/`, started by `plimsoll-keeper` and by nothing else. All that must
//! survive it lies in the keeper's shared memory, see `plimsoll_vhost_user::layout`: where the rings stand, what
//! is in flight, the configuration, the ledger. What a guest does can bring down no more than this process,
//! and its successor goes on.
//!
//! * `devices`: a VM whose devices are served, over vhost-user;
//! * `pod`: a VM whose memory is populated on demand, by `plimsoll_pager`;
//! * `control`: what both are asked and answer (see [`plimsoll_api::control`]).
//!
//! What it does not do: it opens no path, reads no file, starts nothing. Its descriptors all come from the
//! keeper, which leaves room for a sandbox.
#![forbid(unsafe_code)]

mod args;
mod control;
mod devices;
mod pod;

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;
use plimsoll_shm::SharedWords;
use plimsoll_vhost_user::handover::{Handover, Work};
use plimsoll_vhost_user::layout::Layout;
use rustix::process::{Resource, Rlimit};

use crate::args::Args;
use crate::control::Control;
use crate::devices::Devices;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    plimsoll_shm::die_with_parent().context("cannot tie this process to its keeper")?;
    // The guest's memory is mapped here; it does not belong into a core dump.
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, no_core).context("cannot forbid core dumps")?;
    let Handover { memory, control, work } = Handover::receive(std::io::stdin())?;
    let words = SharedWords::attach_all(memory).context("cannot use the keeper's shared memory")?;
    let layout = Layout::attach(words).context("cannot use the keeper's shared memory")?;
    let control = Control::new(control);
    match work {
        Work::Devices { poke, line, sockets } => {
            devices::Server::new(args, layout, control, Devices { poke, line, sockets })?.run()
        }
        Work::OnDemand { guest, vmm } => pod::Server::new(args, layout, control, guest, vmm)?.run(),
    }
}
