//! `cargo xtask experiment selfballoon`: whether self-ballooning of real guests does what its arithmetic says, and
//! whether programs have their memory when they want it.
//!
//! Guests of each kind run under one plimsolld with memory to spare, with Plimsoll's agent inside and no swap.
//!
//! * **Half-life.** A program in an idle guest holds some memory, so that the guest's goal lies above its floor.
//!   Self-ballooning is switched on while the guest has its full size, and what it holds is followed: inflated and
//!   deflated pages as the guest's own kernel counts them. Curves of different kinds are taken at the same time.
//! * **Growth.** The guest comes to rest at its goal; then a program is promised half of all memory in one piece and
//!   writes to it at once. Counted is the time until the guest holds its new goal, or the program has all its memory.
//! * **Load steps.** Loads of different sizes come upon guests at rest and are freed again; all
//!   guests do so at the same time.
//!
//! Loads run at the default settings but for the shortest interval; between them a guest is brought to rest in one
//! step, which takes seconds.
//!
//! The daemon ticks once a second, and a step down comes with a tick. An interval of one second would lose steps to
//! the tick's jitter; the shortest that is tried is therefore two.

mod curve;
mod growth;
mod guest;
mod half_life;
mod show;
mod summary;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use plimsoll_units::Bytes;
use serde::Serialize;

use crate::experiment::sheet::{self, Sheet};
use crate::fleet::Kept;
use crate::out::{self, Step};
use crate::ready;
use growth::Load;
use guest::{Guest, Kind};
use half_life::{HalfLife, Pace};
use summary::Summary;

/// The least that a guest may be told: below it, the parts of a goal leave no room for a curve.
const LEAST_TOLD: Bytes = Bytes::mib(384);
/// How often a curve is taken at most, when it is void.
const TRIES: u32 = 3;
/// Load steps of each kind.
const STEPS: usize = 20;
/// Sizes of load steps, in percent of what the guest was told, over and over.
const SHARES: [u64; 7] = [60, 15, 40, 78, 25, 50, 10];
/// What a guest holds in each experiment's half-life, in percent of what it was told.
const HELD_SHARE: u64 = 15;
/// What the program of the growth wants, in percent.
const GROWTH_SHARE: u64 = 50;

/// What can be chosen. The defaults take about ten minutes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Which guests
    #[arg(long, value_delimiter = ',', default_values = ["uml", "qemu_linux"], value_name = "KINDS")]
    kinds: Vec<Kind>,
    /// What each guest is told it has
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    told: Bytes,
    /// The short interval only, three growths: within 4 minutes
    #[arg(long)]
    quick: bool,
    /// Write raw curves, loads and the summary here, as JSON; the chart goes beside it, as SVG
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Keep what Plimsoll's daemon logged, its journal, and what it said of its guests
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// What was chosen, for the record.
#[derive(Clone, Debug, Serialize)]
struct Settings {
    quick: bool,
    kinds: Vec<Kind>,
    told: Bytes,
    floor: Bytes,
    /// Held by a program while the curve is taken.
    held: Bytes,
    /// Settings of each curve.
    paces: Vec<Pace>,
    /// Settings while a load runs, and while the guest comes to rest for the next one.
    load_pace: Pace,
    rest_pace: Pace,
    growths: usize,
    growth: Bytes,
    steps: Vec<String>,
}

/// A part of the experiment, done by one guest.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
enum Run {
    /// A curve.
    HalfLife { kind: Kind, outcome: HalfLife },
    /// Loads that were promised all their memory at once.
    Growth { kind: Kind, loads: Vec<Load> },
    /// Loads of different sizes.
    LoadSteps { kind: Kind, loads: Vec<Load> },
}

impl Run {
    fn kind(&self) -> Kind {
        match self {
            Self::HalfLife { kind, .. } | Self::Growth { kind, .. } | Self::LoadSteps { kind, .. } => *kind,
        }
    }

    fn curve(&self) -> Option<&HalfLife> {
        if let Self::HalfLife { outcome, .. } = self { Some(outcome) } else { None }
    }

    fn growth(&self) -> Option<&[Load]> {
        if let Self::Growth { loads, .. } = self { Some(loads) } else { None }
    }

    fn steps(&self) -> Option<&[Load]> {
        if let Self::LoadSteps { loads, .. } = self { Some(loads) } else { None }
    }
}

impl Options {
    fn settings(&self) -> Result<Settings> {
        if self.told < LEAST_TOLD {
            bail!("--told {} is too little for a curve; it is at least {LEAST_TOLD}", self.told);
        }
        let mut kinds = self.kinds.clone();
        kinds.sort_unstable();
        kinds.dedup();
        let percent = |share: u64| Bytes::mib(self.told.scale(share, 100).whole_mib());
        let short = Pace { interval: 2, down: 8 };
        let default = Pace { interval: 5, down: 8 };
        // What is promised at once and what is promised bit by bit, by turns.
        let step = |(n, share): (usize, &u64)| {
            let word = if n.is_multiple_of(2) { "fill" } else { "grab" };
            format!("{word} {} {}", percent(*share), n + 1)
        };
        Ok(Settings {
            quick: self.quick,
            kinds,
            told: self.told,
            floor: percent(12),
            held: percent(HELD_SHARE),
            paces: if self.quick { vec![short] } else { vec![short, default] },
            load_pace: growth::LOADED,
            rest_pace: growth::HASTY,
            growths: if self.quick { 3 } else { 10 },
            growth: percent(GROWTH_SHARE),
            steps: SHARES.iter().cycle().take(STEPS).enumerate().map(step).collect(),
        })
    }
}

type Paper = Sheet<Settings, Run, Summary>;

pub(crate) fn command(options: &Options) -> Result<()> {
    let settings = options.settings()?;
    let mut paper: Paper = Sheet::begin("selfballoon", &options.out, settings.clone())?;
    paper.note("times of QEMU are those of software emulation");
    if let Some(busy) = sheet::busy() {
        out::say(&format!("note: {busy}"));
        paper.note(busy);
    }
    paper
        .note("grow_ticks are of 1 s, the daemon's default; counted from the command to the guest's console");
    ready::guests("the experiment")?;
    ready::programs()?;
    let kept = Kept::serve("selfballoon", &config(&settings, options.logs.as_deref())?)?;
    let done = play(&kept, &settings, &mut paper);
    if let Some(dir) = &options.logs {
        kept.keep_logs(settings.kinds.iter().map(|kind| kind.name()), dir)?;
    }
    drop(kept);
    done?;
    conclude(options, &settings, &mut paper)
}

/// Memory for every guest at its full size and its VMM, and twice as much: nobody has to give for another.
fn config(settings: &Settings, logs: Option<&Path>) -> Result<String> {
    let guests = u64::try_from(settings.kinds.len()).unwrap_or(u64::MAX);
    let budget = settings.told.plus(Bytes::mib(256)).scale(guests.saturating_mul(2), 1);
    let mut config = format!("[host]\nbudget = \"{budget}\"\nreserve = \"0\"\nlow = \"16M\"\n");
    if let Some(logs) = logs {
        let journal = std::path::absolute(logs.join("journal"))?;
        config.push_str(&format!("\n[journal]\ndir = \"{}\"\n", journal.display()));
    }
    Ok(config)
}

fn play(kept: &Kept, settings: &Settings, paper: &mut Paper) -> Result<()> {
    let step = Step::begin(&format!("start {} guests told of {}", settings.kinds.len(), settings.told));
    let start = |&kind: &Kind| Guest::start(kept, kind, settings.told, settings.floor);
    let guests = at_once(&settings.kinds, start)?;
    step.end("their agents speak");
    for guest in &guests {
        guest.ask(&format!("fill {}", settings.held))?;
    }
    for &pace in &settings.paces {
        curves(&guests, pace, paper)?;
    }
    for guest in &guests {
        guest.ask("free")?;
        guest.set_pace(growth::HASTY)?;
    }
    let step = Step::begin("growth of guests at rest");
    let grab = vec![format!("grab {} 1", settings.growth); settings.growths];
    // One guest after the other: what is measured is time.
    for guest in &guests {
        let loads = in_order(guest, &grab, growth::CLOSELY)?;
        note(paper, Run::Growth { kind: guest.kind, loads })?;
    }
    step.end("done");
    let step = Step::begin(&format!("{} load steps at full speed", settings.steps.len()));
    let loads = at_once(&guests, |guest| in_order(guest, &settings.steps, growth::NOW_AND_THEN))?;
    for (guest, loads) in guests.iter().zip(loads) {
        note(paper, Run::LoadSteps { kind: guest.kind, loads })?;
    }
    step.end("done");
    Ok(())
}

/// Takes a curve of each guest at the same time. A void one is taken again, a few times.
fn curves(guests: &[Guest<'_>], pace: Pace, paper: &mut Paper) -> Result<()> {
    let step = Step::begin(&format!("half-life at an interval of {} s", pace.interval));
    let mut left: Vec<&Guest<'_>> = guests.iter().collect();
    for _ in 0..TRIES {
        let outcomes = at_once(&left, |guest| half_life::measure(guest, pace))?;
        let mut again = Vec::new();
        for (guest, outcome) in left.into_iter().zip(outcomes) {
            again.extend(outcome.void.is_some().then_some(guest));
            note(paper, Run::HalfLife { kind: guest.kind, outcome })?;
        }
        left = again;
        if left.is_empty() {
            break;
        }
    }
    step.end("done");
    Ok(())
}

fn note(paper: &mut Paper, run: Run) -> Result<()> {
    show::run(&run);
    paper.add(run)
}

/// Does the same with all of them at the same time.
fn at_once<T: Sync, O: Send>(all: &[T], act: impl Fn(&T) -> Result<O> + Sync) -> Result<Vec<O>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| act(one))).collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))));
        joined.collect()
    })
}

/// The loads, one after the other, looked at every so often.
fn in_order(guest: &Guest<'_>, commands: &[String], every: Duration) -> Result<Vec<Load>> {
    let run = |command: &String| {
        growth::run(guest, command, every).with_context(|| format!("{}: {command}", guest.kind.name()))
    };
    commands.iter().map(run).collect()
}

/// Sums up, shows and judges.
fn conclude(options: &Options, settings: &Settings, paper: &mut Paper) -> Result<()> {
    let summary = summary::summary(&settings.kinds, &paper.runs);
    out::say("");
    out::say(show::table(&summary, &paper.runs).trim_end());
    let chart = options.out.with_extension("svg");
    sheet::replace(&chart, &show::chart(&paper.runs))?;
    let missed = summary::missed(&summary, STEPS);
    paper.finish(summary)?;
    out::say(&format!("written: {} and {}", options.out.display(), chart.display()));
    if missed.is_empty() {
        return Ok(());
    }
    bail!("limits were missed:\n  {}", missed.join("\n  "))
}

#[cfg(test)]
mod test {
    use clap::Parser;

    use super::{Kind, Options, STEPS, config};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &[&str]) -> Options {
        let line = ["x", "--out", "o.json"].iter().chain(words);
        Line::try_parse_from(line).expect("parses").options
    }

    #[test]
    fn quick_is_shorter_and_not_easier() {
        let (quick, whole) =
            (options(&["--quick"]).settings().expect("possible"), options(&[]).settings().expect("possible"));
        assert_eq!((quick.paces.len(), whole.paces.len()), (1, 2));
        assert_eq!((quick.steps.len(), whole.steps.len()), (STEPS, STEPS));
        assert_eq!(quick.kinds, [Kind::Uml, Kind::QemuLinux]);
        assert_eq!((quick.steps[0].as_str(), quick.steps[1].as_str()), ("fill 307M 1", "grab 76M 2"));
        assert_eq!(
            config(&whole, None).expect("no path"),
            "[host]\nbudget = \"3G\"\nreserve = \"0\"\nlow = \"16M\"\n"
        );
    }

    #[test]
    fn a_guest_too_small_for_a_curve_is_refused() {
        let error = options(&["--told", "128M"]).settings().expect_err("too small").to_string();
        assert!(error.contains("384M"), "{error}");
        assert_eq!(options(&["--kinds", "uml,uml"]).settings().expect("possible").kinds, [Kind::Uml]);
    }
}
