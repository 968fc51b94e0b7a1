//! `__detach`: a session of its own, perhaps other cgroups, then another program in this process.
//!
//! Joining happens before the program runs, so that its first page is counted already; the process number
//! stays, so whoever started this knows it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};

use crate::args::DetachArgs;

pub(super) fn run(args: &DetachArgs) -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot begin a session")?;
    for procs in &args.join {
        std::fs::write(procs, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot join the cgroup of {}", procs.display()))?;
    }
    let Some((program, rest)) = args.command.split_first() else {
        bail!("no program to run");
    };
    let failure = Command::new(program).args(rest).exec();
    Err(failure).with_context(|| format!("cannot run {}", program.display()))
}
