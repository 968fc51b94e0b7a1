//! What the demonstration shows.

use std::time::Duration;

use plimsoll_testbed::host::Vmstat;
use plimsoll_units::Bytes;

use super::{Outcome, Plan, Side};
use crate::fleet::{Seen, name};
use crate::out;

/// Width of a guest's column.
const COLUMN: usize = 16;

/// What will be shown.
pub(super) fn announce(plan: &Plan) {
    out::say("");
    out::say(&format!(
        "{} Linux guests share {}, and each is told it has {}: {} in all.",
        plan.guests,
        plan.limit,
        plan.told,
        plan.told.scale(plan.guests, 1)
    ));
    out::say(&format!(
        "By turns two of them fill {}, check every byte twice and free it; {} rounds.",
        plan.fill, plan.rounds
    ));
    out::say(&format!(
        "Under Plimsoll each has memory {} and floor {}; what it has more comes from the others.",
        plan.memory, plan.floor
    ));
}

/// A side's name in words.
pub(super) fn title(side: Side) -> &'static str {
    match side {
        Side::Nothing => "without Plimsoll",
        Side::Plimsoll => "with Plimsoll",
    }
}

pub(super) fn live_head(guests: usize) {
    out::say("each guest: what it does, MiB in the host's memory / its target");
    let names = (0..guests).map(|index| format!("{:COLUMN$}", name(u64::try_from(index).unwrap_or(0))));
    out::say(&format!("{:>5}  {}{:>7}  swapped MiB in/out", "s", names.collect::<String>(), "used"));
}

pub(super) fn live(elapsed: Duration, doing: &[&str], sizes: &[Seen], used: Option<Bytes>, counted: &Vmstat) {
    let cell = |(word, seen): (&&str, &Seen)| {
        let resident = seen.resident.map_or("-".to_owned(), |bytes| bytes.whole_mib().to_string());
        let target = seen.target.map_or(String::new(), |bytes| format!("/{}", bytes.whole_mib()));
        format!("{:COLUMN$}", format!("{word:<5} {resident:>3}{target}"))
    };
    let cells: String = doing.iter().zip(sizes).map(cell).collect();
    let used = used.map_or("-".to_owned(), |bytes| format!("{}M", bytes.whole_mib()));
    out::say(&format!(
        "{:>5}  {cells}{used:>7}  {}/{}",
        elapsed.as_secs(),
        mib(counted.pswpin + counted.zswpin),
        mib(counted.pswpout + counted.zswpout)
    ));
}

/// Both sides beside each other.
pub(super) fn compare(plan: &Plan, outcomes: &[Outcome]) {
    let row = |what: &str, value: &dyn Fn(&Outcome) -> String| {
        let cells: String = outcomes.iter().map(|outcome| format!("{:>20}", value(outcome))).collect();
        out::say(&format!("{what:<26}{cells}"));
    };
    out::say("");
    row("", &|outcome| title(outcome.side).to_owned());
    row("pages swapped in", &|outcome| outcome.swapped_in_pages.to_string());
    row("pages swapped out", &|outcome| outcome.swapped_out_pages.to_string());
    row("elapsed", &|outcome| out::seconds(Duration::from_millis(outcome.elapsed_ms)));
    row("guests killed or lost", &|outcome| format!("{} of {}", outcome.lost.len(), plan.guests));
    row("killed by the host's OOM", &|outcome| outcome.oom_kills.to_string());
    row("wrong pages", &|outcome| outcome.mismatches.to_string());
    row("most used at once", &|outcome| format!("{}M", outcome.peak.whole_mib()));
    for outcome in outcomes {
        for lost in &outcome.lost {
            out::say(&format!("lost {}: {lost}", title(outcome.side)));
        }
    }
    out::say("swapped pages: /proc/vmstat (pswpin + zswpin, pswpout + zswpout), 4 KiB each");
}

fn mib(pages: u64) -> u64 {
    pages / 256
}
