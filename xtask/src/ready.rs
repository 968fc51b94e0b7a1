//! What a task that boots guests needs beforehand.

use anyhow::{Result, bail};

use crate::out::Step;
use crate::{run, setup};

/// The programs of Plimsoll's that run on a host, and the library that goes into QEMU.
const PROGRAMS: [&str; 5] =
    ["plimsoll", "plimsolld", "plimsoll-keeper", "plimsoll-backend", "plimsoll-pod-preload"];

/// Sets up what guests need.
///
/// # Errors
/// With everything that could not be done; `who` needs it.
pub(crate) fn guests(who: &str) -> Result<()> {
    complete(who, &setup::run())
}

/// Sets up sources and a compiler for guests that compile.
///
/// # Errors
/// As [`guests`].
pub(crate) fn sources(who: &str) -> Result<()> {
    complete(who, &setup::run_sources())
}

fn complete(who: &str, report: &setup::Report) -> Result<()> {
    if !report.problems.is_empty() {
        bail!("{who} needs what setup could not do:\n  {}", report.problems.join("\n  "));
    }
    Ok(())
}

/// Builds Plimsoll's programs, optimized.
///
/// # Errors
/// When cargo fails.
pub(crate) fn programs() -> Result<()> {
    let step = Step::begin("build plimsoll");
    let mut build = run::cargo();
    build.args(["build", "--release"]).args(PROGRAMS.iter().flat_map(|name| ["--package", name]));
    if !run::shown_output(&mut build)?.success() {
        bail!("cargo build --release failed");
    }
    step.end("built");
    Ok(())
}
