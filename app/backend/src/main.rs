//! `plimsoll-backend`: the devices of one VM. It may be killed at any instant.
//!
//! Place in the map: a program of `app/`, started by `plimsoll-keeper` and by nothing else. All that must
//! survive it lies in the keeper's shared memory, see `plimsoll_vhost_user::layout`: where the rings stand, what
//! is in flight, the configuration, the ledger. What a guest does can bring down no more than this process,
//! and its successor goes on.
//!
//! One thread, one poll loop: the keeper's socket (vhost-user messages), the rings' kicks, the control socket
//! (see [`plimsoll_api::control`]), a timer that asks the guest for statistics, the line from the agent in the guest. One thread owns everything, so a
//! ring that was stopped has no work under way.
//!
//! What it does not do: it opens no path, reads no file, starts nothing. Its descriptors all come from the
//! keeper, which leaves room for a sandbox.
#![forbid(unsafe_code)]

mod args;
mod control;
mod device;
mod line;
mod prepare;
mod serve;
mod status;
mod vm;

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;
use plimsoll_vhost_user::handover::Handover;
use rustix::process::{Resource, Rlimit};

use crate::args::Args;

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
    let handover = Handover::receive(std::io::stdin())?;
    let mut server = serve::Server::new(args, handover)?;
    server.run()
}
