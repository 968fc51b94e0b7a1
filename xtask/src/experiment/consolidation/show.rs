//! What people see: what will be run, a table for each setting, and the chart.

use plimsoll_units::Bytes;

use super::plan::{Column, Plan, Setting};
use super::run::Run;
use super::summary::{ColumnFigures, Quantity, Summary};
use crate::experiment::chart::{Panel, svg};
use crate::experiment::figures::{number, ratio};
use crate::experiment::table::{Table, thousands};
use crate::out;

/// What the chart shows.
const PANELS: [Quantity; 5] =
    [Quantity::CpuSeconds, Quantity::MemorySeconds, Quantity::SwapIn, Quantity::SwapOut, Quantity::GuestSwap];

/// What will be run.
pub(crate) fn announce(plans: &[Plan], runs: u64, columns: &[Column]) {
    for plan in plans {
        out::say(&format!(
            "{}: {} guests told of {} each share {} (limit : told = 1 : {:.2}), {} of swap; each compiles {} files, \
             then {} at a time fill {}, {} times each",
            plan.setting.name(),
            plan.vms,
            plan.told,
            plan.limit,
            ratio(number(plan.told.scale(plan.vms, 1).0), number(plan.limit.0)).unwrap_or(0.0),
            plan.swap,
            plan.files,
            plan.at_a_time,
            plan.fill,
            plan.rounds
        ));
    }
    let names = columns.iter().map(|column| column.name()).collect::<Vec<_>>().join(", ");
    out::say(&format!("{runs} runs of each column: {names}"));
}

/// A run as one line.
pub(crate) fn run(run: &Run) {
    let vmstat = &run.host.vmstat;
    out::say(&format!(
        "    compiled {:.1} s, turns {:.1} s, host swap in/out {}/{}, guest swap {}, OOM kills {}, lost {}, peak {} MiB",
        number(run.elapsed_ms("cpu")) / 1000.0,
        number(run.elapsed_ms("memory")) / 1000.0,
        thousands(vmstat.swapped_in()),
        thousands(vmstat.swapped_out()),
        thousands(run.inside.pswpin.saturating_add(run.inside.pswpout)),
        run.oom_kills(),
        run.lost().count(),
        run.peak.whole_mib(),
    ));
    for (guest, how) in run.lost() {
        out::say(&format!("    {guest} was lost: {how}"));
    }
    if let Some(why) = &run.void {
        out::say(&format!("    VOID: {why}"));
    }
}

/// A table of a setting's columns, with Plimsoll's ratio to each other one.
pub(crate) fn table(setting: Setting, columns: &[ColumnFigures]) -> String {
    let ours: Vec<_> = columns.iter().filter(|column| column.setting == setting).collect();
    let plimsoll = ours.iter().find(|column| column.column == Column::Plimsoll);
    let others: Vec<_> = ours.iter().filter(|column| column.column != Column::Plimsoll).collect();
    let mut head =
        vec![format!("limit : told = {}", if setting == Setting::Hard { "1 : 2" } else { "32 : 35" })];
    head.extend(ours.iter().map(|column| column.column.name().to_owned()));
    if plimsoll.is_some() {
        head.extend(others.iter().map(|column| format!("plimsoll / {}", column.column.name())));
    }
    let mut table = Table::new(head);
    for quantity in Quantity::ALL {
        let median = |column: &ColumnFigures| column.spread(quantity).map(|spread| spread.median);
        let mut row = vec![quantity.title().to_owned()];
        row.extend(
            ours.iter().map(|column| median(column).map_or("-".to_owned(), |value| shown(quantity, value))),
        );
        if let Some(plimsoll) = plimsoll {
            let over = |column: &&&ColumnFigures| {
                let ratio = ratio(median(plimsoll)?, median(column)?)?;
                Some(format!("{ratio:.3}"))
            };
            row.extend(others.iter().map(|column| over(column).unwrap_or("-".to_owned())));
        }
        table.row(row);
    }
    table.markdown()
}

fn shown(quantity: Quantity, value: f64) -> String {
    match quantity {
        Quantity::CpuSeconds | Quantity::MemorySeconds | Quantity::WorkSeconds => format!("{value:.1}"),
        Quantity::DiskReadMib
        | Quantity::SwapIn
        | Quantity::SwapOut
        | Quantity::GuestSwap
        | Quantity::HostMajorFaults
        | Quantity::GuestMajorFaults
        | Quantity::OomKills
        | Quantity::Lost => {
            let whole = format!("{value:.0}");
            whole.parse().map_or(whole, thousands)
        }
    }
}

/// The chart of the setting that the summary is of.
pub(crate) fn chart(summary: &Summary, told: Bytes) -> String {
    let ours: Vec<_> = summary.columns.iter().filter(|column| column.setting == summary.setting).collect();
    let names: Vec<_> = ours.iter().map(|column| column.column.name().to_owned()).collect();
    let panel = |quantity: Quantity| {
        let (title, unit) = quantity.title().rsplit_once(", ").unwrap_or((quantity.title(), ""));
        let bars = ours.iter().map(|column| column.spread(quantity)).collect();
        Panel { title: title.to_owned(), unit: unit.to_owned(), bars }
    };
    let caption = format!(
        "{} guests told of {told} each on a host that is too small for them (setting: {})",
        summary.vms,
        summary.setting.name()
    );
    svg(&caption, &names, &PANELS.map(panel))
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::{chart, table};
    use crate::experiment::consolidation::plan::{Column, Setting};
    use crate::experiment::consolidation::summary::{summary, test::run};

    #[test]
    fn the_table_has_a_row_for_each_quantity_and_losses_like_wins() {
        let runs = [
            run(Column::Nothing, [40, 100], [1000, 40_000]),
            run(Column::Careful, [40, 50], [0, 0]),
            run(Column::Plimsoll, [44, 25], [0, 200]),
        ];
        let summary = summary(8, &[Setting::Hard], &runs);
        let text = table(Setting::Hard, &summary.columns);
        let row = |begin: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("| {begin}"))).expect("a row");
            line.split('|')
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            row("limit")[1..],
            ["nothing", "careful", "plimsoll", "plimsoll / nothing", "plimsoll / careful"]
        );
        assert_eq!(row("compiling")[1..], ["40.0", "40.0", "44.0", "1.100", "1.100"]);
        assert_eq!(row("host swap out")[1..], ["40,000", "0", "200", "0.005", "-"]);
        let svg = chart(&summary, Bytes::mib(192));
        assert!(svg.contains(">careful<") && svg.contains(">host swap in<") && svg.contains(">pages<"));
    }
}
