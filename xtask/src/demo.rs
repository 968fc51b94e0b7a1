//! `cargo xtask demo`: the same guests and the same work, unmanaged and managed.

mod table;
mod turns;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plimsoll_testbed::guard::TempSwap;
use plimsoll_testbed::host::Meminfo;
use plimsoll_units::Bytes;
use serde::Serialize;

use crate::{out, paths, ready, run};

/// What can be chosen. The defaults end in under five minutes on two cores.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// What all guests together may use: the limit of their memory cgroup
    #[arg(long, default_value = "768M", value_name = "SIZE")]
    limit: Bytes,
    /// How many guests, an even number from 6 on
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(6..=32), value_name = "N")]
    guests: u64,
    /// How often each guest has its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100), value_name = "N")]
    rounds: u64,
    /// Write the figures to a file, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The sizes that follow from the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Plan {
    guests: u64,
    rounds: u64,
    /// The cgroup's limit.
    limit: Bytes,
    /// What each guest is told: together twice the limit.
    told: Bytes,
    /// The baseline of each managed guest.
    memory: Bytes,
    /// The guarantee of each managed guest.
    floor: Bytes,
    /// What a guest fills at its turn; two have theirs at a time.
    fill: Bytes,
}

/// What a guest of the demonstration uses when it does nothing: its kernel and busybox. Measured: 33 to 36 MiB.
const IDLE: Bytes = Bytes::mib(36);
/// What lives at one moment, as a share of the limit.
const LIVE_PERCENT: u64 = 80;
/// Guests that have their turn at the same time.
const AT_A_TIME: u64 = 2;
/// No side takes longer: a hung one must not hang the demonstration.
const SIDE_LIMIT: Duration = Duration::from_secs(120);

impl Plan {
    fn new(options: &Options) -> Result<Self> {
        let (guests, limit) = (options.guests, options.limit);
        if !guests.is_multiple_of(AT_A_TIME) {
            bail!("--guests {guests} is odd; they have their turns two at a time");
        }
        let mib = |bytes: Bytes| Bytes::mib(bytes.whole_mib());
        let told = mib(limit.scale(2, guests));
        let live = limit.scale(LIVE_PERCENT, 100).minus(IDLE.scale(guests, 1));
        let plan = Self {
            guests,
            rounds: options.rounds,
            limit,
            told,
            memory: mib(limit.scale(5, 8).scale(1, guests)),
            floor: mib(limit.scale(3, 8).scale(1, guests)),
            // A guest cannot fill all it was told of: its kernel needs some, and at the very edge it kills.
            fill: mib(live.scale(1, AT_A_TIME)).min(mib(told.scale(11, 16))),
        };
        if plan.floor < Bytes::mib(40) || plan.fill < Bytes::mib(16) {
            bail!("--limit {limit} is too little for {guests} guests; at least {}M is", guests * 107);
        }
        Ok(plan)
    }
}

/// The sides that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    /// Guests started bare.
    Nothing,
    /// Guests in Plimsoll's care.
    Plimsoll,
}

/// What one side came to. Pages are of 4 KiB and counted by the kernel (/proc/vmstat).
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    side: Side,
    /// pswpin and zswpin.
    swapped_in_pages: u64,
    /// pswpout and zswpout.
    swapped_out_pages: u64,
    /// All turns of all guests.
    elapsed_ms: u64,
    /// Guests that were killed or did not do their work, by what they said.
    lost: Vec<String>,
    /// Processes that the host killed because the cgroup met its limit.
    oom_kills: u64,
    /// Pages that had not the contents they should.
    mismatches: u64,
    /// The most that the guests used together.
    peak: Bytes,
}

pub(crate) fn command(options: &Options) -> Result<()> {
    let plan = Plan::new(options)?;
    ready::guests("the demonstration")?;
    ready::programs()?;
    let _swap = ensure_swap(plan)?;
    table::announce(&plan);
    let outcomes = vec![
        turns::play(plan, Side::Nothing).context("without Plimsoll")?,
        turns::play(plan, Side::Plimsoll).context("with Plimsoll")?,
    ];
    table::compare(&plan, &outcomes);
    if let Some(path) = &options.out {
        write_figures(path, plan, &outcomes)?;
    }
    verdict(&outcomes)
}

/// The demonstration is about swap; without any, the unmanaged guests would simply be killed.
fn ensure_swap(plan: Plan) -> Result<Option<TempSwap>> {
    let meminfo = Meminfo::read()?;
    // Twice told less what stays in memory, and room to move.
    let wanted = plan.told.scale(plan.guests, 1);
    if meminfo.swap_free >= wanted {
        out::say(&format!("swap: the host's own, {}M free", meminfo.swap_free.whole_mib()));
        return Ok(None);
    }
    let swap = TempSwap::add(wanted).context("the demonstration needs swap, and so root")?;
    out::say(&format!(
        "swap: a temporary file of {wanted}, {}; it is removed at the end",
        swap.path().display()
    ));
    Ok(Some(swap))
}

fn write_figures(path: &PathBuf, plan: Plan, outcomes: &[Outcome]) -> Result<()> {
    #[derive(Serialize)]
    struct Figures<'a> {
        name: &'static str,
        commit: String,
        machine: String,
        plan: Plan,
        sides: &'a [Outcome],
    }
    let commit =
        run::quiet(std::process::Command::new("git").current_dir(paths::root()).args(["rev-parse", "HEAD"]));
    let machine = run::quiet(std::process::Command::new("uname").args(["-srm"]));
    let figures = Figures {
        name: "demo",
        commit: commit.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned()),
        machine: machine.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned()),
        plan,
        sides: outcomes,
    };
    let text = serde_json::to_string_pretty(&figures)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    out::say(&format!("figures: {}", path.display()));
    Ok(())
}

/// A demonstration that shows nothing, or the wrong thing, must say so.
fn verdict(outcomes: &[Outcome]) -> Result<()> {
    let [without, with] = outcomes else { bail!("two sides were to be played") };
    if !with.lost.is_empty() || with.mismatches + without.mismatches > 0 {
        bail!("guests were lost or memory was wrong; see above");
    }
    if without.swapped_out_pages == 0 {
        bail!("void: the unmanaged guests were under no pressure, so there is nothing to compare");
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::{IDLE, Options, Plan};

    fn options(limit: Bytes, guests: u64) -> Options {
        Options { limit, guests, rounds: 1, out: None }
    }

    #[test]
    fn guests_are_told_of_twice_the_limit_and_live_within_it() {
        for (limit, guests) in [(768, 6), (1024, 8), (2048, 12)] {
            let plan = Plan::new(&options(Bytes::mib(limit), guests)).expect("possible");
            assert!(plan.told.scale(guests, 1) >= plan.limit.scale(19, 10), "{plan:?}");
            let live = plan.fill.scale(2, 1).plus(IDLE.scale(guests, 1));
            assert!(live <= plan.limit.scale(4, 5), "{plan:?}");
            assert!(plan.floor <= plan.memory && plan.memory <= plan.told);
        }
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let odd = Plan::new(&options(Bytes::mib(768), 7)).expect_err("odd").to_string();
        assert!(odd.contains("two at a time"), "{odd}");
        let little = Plan::new(&options(Bytes::mib(200), 6)).expect_err("little").to_string();
        assert!(little.contains("642M"), "{little}");
    }
}
