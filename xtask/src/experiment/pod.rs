//! `cargo xtask experiment pod`: whether a guest that is told of twice its memory, or four times, boots on what it is
//! granted, and how fast it is served.
//!
//! Debian's kernel in QEMU, both as they are, under software emulation; started by `plimsoll run` with `memory` below
//! `maxmem`, and held at `memory`, so that nobody raises the limit that is looked at. A plain boot touches little before
//! its balloon driver is up; with `memtest=1` the guest writes zeros to all it is told of, and only sweeps keep it going.
//!
//! What the host has given is read by this program itself, 20 times a second from the guest's first page on: `fstat` of
//! the file that is the guest's memory. What the guest believes it is told by its own kernel. Counts of sweeps, stalls and
//! whole frames are the pager's, since nobody else has them.
//!
//! The rates come from the pager's own benchmark, which alternates all sides in one process.

mod guest;
mod plan;
mod rates;
mod show;
mod summary;
mod watch;

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::experiment::sheet::{self, Sheet};
use crate::out::{self, Step};
use crate::ready;
use guest::Booted;
use plan::{Settings, Turn};
use rates::Rates;
use summary::Summary;

/// What can be chosen. All of it takes about two minutes once Plimsoll is built.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The smaller guest only, both boots
    #[arg(long)]
    quick: bool,
    /// Write raw samples, counters and the summary here, as JSON; the chart goes beside it, as SVG
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Keep consoles, and what Plimsoll's programs logged and said of each guest
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// A part of the experiment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
enum Run {
    /// What the pager's benchmark printed.
    Rates(Rates),
    /// A guest from its first page until it was at rest.
    Boot(Box<Booted>),
}

impl Run {
    fn boot(&self) -> Option<&Booted> {
        if let Self::Boot(booted) = self { Some(booted) } else { None }
    }

    /// Those of memory as this machine gives it to everybody.
    fn rates(&self) -> Option<&Rates> {
        if let Self::Rates(rates) = self { Some(rates).filter(|rates| !rates.huge_pages) } else { None }
    }
}

type Paper = Sheet<Settings, Run, Summary>;

pub(crate) fn command(options: &Options) -> Result<()> {
    let settings = Settings::new(options.quick);
    let mut paper: Paper = Sheet::begin("pod", &options.out, settings.clone())?;
    paper.note("guests run under software emulation: their times are those of that");
    paper.note("each guest is held at its memory, so that nobody raises its target while it is looked at");
    if let Some(busy) = sheet::busy() {
        out::say(&format!("note: {busy}"));
        paper.note(busy);
    }
    ready::guests("the experiment")?;
    ready::programs()?;
    measure_rates(&mut paper)?;
    for turn in &settings.turns {
        boot(options, &settings, *turn, &mut paper)?;
    }
    conclude(options, &settings, &mut paper)
}

fn measure_rates(paper: &mut Paper) -> Result<()> {
    let step = Step::begin("rates of the pager, beside the kernel's");
    for huge in [false, true] {
        match rates::measure(huge) {
            Ok(rates) => {
                out::say(&format!("    {}", show::rates_line(&rates)));
                paper.add(Run::Rates(rates))?;
            }
            // Memory with huge pages takes a file system of its own, and so the right to make one.
            Err(error) if huge => paper.note(format!("no rates with huge pages: {error:#}")),
            Err(error) => return Err(error),
        }
    }
    step.end("measured");
    Ok(())
}

fn boot(options: &Options, settings: &Settings, turn: Turn, paper: &mut Paper) -> Result<()> {
    let step = Step::begin(&turn.to_string());
    let logs = options.logs.as_ref().map(|logs| logs.join(turn.folder()));
    let booted = guest::boot(settings, turn, logs.as_deref())?;
    out::say(&format!("    {}", show::boot_line(&booted)));
    if let Some(failure) = &booted.failure {
        out::say(&format!("    FAILED: {failure}"));
    }
    step.end(if booted.booted { "booted" } else { "did not boot" });
    paper.add(Run::Boot(Box::new(booted)))
}

/// Sums up, shows and judges.
fn conclude(options: &Options, settings: &Settings, paper: &mut Paper) -> Result<()> {
    let summary = summary::summary(&settings.turns, &paper.runs);
    out::say("");
    out::say(show::boots_table(&paper.runs).trim_end());
    out::say("");
    out::say(show::rates_table(&paper.runs).trim_end());
    let chart = options.out.with_extension("svg");
    sheet::replace(&chart, &show::chart(&paper.runs))?;
    let missed = summary::missed(&summary);
    out::say("");
    out::say(&format!("summary: {}", serde_json::to_string(&summary)?));
    paper.finish(summary)?;
    out::say(&format!("written: {} and {}", options.out.display(), chart.display()));
    if missed.is_empty() {
        return Ok(());
    }
    bail!("limits were missed:\n  {}", missed.join("\n  "))
}
