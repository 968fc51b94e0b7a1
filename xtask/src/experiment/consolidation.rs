//! `cargo xtask experiment consolidation`: the experiment of 2013 (35 guests building a kernel on a host too small
//! for them) on today's kernels, in three columns.
//!
//! * `nothing`: bare User Mode Linux guests without a balloon, zswap off.
//! * `careful`: what a careful administrator has without Plimsoll: guests report free pages, the host has zswap, and
//!   where control groups of version 2 offer memory.reclaim it is used while nobody stalls. The reporting device is
//!   ours, with a daemon that has nothing to decide: every VM's baseline, guarantee and size are the same.
//! * `plimsoll`: the same device, with Plimsoll's daemon at its defaults and the group as its host. zswap off.
//!
//! Guests are otherwise the same to the last word: kernel, image, memory, a swap disk of their own, a control group
//! each below the common one. Before each run the page cache is emptied; group, swap and disks are made anew.
//! Swapping, faults and disk reads are counted from before the first guest boots until the last has done its work;
//! times are of the work alone.

mod administrator;
mod counters;
mod plan;
mod run;
mod show;
mod side;
mod summary;
mod work;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_units::Bytes;
use serde::Serialize;

use crate::experiment::sheet::{self, Sheet};
use crate::out::{self, Step};
use crate::ready;
use plan::{Column, Plan, Setting, Turn};
use run::Run;
use side::How;
use summary::Summary;

/// What can be chosen. The defaults take about two hours on two cores.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many guests [default: 35; with --quick 8]
    #[arg(long, value_parser = clap::value_parser!(u64).range(4..=200), value_name = "N")]
    vms: Option<u64>,
    /// How often each column is run [default: 5; with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100), value_name = "N")]
    runs: Option<u64>,
    /// What is compared
    #[arg(long, value_delimiter = ',', default_values = ["nothing", "careful", "plimsoll"], value_name = "COLUMNS")]
    columns: Vec<Column>,
    /// How small the host is [default: both; with --quick hard]
    #[arg(long, value_name = "RATIO")]
    ratio: Option<Ratio>,
    /// Files each guest compiles; fewer make for a short run, of which only the turns of memory mean anything
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    files: Option<u64>,
    /// What each guest is told it has
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    told: Bytes,
    /// Eight guests, two runs, the hard setting only: within 12 minutes
    #[arg(long)]
    quick: bool,
    /// Another number is another order of guests and files
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Write raw counters and summary here, as JSON, after every run; the chart goes beside it, as SVG
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Leave the agent out of Plimsoll's guests: demand comes from their balloons' statistics
    #[arg(long)]
    no_agent: bool,
    /// Keep what Plimsoll's daemon logged, journalled and said of its guests, a folder for each run
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// Which settings are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Ratio {
    /// Limit : told = 1 : 2
    Hard,
    /// Limit : told = 32 : 35, as in the field
    Field,
    /// Both
    Both,
}

/// What was chosen, for the record.
#[derive(Clone, Debug, Serialize)]
struct Settings {
    quick: bool,
    runs: u64,
    seed: u64,
    columns: Vec<Column>,
    /// Whether Plimsoll's guests have agents.
    agent: bool,
    plans: Vec<Plan>,
}

impl Options {
    fn settings(&self) -> Result<Settings> {
        let vms = self.vms.unwrap_or(if self.quick { 8 } else { 35 });
        let ratio = self.ratio.unwrap_or(if self.quick { Ratio::Hard } else { Ratio::Both });
        let settings = match ratio {
            Ratio::Hard => &[Setting::Hard][..],
            Ratio::Field => &[Setting::Field],
            Ratio::Both => &[Setting::Field, Setting::Hard],
        };
        let plans = settings.iter().map(|&setting| self.plan(setting, vms)).collect::<Result<_>>()?;
        let mut columns = self.columns.clone();
        columns.sort_unstable();
        columns.dedup();
        let runs = self.runs.unwrap_or(if self.quick { 2 } else { 5 });
        Ok(Settings { quick: self.quick, runs, seed: self.seed, columns, agent: !self.no_agent, plans })
    }

    fn plan(&self, setting: Setting, vms: u64) -> Result<Plan> {
        let plan = Plan::new(setting, vms, self.told)?;
        Ok(Plan { files: self.files.unwrap_or(plan.files), ..plan })
    }
}

pub(crate) fn command(options: &Options) -> Result<()> {
    let settings = options.settings()?;
    let mut sheet: Sheet<Settings, Run, Summary> =
        Sheet::begin("consolidation", &options.out, settings.clone())?;
    ready::guests("the experiment")?;
    ready::sources("the experiment")?;
    ready::programs()?;
    show::announce(&settings.plans, settings.runs, &settings.columns);
    for note in notes(&settings)? {
        out::say(&format!("note: {note}"));
        sheet.note(note);
    }
    play_all(options, &settings, &mut sheet)?;
    conclude(options, &settings, &mut sheet)
}

fn play_all(options: &Options, settings: &Settings, sheet: &mut Sheet<Settings, Run, Summary>) -> Result<()> {
    let kinds: Vec<_> = settings.plans.iter().map(|plan| plan.setting).collect();
    let turns = plan::order(settings.runs, &kinds, &settings.columns);
    for (index, turn) in turns.iter().enumerate() {
        let plan =
            settings.plans.iter().find(|plan| plan.setting == turn.setting).context("a plan for it")?;
        let step = Step::begin(&format!(
            "run {} of {}: {}, round {}, {}",
            index + 1,
            turns.len(),
            turn.setting.name(),
            turn.round + 1,
            turn.column.name()
        ));
        let logs = logs_of(options, *turn)?;
        let how = How { agent: settings.agent, logs: logs.as_deref() };
        let run = run::play(plan, *turn, settings.seed, &how)?;
        show::run(&run);
        sheet.add(run)?;
        step.end("done");
    }
    Ok(())
}

/// The folder for a run's logs, made when logs are wanted and the column has any.
fn logs_of(options: &Options, turn: Turn) -> Result<Option<PathBuf>> {
    let Some(dir) = options.logs.as_ref().filter(|_| turn.column != Column::Nothing) else { return Ok(None) };
    let dir = dir.join(format!("{}-{}-{}", turn.setting.name(), turn.round + 1, turn.column.name()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(Some(dir))
}

/// Sums up, shows and judges.
fn conclude(options: &Options, settings: &Settings, sheet: &mut Sheet<Settings, Run, Summary>) -> Result<()> {
    let kinds: Vec<_> = settings.plans.iter().map(|plan| plan.setting).collect();
    let vms = settings.plans.first().map_or(0, |plan| plan.vms);
    let summary = summary::summary(vms, &kinds, &sheet.runs);
    for &setting in &kinds {
        out::say("");
        out::say(show::table(setting, &summary.columns).trim_end());
    }
    let chart = options.out.with_extension("svg");
    sheet::replace(&chart, &show::chart(&summary, options.told))?;
    out::say("");
    let mut shown = summary.clone();
    shown.columns.clear();
    out::say(&format!("summary: {}", serde_json::to_string(&shown)?));
    for note in &summary.notes {
        out::say(&format!("note: {note}"));
    }
    sheet.finish(summary)?;
    out::say(&format!("figures: {}, chart: {}", options.out.display(), chart.display()));
    let faults = summary::faults(&sheet.runs);
    if !faults.is_empty() {
        bail!("the experiment failed:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

/// What the reader of the figures must know of this machine and of the columns.
fn notes(settings: &Settings) -> Result<Vec<String>> {
    let mut notes = vec![
        "host swap in = pswpin + zswpin, out = pswpout + zswpout of /proc/vmstat, in pages of 4 KiB, boot included; \
         pages of zeros that the kernel only notes (swpin_zero, swpout_zero) are recorded and not in these sums"
            .to_owned(),
        "host swapping and disk reads are of the whole machine: anything else that runs on it is counted too".to_owned(),
        "compile outputs go to a tmpfs in the guest; programs, headers and sources are read through hostfs".to_owned(),
    ];
    if !settings.columns.contains(&Column::Careful) {
        return Ok(notes);
    }
    notes.push(
        "careful: free page reporting by Plimsoll's device under a daemon whose VMs have memory = floor = maxmem, so \
         that nothing is ever moved; zswap with the kernel's usual pool of 20 % of the host"
            .to_owned(),
    );
    let probe = TestCgroup::create("probe", Bytes::mib(64))?;
    if !probe.can_reclaim() {
        notes.push(
            "careful: THERE IS NO memory.reclaim HERE (control groups of version 1), so this column has no proactive \
             reclaim"
                .to_owned(),
        );
    }
    if !probe.charges_zswap() {
        notes.push(
            "careful: control groups of version 1 do not charge zswap's memory, which would be a gift; the group's \
             limit is lowered by what zswap takes, every 50 ms"
                .to_owned(),
        );
    }
    Ok(notes)
}

#[cfg(test)]
mod test {
    use clap::Parser;

    use std::path::Path;

    use super::{Column, Options, Setting};

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
    fn quick_changes_only_what_was_not_chosen() {
        let settings = options(&[]).settings().expect("possible");
        let kinds: Vec<_> = settings.plans.iter().map(|plan| (plan.setting, plan.vms)).collect();
        assert_eq!((kinds, settings.runs), (vec![(Setting::Field, 35), (Setting::Hard, 35)], 5));
        let settings = options(&["--quick", "--runs", "1"]).settings().expect("possible");
        assert_eq!((settings.plans.len(), settings.plans[0].vms, settings.runs), (1, 8, 1));
        assert_eq!(settings.plans[0].setting, Setting::Hard);
    }

    #[test]
    fn columns_are_taken_once_and_in_order() {
        let chosen = options(&["--columns", "plimsoll,nothing,plimsoll", "--ratio", "hard"]);
        assert_eq!(chosen.settings().expect("possible").columns, [Column::Nothing, Column::Plimsoll]);
        assert_eq!(chosen.out, Path::new("o.json"));
    }
}
