//! `cargo xtask bench NAME`: the published benchmarks, each as the command that repeats it.

use anyhow::{Result, bail};

use crate::out;
use crate::run;

/// Which benchmark.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// How long one decision takes, for 35, 1,000 and 10,000 VMs (criterion; mark: 1 ms and 10 ms)
    Decide,
    /// What plimsolld costs with 35 VMs at a tick of 1 s (mark: 1 % of a core, 30 MiB)
    Daemon,
}

pub(crate) fn command(bench: Bench) -> Result<()> {
    let mut command = run::cargo();
    match bench {
        Bench::Decide => command.args(["bench", "--package", "plimsoll-policy", "--bench", "decide"]),
        Bench::Daemon => command.args([
            "test",
            "--release",
            "--package",
            "plimsolld",
            "--test",
            "cost",
            "--",
            "--nocapture",
        ]),
    };
    out::say(&format!("==> {}", run::shown(&command)));
    if !run::shown_output(&mut command)?.success() {
        bail!("`{}` failed", run::shown(&command));
    }
    Ok(())
}
