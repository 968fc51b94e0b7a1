//! What people see: a line for each run, tables, and each guest's memory over time as SVG.

mod curve;

use plimsoll_units::Bytes;

use super::Run;
use super::guest::Booted;
use super::rates::{Rates, Ratio};
use super::summary::shown;
use crate::experiment::figures::number;
use crate::experiment::table::{Table, thousands};

pub(super) use curve::chart;

/// A size in MiB.
fn mib(size: Bytes) -> f64 {
    number(size.0) / 1_048_576.0
}

fn seconds(ms: Option<u64>) -> String {
    ms.map_or("-".to_owned(), |ms| format!("{:.1} s", number(ms) / 1000.0))
}

fn size(size: Option<Bytes>) -> String {
    size.map_or("-".to_owned(), |size| format!("{:.1} MiB", mib(size)))
}

fn count(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), thousands)
}

/// A guest as one line.
pub(super) fn boot_line(booted: &Booted) -> String {
    let pager = booted.pager.unwrap_or_default();
    format!(
        "ready after {}, balloon at its size after {}; at most {} resident ({} of the target), {} at the end; \
         {} sweeps took {} pages, {} stalls, {} of the memory in whole frames; {:.1} looks a second, the longest pause {} ms",
        seconds(booted.ready_ms),
        seconds(booted.inflated_ms),
        size(Some(booted.max_resident)),
        shown(Some(booted.over_target())),
        size(Some(booted.last_resident)),
        pager.sweeps,
        thousands(pager.swept_pages),
        pager.stalls,
        shown(booted.whole_frame_share()),
        booted.looks_per_s,
        booted.longest_gap_ms,
    )
}

/// Rates as one line.
pub(super) fn rates_line(rates: &Rates) -> String {
    let ratios = rates.ratios().map(|(name, ratio)| format!("{name} {}", spread(ratio)));
    format!("{}: {}", memory(rates), ratios.join(", "))
}

fn memory(rates: &Rates) -> &'static str {
    if rates.huge_pages { "huge pages" } else { "memfd" }
}

fn spread(ratio: Ratio) -> String {
    format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.least, ratio.most)
}

/// The table of guests, for the README.
pub(super) fn boots_table(runs: &[Run]) -> String {
    let booted: Vec<&Booted> = runs.iter().filter_map(Run::boot).collect();
    let head = booted.iter().map(|one| one.turn.to_string());
    let mut table = Table::new(["granted of told".to_owned()].into_iter().chain(head));
    let mut row = |name: &str, cell: &dyn Fn(&Booted) -> String| {
        let cells = booted.iter().map(|one| cell(one));
        table.row([name.to_owned()].into_iter().chain(cells));
    };
    row("boots", &|one| if one.booted { "yes" } else { "no" }.to_owned());
    row("most resident", &|one| size(Some(one.max_resident)));
    row("... of its target", &|one| shown(Some(one.over_target())));
    row("memory its kernel knows of", &|one| size(one.inside.as_ref().map(|inside| inside.present)));
    row("... of which MemTotal", &|one| size(one.inside.as_ref().map(|inside| inside.total)));
    row("sweeps", &|one| count(one.pager.map(|pager| pager.sweeps)));
    row("pages swept", &|one| count(one.pager.map(|pager| pager.swept_pages)));
    row("stalls", &|one| count(one.pager.map(|pager| pager.stalls)));
    row("in whole frames of 2 MiB", &|one| shown(one.whole_frame_share()));
    row("mapped by huge pages", &|one| size(one.mapped.map(|mapped| mapped.pmd_mapped)));
    row("ready after", &|one| seconds(one.ready_ms));
    row("balloon at its size after", &|one| seconds(one.inflated_ms));
    row("peak of its control group, QEMU included", &|one| size(one.cgroup_peak));
    table.markdown()
}

/// The table of rates, for the README.
pub(super) fn rates_table(runs: &[Run]) -> String {
    let all: Vec<&Rates> =
        runs.iter().filter_map(|run| if let Run::Rates(rates) = run { Some(rates) } else { None }).collect();
    let head = all.iter().map(|rates| memory(rates).to_owned());
    let mut table = Table::new(["rate, median (least to most)".to_owned()].into_iter().chain(head));
    for (row, name) in ["populate / kernel", "populate / 4 KiB faults", "scan / read", "sweep / punch"]
        .into_iter()
        .enumerate()
    {
        let cell = |rates: &&Rates| rates.ratios().get(row).map_or_else(String::new, |(_, r)| spread(*r));
        table.row([name.to_owned()].into_iter().chain(all.iter().map(cell)));
    }
    table.markdown()
}

#[cfg(test)]
mod test {
    use super::super::guest::test::booted;
    use super::super::plan::BootKind;
    use super::super::rates::test::rates;
    use super::{Booted, Rates, Run, boot_line, boots_table, rates_line, rates_table};

    fn row<'t>(text: &'t str, begin: &str) -> Vec<&'t str> {
        let line = text.lines().find(|line| line.starts_with(&format!("| {begin}"))).expect("a row");
        line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).skip(1).collect()
    }

    #[test]
    fn the_table_has_what_was_counted_and_a_dash_for_what_was_not() {
        let silent = Booted { booted: false, pager: None, inside: None, ..booted(BootKind::Memtest) };
        let runs: Vec<_> = [booted(BootKind::Plain), silent].map(|one| Run::Boot(Box::new(one))).into();
        let text = boots_table(&runs);
        assert_eq!(row(&text, "granted of told"), ["256M of 512M, plain boot", "256M of 512M, memtest=1"]);
        assert_eq!(row(&text, "boots"), ["yes", "no"]);
        assert_eq!(row(&text, "most resident"), ["128.0 MiB", "128.0 MiB"]);
        assert_eq!(row(&text, "... of its target"), ["0.500", "0.500"]);
        assert_eq!(row(&text, "pages swept"), ["1,000", "-"]);
        assert_eq!(row(&text, "memory its kernel"), ["511.0 MiB", "-"]);
        assert_eq!(row(&text, "peak of"), ["200.0 MiB", "200.0 MiB"]);
        assert!(boot_line(&booted(BootKind::Plain)).contains("3 sweeps took 1,000 pages"));
    }

    #[test]
    fn rates_stand_beside_each_other() {
        let huge = Rates { huge_pages: true, ..rates(0.8) };
        assert!(rates_line(&huge).starts_with("huge pages: populate_vs_kernel 1.60 (0.80 to 3.20), "));
        let text = rates_table(&[Run::Rates(rates(0.9)), Run::Rates(huge)]);
        assert_eq!(row(&text, "rate"), ["memfd", "huge pages"]);
        assert_eq!(row(&text, "sweep / punch"), ["0.90 (0.45 to 1.80)", "0.80 (0.40 to 1.60)"]);
    }
}
