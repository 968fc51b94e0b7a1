//! `plimsoll-agent`: tells the host how this Linux guest fares.
//!
//! Place in the map: `guest/`, depends on `agent_proto`, `core/units`, `core/model` and `os/psi`. A static program
//! of well under 2 MiB for any Linux since 4.x. It measures and tells; deciding is the host's.
//!
//! * Once per interval (1 s unless told otherwise), and at once when memory becomes short, it sends a report: the
//!   numbers of `/proc/meminfo`, `/proc/vmstat`, `/proc/zoneinfo` and `/proc/pressure/memory`, as far as the kernel
//!   has them ([`distress`] says what counts as short).
//! * It speaks through a virtio-serial port named `org.plimsoll.agent.0` or a serial line ([`port`]). A host that
//!   does not read is never waited for: whole reports are left out, none is cut in two ([`mod@line`]).
//! * It may listen: the host can ask for another interval. It needs to hear nothing.
//!
//! What it does not do: allocate, reclaim, swap, judge, or execute anything the host says.
//!
//! SIGTERM ends it, as it does every program that does not say otherwise: there is nothing to put in order.
//!
//! ```text
//! plimsoll-agent                      on a guest with a virtio-serial port
//! plimsoll-agent --port /dev/ttyS0    on User Mode Linux
//! plimsoll-agent --once --print       one report as text, sent to nobody
//! ```
#![forbid(unsafe_code)]

mod agent;
mod args;
mod distress;
mod error;
mod line;
mod port;
mod print;
mod procfs;
mod protect;
mod signs;
mod sources;

use std::io::Write;
use std::process::ExitCode;

use args::{Args, Command};

/// Failed while running.
const FAILED: u8 = 1;
/// Wrong use.
const WRONG_USE: u8 = 2;

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)) {
        Ok(Command::Run(args)) => match agent::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(FAILED, &error.to_string()),
        },
        Ok(Command::Tell(text)) => {
            // A reader that has gone away does not want the text.
            drop(writeln!(std::io::stdout(), "{text}"));
            ExitCode::SUCCESS
        }
        Err(error) => fail(WRONG_USE, &format!("{error}\nTry `plimsoll-agent --help`.")),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    note(message);
    ExitCode::from(code)
}

/// Says something on standard error. Nobody is left to tell when that is gone.
fn note(message: &str) {
    drop(writeln!(std::io::stderr(), "plimsoll-agent: {message}"));
}
