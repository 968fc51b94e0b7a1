//! What the runs come to, and whether that is good enough.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Run;
use super::guest::Kind;
use super::half_life::HalfLife;
use crate::experiment::figures::{median, number};

/// The daemon's tick, in milliseconds: its default, which the experiment leaves as it is.
pub(crate) const TICK_MS: f64 = 1000.0;
/// The half-life may be off by so much of the formula's.
const MOST_ERROR: f64 = 0.10;
/// A guest must have grown within so many ticks.
const MOST_TICKS: f64 = 1.0;

/// For each kind of guest, by its name.
pub(crate) type Summary = BTreeMap<&'static str, Figures>;

/// What one kind of guest came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// The worst of its curves; `None` if one fell in no way that could be fitted, or all at some settings are void.
    pub(crate) halflife_error: Option<f64>,
    /// The slowest of its growths, in ticks; `None` if one never came.
    pub(crate) grow_ticks: Option<f64>,
    /// Processes killed for want of memory in all loads.
    pub(crate) oom_kills: u64,
    /// The same growths in milliseconds: the middle one and the slowest.
    pub(crate) grow_median_ms: Option<f64>,
    pub(crate) grow_most_ms: Option<f64>,
    /// Load steps at full speed, and those whose program did not come to its end.
    pub(crate) load_steps: usize,
    pub(crate) failed: usize,
    /// Loads that came before the guest was at rest, and so are no test of growth.
    pub(crate) unrested: usize,
    /// Curves that say nothing, because the machine was too busy; they were taken again.
    pub(crate) void: usize,
}

/// Sums up all runs of one kind.
fn figures(kind: Kind, runs: &[Run]) -> Figures {
    let ours = || runs.iter().filter(|run| run.kind() == kind);
    let curves: Vec<_> = ours().filter_map(Run::curve).collect();
    let grown: Vec<_> = ours().filter_map(Run::growth).flatten().collect();
    let steps: Vec<_> = ours().filter_map(Run::steps).flatten().collect();
    let loads = || grown.iter().chain(&steps);
    let served: Option<Vec<f64>> = grown.iter().map(|load| load.served_ms().map(number)).collect();
    let served = served.filter(|served| !served.is_empty());
    let most = served.as_ref().and_then(|served| worst(served));
    Figures {
        halflife_error: worst_error(&curves),
        grow_ticks: most.map(|ms| ms / TICK_MS),
        oom_kills: loads().map(|load| load.oom_kills).fold(0, u64::saturating_add),
        grow_median_ms: served.as_ref().and_then(|served| median(served)),
        grow_most_ms: most,
        load_steps: steps.len(),
        failed: loads().filter(|load| load.failure.is_some()).count(),
        void: curves.iter().filter(|curve| curve.void.is_some()).count(),
        unrested: loads().filter(|load| !load.rested).count(),
    }
}

/// How far the worst of the curves is off; `None` unless there is one at each of the settings that counts, and all
/// that count can be fitted.
fn worst_error(curves: &[&HalfLife]) -> Option<f64> {
    let counts = |curve: &&&HalfLife| curve.void.is_none();
    let counted = |of: &&HalfLife| curves.iter().filter(counts).any(|curve| curve.pace == of.pace);
    if !curves.iter().all(counted) {
        return None;
    }
    let errors: Option<Vec<f64>> = curves.iter().filter(counts).map(|curve| curve.error).collect();
    worst(&errors?)
}

fn worst(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

/// Sums up all runs.
pub(crate) fn summary(kinds: &[Kind], runs: &[Run]) -> Summary {
    kinds.iter().map(|&kind| (kind.name(), figures(kind, runs))).collect()
}

/// What misses its limit, in words. `steps` are the load steps that were asked for.
pub(crate) fn missed(summary: &Summary, steps: usize) -> Vec<String> {
    summary.iter().flat_map(|(kind, figures)| missed_by(kind, figures, steps)).collect()
}

fn missed_by(kind: &str, figures: &Figures, steps: usize) -> Vec<String> {
    let mut missed = Vec::new();
    match figures.halflife_error {
        Some(error) if error <= MOST_ERROR => {}
        Some(error) => missed.push(format!("{kind}: half-life off by {:.1} %, limit 10 %", error * 100.0)),
        None if figures.void > 0 => {
            missed.push(format!("{kind}: the machine was too busy for a curve, {} times", figures.void));
        }
        None => missed.push(format!("{kind}: no half-life fits the curve")),
    }
    match figures.grow_ticks {
        Some(ticks) if ticks <= MOST_TICKS => {}
        Some(ticks) => missed.push(format!("{kind}: grew in {ticks:.2} ticks, limit 1")),
        None => missed.push(format!("{kind}: never grew to its goal")),
    }
    if figures.oom_kills > 0 {
        missed.push(format!("{kind}: {} processes killed for want of memory, limit 0", figures.oom_kills));
    }
    if figures.failed > 0 {
        missed.push(format!("{kind}: {} loads did not come to their end", figures.failed));
    }
    if figures.load_steps < steps {
        missed.push(format!("{kind}: {} of {steps} load steps were done", figures.load_steps));
    }
    if figures.unrested > 0 {
        missed.push(format!("{kind}: not at rest before {} loads", figures.unrested));
    }
    missed
}

#[cfg(test)]
mod test {
    use super::super::growth::Load;
    use super::super::growth::test::load;
    use super::super::half_life::{Pace, test::curve};
    use super::{Kind, Run, missed, summary};

    const PACE: Pace = Pace { interval: 2, down: 8 };

    fn runs(factor: f64, growth: Vec<Load>, steps: Vec<Load>) -> Vec<Run> {
        let kind = Kind::Uml;
        vec![
            Run::HalfLife { kind, outcome: curve(PACE, PACE.half_life_s() * factor) },
            Run::Growth { kind, loads: growth },
            Run::LoadSteps { kind, loads: steps },
        ]
    }

    fn verdict(runs: &[Run]) -> Vec<String> {
        missed(&summary(&[Kind::Uml], runs), 2)
    }

    #[test]
    fn what_keeps_its_limits_misses_nothing() {
        let good = || load(Some(500), Some(900), 0);
        let runs = runs(1.05, vec![good(), load(Some(1200), Some(1000), 0)], vec![good(), good()]);
        assert_eq!(verdict(&runs), Vec::<String>::new());
        let summary = summary(&[Kind::Uml], &runs);
        let figures = &summary["uml"];
        assert!((figures.halflife_error.expect("fits") - 0.05).abs() < 0.001);
        assert!((figures.grow_ticks.expect("grew") - 1.0).abs() < 1e-9, "the slowest counts");
        assert!((figures.grow_median_ms.expect("grew") - 750.0).abs() < 1e-9);
    }

    #[test]
    fn each_limit_that_is_missed_is_named() {
        let good = || load(Some(500), Some(900), 0);
        let says = |runs: &[Run], word: &str| {
            let missed = verdict(runs);
            assert!(missed.len() == 1 && missed[0].contains(word), "{missed:?}");
        };
        says(&runs(1.2, vec![good()], vec![good(), good()]), "half-life off by 20.0 %");
        says(&runs(1.0, vec![good(), load(Some(1001), None, 0)], vec![good(), good()]), "1.00 ticks");
        says(&runs(1.0, vec![good(), load(None, None, 0)], vec![good(), good()]), "never grew");
        says(&runs(1.0, vec![], vec![good(), good()]), "never grew");
        says(&runs(1.0, vec![good()], vec![good(), load(None, Some(1), 2)]), "2 processes killed");
        says(&runs(1.0, vec![good()], vec![good()]), "1 of 2 load steps");
        let failed = Load { failure: Some("killed".into()), ..good() };
        says(&runs(1.0, vec![good()], vec![good(), failed]), "did not come to their end");
        let early = Load { rested: false, ..good() };
        says(&runs(1.0, vec![good()], vec![good(), early]), "not at rest");
        says(
            &[
                Run::Growth { kind: Kind::Uml, loads: vec![good()] },
                Run::LoadSteps { kind: Kind::Uml, loads: vec![good(), good()] },
            ],
            "no half-life",
        );
    }

    #[test]
    fn a_void_curve_does_not_count_and_one_at_least_must() {
        let good = || load(Some(500), Some(900), 0);
        let mut all = runs(2.0, vec![good()], vec![good(), good()]);
        if let Run::HalfLife { outcome, .. } = &mut all[0] {
            outcome.void = Some("too busy".into());
        }
        assert_eq!(verdict(&all), ["uml: the machine was too busy for a curve, 1 times"]);
        let other = Pace { interval: 5, down: 8 };
        all.push(Run::HalfLife { kind: Kind::Uml, outcome: curve(other, other.half_life_s()) });
        assert_eq!(verdict(&all).len(), 1, "there must be one at each pace");
        all.push(Run::HalfLife { kind: Kind::Uml, outcome: curve(PACE, PACE.half_life_s()) });
        assert_eq!(verdict(&all), Vec::<String>::new());
    }

    #[test]
    fn kinds_are_kept_apart() {
        let runs = runs(1.0, vec![load(Some(5), None, 3)], vec![]);
        let summary = summary(&[Kind::Uml, Kind::QemuLinux], &runs);
        assert_eq!((summary["uml"].oom_kills, summary["qemu_linux"].oom_kills), (3, 0));
        assert_eq!(summary["qemu_linux"].halflife_error, None);
    }
}
