//! What people see: a line for each run, a table, and the curves with their fits as SVG.

use std::fmt::Write;

use super::Run;
use super::curve::mib;
use super::guest::Kind;
use super::half_life::HalfLife;
use super::summary::Summary;
use crate::experiment::table::Table;
use crate::out;

/// A run as one line.
pub(crate) fn run(run: &Run) {
    match run {
        Run::HalfLife { kind, outcome } => out::say(&format!("    {}: {}", kind.name(), curve_line(outcome))),
        Run::Growth { kind, loads } | Run::LoadSteps { kind, loads } => {
            for load in loads {
                let ms = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| format!("{ms} ms"));
                let failure = load.failure.as_ref().map_or(String::new(), |why| format!(", FAILED: {why}"));
                out::say(&format!(
                    "    {:<10} {:<16} held {:>3.0} MiB (goal {:>3.0}), wanted {:>3.0}: goal held after {}, load done after {}, {} killed{failure}{}",
                    kind.name(),
                    load.command,
                    mib(load.held_before),
                    mib(load.goal_before),
                    mib(load.goal),
                    ms(load.goal_ms),
                    ms(load.load_ms),
                    load.oom_kills,
                    if load.rested { "" } else { ", was not at rest" },
                ));
            }
        }
    }
}

fn curve_line(curve: &HalfLife) -> String {
    let (pace, points) = (curve.pace, curve.curve.len());
    let settings = format!("interval {} s, downhysteresis {}", pace.interval, pace.down);
    let line = match (curve.fit, curve.error) {
        (Some(fit), Some(error)) => format!(
            "{settings}: half-life {:.2} s, formula {:.2} s, off by {:.1} %; goal {:.0} MiB, its kernel's figures say {:.0}; \
             rms {:.1} MiB over {points} points, {:.1} a second",
            fit.half_life_s,
            curve.formula_s,
            error * 100.0,
            fit.goal_mib,
            curve.goal_mib,
            fit.rms_mib,
            curve.rate,
        ),
        _ => format!("{settings}: nothing fits {points} points"),
    };
    curve.void.as_ref().map_or(line.clone(), |void| format!("{line}; VOID: {void}"))
}

/// The table for the README.
pub(crate) fn table(summary: &Summary, runs: &[Run]) -> String {
    let mut table = Table::new(
        ["self-ballooning".to_owned()].into_iter().chain(summary.keys().map(|&kind| kind.to_owned())),
    );
    let percent = |value: f64| format!("{:.1} %", value * 100.0);
    let shown = |value: Option<f64>, unit: &dyn Fn(f64) -> String| value.map_or("-".to_owned(), unit);
    for pace in paces(runs) {
        let name = format!("half-life, interval {} s (formula {:.1} s)", pace.interval, pace.half_life_s());
        let cell = |kind: &&str| {
            let ours = runs.iter().filter(|run| run.kind().name() == *kind).filter_map(Run::curve);
            let fit =
                ours.filter(|curve| curve.pace == pace && curve.void.is_none()).find_map(|curve| curve.fit);
            shown(fit.map(|fit| fit.half_life_s), &|seconds| format!("{seconds:.1} s"))
        };
        table.row([name].into_iter().chain(summary.keys().map(cell)));
    }
    let mut row = |name: &str, cells: Vec<String>| table.row([name.to_owned()].into_iter().chain(cells));
    let each =
        |cell: &dyn Fn(&super::summary::Figures) -> String| summary.values().map(cell).collect::<Vec<_>>();
    row("off the formula by, at worst", each(&|figures| shown(figures.halflife_error, &percent)));
    row("growth, median", each(&|figures| shown(figures.grow_median_ms, &|ms| format!("{ms:.0} ms"))));
    row("growth, slowest", each(&|figures| shown(figures.grow_most_ms, &|ms| format!("{ms:.0} ms"))));
    row(
        "growth, slowest, in ticks",
        each(&|figures| shown(figures.grow_ticks, &|ticks| format!("{ticks:.2}"))),
    );
    row("load steps at full speed", each(&|figures| figures.load_steps.to_string()));
    row("OOM kills", each(&|figures| figures.oom_kills.to_string()));
    table.markdown()
}

/// The settings that curves were taken with, in order.
fn paces(runs: &[Run]) -> Vec<super::half_life::Pace> {
    let mut paces = Vec::new();
    for curve in runs.iter().filter_map(Run::curve) {
        if !paces.contains(&curve.pace) {
            paces.push(curve.pace);
        }
    }
    paces
}

const PANEL: (f64, f64) = (420.0, 240.0);
const MARGIN: (f64, f64) = (52.0, 64.0);
const HELD: &str = "#0072b2";
const FITTED: &str = "#e69f00";

/// All curves with their fits, beside each other.
pub(crate) fn chart(runs: &[Run]) -> String {
    let curves: Vec<_> = runs.iter().filter_map(|run| Some((run.kind(), run.curve()?))).collect();
    let width = curves.iter().fold(MARGIN.0, |width, _| width + PANEL.0 + MARGIN.0);
    let height = PANEL.1 + 2.0 * MARGIN.1;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"20\" font-size=\"14\">What guests hold after self-ballooning was switched on (<tspan \
         fill=\"{HELD}\">by their own count</tspan>) and the curve that fits it (<tspan \
         fill=\"{FITTED}\">dashed</tspan>)</text>\n"
    );
    let mut left = MARGIN.0;
    for (kind, curve) in curves {
        panel(&mut text, kind, curve, left);
        left += PANEL.0 + MARGIN.0;
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, kind: Kind, curve: &HalfLife, left: f64) {
    let points: Vec<_> = curve.curve.iter().map(super::curve::Point::coordinates).collect();
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(1.0_f64, f64::max);
    let (seconds, held) = (most(&mut points.iter().map(|p| p.0)), most(&mut points.iter().map(|p| p.1)));
    let base = MARGIN.1 + PANEL.1;
    let place = |(second, mib): (f64, f64)| (left + second / seconds * PANEL.0, base - mib / held * PANEL.1);
    let line = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        let mut words = String::new();
        for point in points {
            let (x, y) = place(point);
            // Writing to a string cannot fail.
            let _ = write!(words, "{x:.1},{y:.1} ");
        }
        words.trim_end().to_owned()
    };
    let title =
        format!("{}, interval {} s, downhysteresis {}", kind.name(), curve.pace.interval, curve.pace.down);
    put(text, &format!("<text x=\"{left:.1}\" y=\"42\" font-weight=\"bold\">{title}</text>"));
    let formula = format!("formula {:.1} s", curve.formula_s);
    let fitted =
        curve.fit.map_or("no fit".to_owned(), |fit| format!("fitted half-life {:.1} s", fit.half_life_s));
    put(text, &format!("<text x=\"{left:.1}\" y=\"56\" fill=\"#555\">{fitted}, {formula}</text>"));
    put(
        text,
        &format!(
            "<polyline fill=\"none\" stroke=\"{HELD}\" points=\"{}\"/>",
            line(&mut points.iter().copied())
        ),
    );
    if let Some(fit) = curve.fit {
        let mut smooth = (0..=200)
            .map(|n| f64::from(n) / 200.0 * seconds)
            .map(|second| (second, fit.at(second).min(held)));
        put(
            text,
            &format!(
                "<polyline fill=\"none\" stroke=\"{FITTED}\" stroke-dasharray=\"5 4\" points=\"{}\"/>",
                line(&mut smooth)
            ),
        );
    }
    axes(text, (left, base), (seconds, held));
}

fn axes(text: &mut String, (left, base): (f64, f64), (seconds, held): (f64, f64)) {
    let (right, top) = (left + PANEL.0, base - PANEL.1);
    put(
        text,
        &format!("<path d=\"M{left:.1} {top:.1}V{base:.1}H{right:.1}\" fill=\"none\" stroke=\"black\"/>"),
    );
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (x, y) = (left + part * PANEL.0, base - part * PANEL.1);
        put(
            text,
            &format!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0} s</text>",
                base + 15.0,
                part * seconds
            ),
        );
        put(
            text,
            &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0}</text>",
                left - 5.0,
                y + 4.0,
                part * held
            ),
        );
    }
    put(
        text,
        &format!(
            "<text x=\"{left:.1}\" y=\"{:.1}\" fill=\"#555\">MiB held, over seconds</text>",
            base + 32.0
        ),
    );
}

fn put(text: &mut String, element: &str) {
    let _ = writeln!(text, "{element}");
}

#[cfg(test)]
mod test {
    use super::super::growth::test::load;
    use super::super::half_life::{Pace, test::curve};
    use super::super::summary::summary;
    use super::{Kind, Run, chart, table};

    fn runs() -> Vec<Run> {
        let (kind, pace) = (Kind::Uml, Pace { interval: 2, down: 8 });
        vec![
            Run::HalfLife { kind, outcome: curve(pace, 10.0) },
            Run::Growth { kind, loads: vec![load(Some(400), Some(600), 0)] },
            Run::LoadSteps { kind, loads: vec![load(Some(400), Some(600), 0)] },
        ]
    }

    #[test]
    fn the_table_has_what_was_measured_and_a_dash_for_what_was_not() {
        let summary = summary(&[Kind::Uml, Kind::QemuLinux], &runs());
        let text = table(&summary, &runs());
        let row = |begin: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("| {begin}"))).expect("a row");
            line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).skip(1).collect::<Vec<_>>()
        };
        assert_eq!(row("self-ballooning"), ["qemu_linux", "uml"]);
        assert_eq!(row("half-life, interval 2 s (formula 10.4 s)"), ["-", "10.0 s"]);
        assert_eq!(row("growth, slowest, in ticks"), ["-", "0.40"]);
        assert_eq!(row("load steps"), ["0", "1"]);
        assert_eq!(row("OOM kills"), ["0", "0"]);
    }

    #[test]
    fn the_chart_has_both_lines() {
        let svg = chart(&runs());
        assert_eq!(svg.matches("<polyline").count(), 2, "{svg}");
        assert!(svg.contains("fitted half-life 10.0 s, formula 10.4 s"), "{svg}");
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
