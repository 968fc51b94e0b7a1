//! The operator's command, `plimsoll`.
//!
//! It asks the daemon over its socket, starts VMs with the caller's own rights (`run`), stops them, and
//! writes answers for people or, with `--json`, for programs. Nothing is decided here: targets are the
//! daemon's business, and the daemon spawns nothing, so `run` does.
//!
//! * [`args`]: what can be typed; [`commands`]: one file a command, arguments to answer;
//! * [`client`]: the daemon's API; [`rundir`] and [`record`]: where a VM's files lie and what they say;
//! * [`process`]: who is alive, and ending processes without ending the wrong ones;
//! * [`render`]: answers as text, pure; [`output`]: the only place that prints.
#![forbid(unsafe_code)]

mod args;
mod client;
mod commands;
mod mistake;
mod output;
mod process;
mod record;
mod render;
mod rundir;
mod suggest;

use std::process::ExitCode;

use clap::Parser;

/// The request itself makes no sense, whatever the world is like: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUse(String);

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return mistake::report(&error),
    };
    match commands::run(args) {
        Ok(code) => code,
        Err(error) if error.is::<output::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::failure(&output::explained(&error));
            ExitCode::from(if error.is::<WrongUse>() { 2 } else { 1 })
        }
    }
}
