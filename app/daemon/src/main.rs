//! plimsolld: the host's daemon. Every tick it collects what is known of the host and of each VM, has the
//! arbiter ([`plimsoll_policy`]) decide, and hands new targets to the VMs' balloons.
//!
//! Place in the map: `app/`. It speaks to QEMU over QMP, to a keeper's back end over the control socket, to
//! people over HTTP on a Unix socket ([`plimsoll_api`]). It starts nothing, never touches a guest's memory, and
//! opens no file on a client's behalf: a client names a socket, and whoever listens there must be the client's
//! own user, or the daemon hangs up before it has sent or read a byte. VMs do not notice when it ends.
//!
//! Life of a tick: [`tick`] asks every driver ([`drivers`]) at once and waits 200 ms at most; what it knows
//! becomes a snapshot; `decide` makes a plan of it; targets go to the drivers, shrinking ones first; snapshot and
//! plan go to the [`journal`], what has changed to the [`events`], both to whoever asks the [`api`].
//!
//! Threads: one that serves everything (tokio, current thread), one that writes the journal. Tasks: the tick,
//! one for each VM, one for each watched process, one for each connection. Shutdown, in this order: the API stops
//! accepting, open requests get two seconds, the tick ends, the journal is written out, the socket is removed.
#![forbid(unsafe_code)]

mod api;
mod args;
mod clock;
mod config;
mod daemon;
mod drivers;
mod events;
mod host;
mod journal;
mod metrics;
mod notify;
mod ops;
mod process;
mod readiness;
mod registry;
mod run;
mod rundir;
mod state;
mod tick;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let done = match args.task() {
        args::Task::CheckConfig(path) => check(&path),
        args::Task::PrintConfig(path) => print(path.as_deref()),
        args::Task::Serve(options) => run::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done about a closed stderr.
            let _ = writeln!(io::stderr(), "plimsolld: {}", explained(&error));
            ExitCode::FAILURE
        }
    }
}

fn check(path: &std::path::Path) -> anyhow::Result<()> {
    config::Config::load(path)?;
    writeln!(io::stdout(), "{} is fine", path.display())?;
    Ok(())
}

fn print(path: Option<&std::path::Path>) -> anyhow::Result<()> {
    let config = path.map_or_else(|| Ok(config::Config::default()), config::Config::load)?;
    io::stdout().write_all(config.to_toml().as_bytes())?;
    Ok(())
}

/// An error with its causes, each told once: some tell their own cause themselves.
fn explained(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if told.contains(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

#[cfg(test)]
mod test {
    use super::explained;

    #[test]
    fn a_cause_that_was_told_already_is_not_told_again() {
        let cause = std::io::Error::other("no such file");
        let error = anyhow::Error::new(cause).context("cannot read x: no such file").context("cannot start");
        assert_eq!(explained(&error), "cannot start: cannot read x: no such file");
    }
}
