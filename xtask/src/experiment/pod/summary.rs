//! What the runs come to, and whether that is good enough.

use serde::Serialize;

use super::Run;
use super::guest::Booted;
use super::plan::{BootKind, Turn};
use super::rates::Ratio;

/// No guest may ever have more than it is granted.
const MOST_RESIDENT: f64 = 1.0;
/// So much of a plain boot's memory is to be populated by whole frames.
const LEAST_WHOLE: f64 = 0.9;
/// Each rate is to be so much of what it is compared with.
const LEAST_RATES: [(&str, f64); 4] =
    [("populate_vs_kernel", 1.2), ("populate_vs_4k", 20.0), ("scan_vs_read", 0.6), ("sweep_vs_punch", 0.8)];

/// Each the worst over the settings, `sweeps` and `swept_pages` their sums.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    /// All guests.
    pub(super) booted: bool,
    /// The most memory that ever existed of a guest's, in parts of what it is granted; `None` before all were looked at.
    pub(super) max_resident_over_target: Option<f64>,
    pub(super) guest_sees_maxmem: bool,
    pub(super) sweeps: u64,
    pub(super) swept_pages: u64,
    pub(super) stalls: u64,
    /// In plain boots; `None` if a pager did not tell.
    pub(super) whole_frame_share: Option<f64>,
    /// Medians of the rounds; `None` if they were not measured.
    pub(super) populate_vs_kernel: Option<f64>,
    pub(super) populate_vs_4k: Option<f64>,
    pub(super) scan_vs_read: Option<f64>,
    pub(super) sweep_vs_punch: Option<f64>,
    /// Guests whose pager did not tell all: it did not answer, or its back end was replaced.
    #[serde(skip)]
    pub(super) untold: usize,
}

/// Sums up. `turns` is what was to be run.
pub(super) fn summary(turns: &[Turn], runs: &[Run]) -> Summary {
    let booted: Vec<&Booted> = runs.iter().filter_map(Run::boot).collect();
    let all = |is: fn(&Booted) -> bool| {
        turns.iter().all(|turn| booted.iter().any(|one| one.turn == *turn))
            && booted.iter().all(|one| is(one))
    };
    let sum = |count: fn(&Booted) -> u64| booted.iter().map(|one| count(one)).fold(0, u64::saturating_add);
    let over = booted.iter().map(|one| one.over_target()).max_by(f64::total_cmp);
    let rate = |of: fn(&super::Rates) -> Ratio| {
        runs.iter().filter_map(Run::rates).map(|rates| of(rates).median).min_by(f64::total_cmp)
    };
    Summary {
        booted: all(|one| one.booted),
        max_resident_over_target: over.filter(|_| all(|_| true)),
        guest_sees_maxmem: all(Booted::sees_maxmem),
        sweeps: sum(|one| one.pager.map_or(0, |pager| pager.sweeps)),
        swept_pages: sum(|one| one.pager.map_or(0, |pager| pager.swept_pages)),
        stalls: booted.iter().filter_map(|one| one.pager).map(|pager| pager.stalls).max().unwrap_or(0),
        whole_frame_share: least_whole(&booted),
        populate_vs_kernel: rate(|rates| rates.populate_vs_kernel),
        populate_vs_4k: rate(|rates| rates.populate_vs_4k),
        scan_vs_read: rate(|rates| rates.scan_vs_read),
        sweep_vs_punch: rate(|rates| rates.sweep_vs_punch),
        untold: booted.iter().filter(|one| !one.pager_told_all).count(),
    }
}

fn least_whole(booted: &[&Booted]) -> Option<f64> {
    let plain = booted.iter().filter(|one| one.turn.boot == BootKind::Plain);
    let shares: Option<Vec<f64>> = plain.map(|one| one.whole_frame_share()).collect();
    shares?.into_iter().min_by(f64::total_cmp)
}

/// What misses its limit, in words.
pub(super) fn missed(summary: &Summary) -> Vec<String> {
    let mut missed = Vec::new();
    let mut is_to_be = |good: bool, what: String| missed.extend((!good).then_some(what));
    is_to_be(summary.booted, "not every guest booted".into());
    is_to_be(summary.guest_sees_maxmem, "not every guest knows of all it is told of".into());
    is_to_be(summary.untold == 0, format!("{} pagers did not tell all", summary.untold));
    let over = summary.max_resident_over_target;
    is_to_be(
        over.is_some_and(|over| over <= MOST_RESIDENT),
        format!("a guest had {} of its target, limit {MOST_RESIDENT}", exact(over)),
    );
    let whole = summary.whole_frame_share;
    is_to_be(
        whole.is_some_and(|whole| whole >= LEAST_WHOLE),
        format!("{} of a plain boot came in whole frames, limit {LEAST_WHOLE}", shown(whole)),
    );
    let rates =
        [summary.populate_vs_kernel, summary.populate_vs_4k, summary.scan_vs_read, summary.sweep_vs_punch];
    for ((name, least), rate) in LEAST_RATES.into_iter().zip(rates) {
        is_to_be(rate.is_some_and(|rate| rate >= least), format!("{name} is {}, limit {least}", shown(rate)));
    }
    missed
}

/// A figure, or a dash for one that is not known.
pub(super) fn shown(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.3}"))
}

/// With a page of a guest's memory told from none.
fn exact(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.6}"))
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::super::guest::test::booted;
    use super::super::plan::Settings;
    use super::super::rates::test::rates;
    use super::{BootKind, Booted, Run, Summary, missed, summary};

    fn run(booted: Booted) -> Run {
        Run::Boot(Box::new(booted))
    }

    fn whole(mut booted: Booted) -> Booted {
        if let Some(pager) = &mut booted.pager {
            pager.populated_frames = 100;
        }
        booted
    }

    fn sum(runs: &[Run]) -> Summary {
        summary(&Settings::new(true).turns, runs)
    }

    fn good() -> Vec<Run> {
        let boots = [BootKind::Plain, BootKind::Memtest].map(|boot| run(whole(booted(boot))));
        [Run::Rates(rates(0.9))].into_iter().chain(boots).collect()
    }

    #[test]
    fn what_keeps_its_limits_misses_nothing() {
        let summary = sum(&good());
        assert_eq!(missed(&summary), Vec::<String>::new());
        assert!(summary.booted && summary.guest_sees_maxmem);
        assert_eq!((summary.sweeps, summary.swept_pages, summary.stalls), (6, 2000, 0));
        assert!(summary.max_resident_over_target.is_some_and(|over| (over - 0.5).abs() < 1e-9));
        assert!(summary.whole_frame_share.is_some_and(|share| share > 0.99));
    }

    fn says(runs: &[Run], word: &str) {
        let missed = missed(&sum(runs));
        assert!(missed.len() == 1 && missed[0].contains(word), "{word}: {missed:?}");
    }

    fn with(last: Booted) -> Vec<Run> {
        let mut runs = good();
        runs.pop();
        runs.push(run(last));
        runs
    }

    #[test]
    fn each_limit_that_is_missed_is_named() {
        let last = whole(booted(BootKind::Memtest));
        says(&with(Booted { booted: false, ..last.clone() }), "not every guest booted");
        says(&with(Booted { inside: None, ..last.clone() }), "knows of all");
        let most = last.turn.memory.plus(Bytes(4096));
        says(&with(Booted { max_resident: most, ..last.clone() }), "1.000015 of its target");
        says(&with(Booted { pager_told_all: false, ..last }), "did not tell");
        says(&[&good()[1..], &[Run::Rates(rates(0.7))]].concat(), "sweep_vs_punch is 0.700, limit 0.8");
    }

    #[test]
    fn only_plain_boots_are_to_come_in_whole_frames() {
        let mut runs = with(booted(BootKind::Memtest));
        assert_eq!(missed(&sum(&runs)), Vec::<String>::new());
        runs[1] = run(booted(BootKind::Plain));
        says(&runs, "0.750 of a plain boot");
    }

    #[test]
    fn what_was_not_run_is_not_good() {
        let none = missed(&sum(&[]));
        assert_eq!(none.len(), 8, "{none:?}");
        let half = &good()[..2];
        let missed = missed(&sum(half));
        assert!(missed.iter().any(|line| line.contains("not every guest booted")), "{missed:?}");
        assert!(missed.iter().any(|line| line.contains("had - of its target")), "{missed:?}");
    }

    #[test]
    fn huge_pages_have_figures_of_their_own() {
        let huge = super::super::Rates { huge_pages: true, ..rates(0.1) };
        let runs = [good(), vec![Run::Rates(huge)]].concat();
        assert_eq!(sum(&runs), sum(&good()));
    }

    #[test]
    fn the_summary_has_the_names_that_are_published() {
        let json = serde_json::to_value(sum(&good())).expect("json");
        for name in [
            "booted",
            "max_resident_over_target",
            "guest_sees_maxmem",
            "sweeps",
            "swept_pages",
            "stalls",
            "whole_frame_share",
            "populate_vs_kernel",
            "populate_vs_4k",
            "scan_vs_read",
            "sweep_vs_punch",
        ] {
            assert!(!json[name].is_null(), "{name}");
        }
    }
}
