//! `cargo xtask setup`: what real guests need.

mod guest;
mod kernel;
mod packages;
pub(crate) mod sources;

use anyhow::{Result, bail};

use crate::out::{self, Step};

/// What a part of the setup found or did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// It was there.
    Already(String),
    /// It was made now.
    Now(String),
}

/// What the setup came to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Whether anything had to be done.
    pub(crate) changed: bool,
    /// What could not be done, and what to do about it.
    pub(crate) problems: Vec<String>,
}

/// Does all of it. What fails does not keep the rest from being done.
pub(crate) fn run() -> Report {
    let mut report = Report::default();
    part(&mut report, "packages", packages::install);
    part(&mut report, "Debian's kernel for QEMU guests", kernel::fetch);
    part(&mut report, "workload for guests", guest::build_workload);
    part(&mut report, "agent for guests", guest::build_agent);
    part(&mut report, "guest images", guest::build_images);
    report
}

/// What guests need that compile: apart from the rest, since only experiments have such guests.
pub(crate) fn run_sources() -> Report {
    let mut report = Report::default();
    part(&mut report, "sources for guests to compile", sources::fetch);
    report
}

fn part(report: &mut Report, what: &str, act: fn() -> Result<Done>) {
    let step = Step::begin(what);
    match act() {
        Ok(Done::Already(text)) => step.end(&format!("already there: {text}")),
        Ok(Done::Now(text)) => {
            report.changed = true;
            step.end(&text);
        }
        Err(error) => {
            step.end(&format!("FAILED: {error:#}"));
            report.problems.push(format!("{what}: {error:#}"));
        }
    }
}

/// The task itself.
pub(crate) fn command() -> Result<()> {
    let step = Step::begin("setup");
    let (mut report, sources) = (run(), run_sources());
    report.changed |= sources.changed;
    report.problems.extend(sources.problems);
    if !report.problems.is_empty() {
        bail!("setup is incomplete:\n  {}", report.problems.join("\n  "));
    }
    let result = if report.changed { "setup is complete" } else { "everything was there: nothing to do" };
    out::say(&format!("{result} ({})", out::seconds(step.elapsed())));
    Ok(())
}
