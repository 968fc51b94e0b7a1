//! The program that runs inside test guests: fills, holds, touches and frees memory on command.
//!
//! Place in the map: `tests/`, used by the testbed's guest images, and nowhere on a host.
//! It is linked statically and put beside busybox into an initramfs.
//!
//! `plimsoll-workload serve` is the guest's first process.
//! It reads commands from the console, one a line, `ID COMMAND ARGUMENTS`, and answers with lines that an observer
//! can tell from the kernel's own: `@plimsoll ID ok ...`, `@plimsoll ID error ...`, `@plimsoll ID note ...`.
//! [`command::Command`] lists the commands.
//! The memory is held by a child process (`plimsoll-workload worker`), so that the guest's OOM killer takes the
//! child and `serve` lives to tell of it.
//!
//! What it does not do: it has no network, no disk format and no rights beyond those of a guest's root.
#![forbid(unsafe_code)]

mod build;
mod churn;
mod command;
mod console;
mod counters;
mod memory;
mod pattern;
mod serve;
mod shell;
mod system;
mod worker;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let outcome = match words.next().as_deref() {
        Some("serve") => serve::run(),
        Some("worker") => worker::run(),
        _ => Err(std::io::Error::other("usage: plimsoll-workload serve | worker")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when even standard error is gone.
            drop(writeln!(std::io::stderr(), "plimsoll-workload: {error}"));
            ExitCode::FAILURE
        }
    }
}
