//! What all runs come to.

use serde::Serialize;

use super::plan::{Column, Setting};
use super::run::Run;
use crate::experiment::figures::{Spread, number, ratio};

/// The summary of the hard setting (of the field's when only that was run).
///
/// A ratio is of the medians of two columns' runs: Plimsoll over nothing, or over careful. 0/0 is 1. `null`: something
/// over nothing, which is no number (a note says so), or a column that was not run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) vms: u64,
    /// The setting it is of.
    pub(crate) setting: Setting,
    /// Time to compile, until the last guest is done.
    pub(crate) time_ratio_cpu: Option<f64>,
    /// Time for all turns of memory.
    pub(crate) time_ratio_memory: Option<f64>,
    /// Pages the host swapped in, from zswap and disk.
    pub(crate) swap_in_ratio: Option<f64>,
    /// Pages the host swapped out, to zswap and disk.
    pub(crate) swap_out_ratio: Option<f64>,
    /// Pages that guests swapped themselves, in and out.
    pub(crate) guest_swap_ratio: Option<f64>,
    /// Processes killed for want of memory in all runs, by the host or in guests.
    pub(crate) oom_kills_nothing: u64,
    pub(crate) oom_kills_plimsoll: u64,
    /// Both phases' time, over careful.
    pub(crate) time_vs_careful: Option<f64>,
    pub(crate) swap_out_vs_careful: Option<f64>,
    /// What the ratios are made of, for each setting and column.
    pub(crate) columns: Vec<ColumnFigures>,
    /// Ratios that are no numbers, and why.
    pub(crate) notes: Vec<String>,
}

/// A quantity that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantity {
    CpuSeconds,
    MemorySeconds,
    WorkSeconds,
    SwapIn,
    SwapOut,
    GuestSwap,
    HostMajorFaults,
    GuestMajorFaults,
    DiskReadMib,
    OomKills,
    Lost,
}

impl Quantity {
    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 11] = [
        Self::CpuSeconds,
        Self::MemorySeconds,
        Self::WorkSeconds,
        Self::SwapIn,
        Self::SwapOut,
        Self::GuestSwap,
        Self::HostMajorFaults,
        Self::GuestMajorFaults,
        Self::DiskReadMib,
        Self::OomKills,
        Self::Lost,
    ];

    /// In words.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::CpuSeconds => "compiling, s",
            Self::MemorySeconds => "turns of memory, s",
            Self::WorkSeconds => "both, s",
            Self::SwapIn => "host swap in, pages",
            Self::SwapOut => "host swap out, pages",
            Self::GuestSwap => "guest swap in and out, pages",
            Self::HostMajorFaults => "major faults of the host",
            Self::GuestMajorFaults => "major faults in guests",
            Self::DiskReadMib => "read from disk, MiB",
            Self::OomKills => "OOM kills, host and guests",
            Self::Lost => "guests lost",
        }
    }

    /// Its value in a run.
    fn of(self, run: &Run) -> f64 {
        let seconds = |phase| number(run.elapsed_ms(phase)) / 1000.0;
        let vmstat = &run.host.vmstat;
        match self {
            Self::CpuSeconds => seconds("cpu"),
            Self::MemorySeconds => seconds("memory"),
            Self::WorkSeconds => seconds("cpu") + seconds("memory"),
            Self::SwapIn => number(vmstat.swapped_in()),
            Self::SwapOut => number(vmstat.swapped_out()),
            Self::GuestSwap => number(run.inside.pswpin.saturating_add(run.inside.pswpout)),
            Self::HostMajorFaults => number(run.host.cgroup_major_faults),
            Self::GuestMajorFaults => number(run.inside.pgmajfault),
            Self::DiskReadMib => number(run.host.disks.read_bytes) / 1_048_576.0,
            Self::OomKills => number(run.oom_kills()),
            Self::Lost => number(u64::try_from(run.lost().count()).unwrap_or(u64::MAX)),
        }
    }
}

/// A column's figures in one setting.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ColumnFigures {
    pub(crate) setting: Setting,
    pub(crate) column: Column,
    pub(crate) runs: usize,
    pub(crate) figures: Vec<Figure>,
}

/// Least, median and greatest of a quantity.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) quantity: Quantity,
    #[serde(flatten)]
    pub(crate) spread: Spread,
}

impl ColumnFigures {
    /// A quantity's figures.
    pub(crate) fn spread(&self, quantity: Quantity) -> Option<Spread> {
        self.figures.iter().find(|figure| figure.quantity == quantity).map(|figure| figure.spread)
    }
}

/// The figures of a setting's columns, in the columns' order.
pub(crate) fn figures(runs: &[Run], setting: Setting) -> Vec<ColumnFigures> {
    let columns = [Column::Nothing, Column::Careful, Column::Plimsoll];
    let of = |column| {
        let ours: Vec<&Run> =
            runs.iter().filter(|run| run.setting == setting && run.column == column).collect();
        let figure = |quantity: Quantity| {
            let values: Vec<f64> = ours.iter().map(|run| quantity.of(run)).collect();
            Spread::of(&values).map(|spread| Figure { quantity, spread })
        };
        let figures: Vec<_> = Quantity::ALL.into_iter().filter_map(figure).collect();
        (!figures.is_empty()).then_some(ColumnFigures { setting, column, runs: ours.len(), figures })
    };
    columns.into_iter().filter_map(of).collect()
}

/// Sums up. `settings` are those that were run.
pub(crate) fn summary(vms: u64, settings: &[Setting], runs: &[Run]) -> Summary {
    let setting = if settings.contains(&Setting::Hard) { Setting::Hard } else { Setting::Field };
    let columns: Vec<_> = settings.iter().flat_map(|&setting| figures(runs, setting)).collect();
    let mut notes = Vec::new();
    let mut over = |name: &str, quantity: Quantity, other: Column| {
        let median = |column: Column| {
            let found = columns.iter().find(|found| found.setting == setting && found.column == column)?;
            Some(found.spread(quantity)?.median)
        };
        let (ours, theirs) = (median(Column::Plimsoll)?, median(other)?);
        let ratio = ratio(ours, theirs);
        if ratio.is_none() {
            notes.push(format!("{name} is no number: {ours:.0} over 0 ({})", quantity.title()));
        }
        ratio
    };
    let time_ratio_cpu = over("time_ratio_cpu", Quantity::CpuSeconds, Column::Nothing);
    let time_ratio_memory = over("time_ratio_memory", Quantity::MemorySeconds, Column::Nothing);
    let swap_in_ratio = over("swap_in_ratio", Quantity::SwapIn, Column::Nothing);
    let swap_out_ratio = over("swap_out_ratio", Quantity::SwapOut, Column::Nothing);
    let guest_swap_ratio = over("guest_swap_ratio", Quantity::GuestSwap, Column::Nothing);
    let time_vs_careful = over("time_vs_careful", Quantity::WorkSeconds, Column::Careful);
    let swap_out_vs_careful = over("swap_out_vs_careful", Quantity::SwapOut, Column::Careful);
    let oom_kills = |column| runs.iter().filter(|run| run.column == column).map(Run::oom_kills).sum();
    Summary {
        vms,
        setting,
        time_ratio_cpu,
        time_ratio_memory,
        swap_in_ratio,
        swap_out_ratio,
        guest_swap_ratio,
        oom_kills_nothing: oom_kills(Column::Nothing),
        oom_kills_plimsoll: oom_kills(Column::Plimsoll),
        time_vs_careful,
        swap_out_vs_careful,
        columns,
        notes,
    }
}

/// Why the experiment failed, in words; empty when it did not.
pub(crate) fn faults(runs: &[Run]) -> Vec<String> {
    let mut faults = Vec::new();
    for run in runs {
        let which = format!("{} round {} {}", run.setting.name(), run.round, run.column.name());
        faults.extend(run.void.iter().map(|why| format!("{which} is void: {why}")));
        if run.wrong_pages() > 0 {
            faults.push(format!("{which}: {} pages had wrong bytes", run.wrong_pages()));
        }
        if run.column == Column::Plimsoll {
            if run.oom_kills() > 0 {
                faults.push(format!(
                    "{which}: OOM kills, {} by the host and {} in guests",
                    run.host.cgroup_oom_kills, run.inside.oom_kill
                ));
            }
            faults.extend(run.lost().map(|(guest, how)| format!("{which}: {guest} was lost: {how}")));
        }
    }
    faults
}

#[cfg(test)]
pub(super) mod test {
    use plimsoll_testbed::host::Vmstat;
    use plimsoll_units::Bytes;

    use super::{Quantity, faults, figures, summary};
    use crate::experiment::consolidation::counters::{Host, Inside};
    use crate::experiment::consolidation::plan::{Column, Setting};
    use crate::experiment::consolidation::run::{GuestRecord, Phase, Run};
    use crate::experiment::consolidation::work::Work;

    /// A run with so many seconds for each phase and so many pages in and out.
    pub(in super::super) fn run(column: Column, seconds: [u64; 2], pages: [u64; 2]) -> Run {
        let phase = |phase, s| Phase { phase, elapsed_ms: s * 1000, host: Host::default() };
        let vmstat = Vmstat { pswpin: pages[0], zswpout: pages[1], ..Vmstat::default() };
        Run {
            round: 1,
            setting: Setting::Hard,
            column,
            phases: vec![phase("boot", 7), phase("cpu", seconds[0]), phase("memory", seconds[1])],
            host: Host { vmstat, ..Host::default() },
            inside: Inside::default(),
            peak: Bytes::mib(1),
            most_zswap: Bytes::ZERO,
            guests: vec![GuestRecord { name: "vm1".into(), work: Work::default() }],
            void: None,
        }
    }

    fn is(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 1e-9)
    }

    #[test]
    fn ratios_are_of_medians() {
        let runs = [
            run(Column::Nothing, [40, 100], [1000, 4000]),
            run(Column::Nothing, [60, 100], [3000, 4000]),
            run(Column::Careful, [50, 50], [0, 200]),
            run(Column::Plimsoll, [50, 25], [0, 100]),
        ];
        let summary = summary(8, &[Setting::Hard], &runs);
        assert!(is(summary.time_ratio_cpu, 1.0) && is(summary.time_ratio_memory, 0.25));
        assert!(is(summary.swap_in_ratio, 0.0) && is(summary.swap_out_ratio, 0.025));
        assert!(is(summary.guest_swap_ratio, 1.0), "none over none");
        assert!(is(summary.time_vs_careful, 0.75) && is(summary.swap_out_vs_careful, 0.5));
        assert!(summary.notes.is_empty());
        let nothing = &figures(&runs, Setting::Hard)[0];
        assert_eq!((nothing.column, nothing.runs), (Column::Nothing, 2));
        let spread = nothing.spread(Quantity::SwapIn).expect("measured");
        assert!(
            is(Some(spread.min), 1000.0) && is(Some(spread.median), 2000.0) && is(Some(spread.max), 3000.0)
        );
    }

    #[test]
    fn something_over_nothing_is_null_with_a_note_and_a_missing_column_without() {
        let runs = [run(Column::Nothing, [1, 1], [0, 0]), run(Column::Plimsoll, [1, 1], [5, 0])];
        let summary = summary(8, &[Setting::Hard], &runs);
        assert_eq!(summary.swap_in_ratio, None);
        assert_eq!(summary.notes, ["swap_in_ratio is no number: 5 over 0 (host swap in, pages)"]);
        assert_eq!(summary.time_vs_careful, None);
        let json = serde_json::to_value(&summary).expect("serialises");
        assert!(json["swap_in_ratio"].is_null() && json["swap_out_ratio"] == 1.0);
    }

    #[test]
    fn the_summary_is_of_the_hard_setting_where_that_was_run() {
        let mut field = run(Column::Nothing, [9, 9], [9, 9]);
        field.setting = Setting::Field;
        let runs = [field, run(Column::Nothing, [4, 1], [2, 2]), run(Column::Plimsoll, [2, 1], [1, 1])];
        let both = summary(8, &[Setting::Field, Setting::Hard], &runs);
        assert_eq!((both.setting, both.columns.len()), (Setting::Hard, 3));
        assert!(is(both.time_ratio_cpu, 0.5));
        assert_eq!(summary(8, &[Setting::Field], &runs).setting, Setting::Field);
    }

    #[test]
    fn faults_are_told() {
        let mut nothing = run(Column::Nothing, [1, 1], [0, 0]);
        nothing.void = Some("calm".into());
        nothing.inside.oom_kill = 4;
        let mut plimsoll = run(Column::Plimsoll, [1, 1], [0, 0]);
        assert!(faults(&[plimsoll.clone()]).is_empty());
        plimsoll.host.cgroup_oom_kills = 1;
        plimsoll.guests[0].work.lost = Some("hung".into());
        plimsoll.guests[0].work.wrong_pages = 2;
        let faults = faults(&[nothing, plimsoll]);
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(
            faults[0].contains("is void: calm") && faults[3].contains("vm1 was lost: hung"),
            "{faults:?}"
        );
    }
}
