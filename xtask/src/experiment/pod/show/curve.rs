//! Each guest's memory over time, with what it is granted and what it is told of, as SVG.

use std::fmt::Write;

use plimsoll_units::Bytes;

use super::super::Run;
use super::super::guest::Booted;
use super::{mib, seconds, size};
use crate::experiment::figures::number;

const PANEL: (f64, f64) = (420.0, 220.0);
const LEFT: f64 = 56.0;
const TOP: f64 = 64.0;
const RIGHT: f64 = 24.0;
const BOTTOM: f64 = 44.0;
/// Panels beside each other: a plain boot and its `memtest=1`.
const COLUMNS: usize = 2;
// Okabe and Ito's colours: told apart by the colour-blind too.
const RESIDENT: &str = "#0072b2";
const TARGET: &str = "#d55e00";
const MOMENT: &str = "#009e73";

/// Where a panel is, and what its axes end with.
#[derive(Clone, Copy)]
struct Scale {
    left: f64,
    base: f64,
    seconds: f64,
    mib: f64,
}

impl Scale {
    fn x(&self, seconds: f64) -> f64 {
        self.left + seconds / self.seconds * PANEL.0
    }

    fn y(&self, mib: f64) -> f64 {
        self.base - mib / self.mib * PANEL.1
    }
}

/// All guests, two beside each other.
pub(in super::super) fn chart(runs: &[Run]) -> String {
    let booted: Vec<&Booted> = runs.iter().filter_map(Run::boot).collect();
    let (wide, high) = (LEFT + PANEL.0 + RIGHT, TOP + PANEL.1 + BOTTOM);
    let rows = booted.chunks(COLUMNS).fold(0.0, |rows, _| rows + 1.0);
    let (width, height) = (2.0 * wide, rows * high + 30.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"20\" font-size=\"14\">What exists of guests' memory (<tspan fill=\"{RESIDENT}\">by the \
         kernel's count</tspan>) and what they are granted (<tspan fill=\"{TARGET}\">dashed</tspan>); the axis ends \
         where what they are told of ends</text>\n"
    );
    let mut base = 30.0 + TOP + PANEL.1;
    for row in booted.chunks(COLUMNS) {
        let mut left = LEFT;
        for one in row {
            panel(&mut text, one, (left, base));
            left += wide;
        }
        base += high;
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, booted: &Booted, (left, base): (f64, f64)) {
    let last = booted.curve.last().map_or(0, |(ms, _)| *ms);
    let seconds_shown = (number(last) / 1000.0).max(1.0);
    let scale = Scale { left, base, seconds: seconds_shown, mib: mib(booted.turn.maxmem).max(1.0) };
    let top = base - PANEL.1;
    let words = |x: f64, y: f64, more: &str, words: &str| {
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{words}</text>")
    };
    put(text, &words(left, top - 34.0, "font-weight=\"bold\"", &booted.turn.to_string()));
    let pager = booted.pager.unwrap_or_default();
    let most = size(Some(booted.max_resident));
    let said = format!("at most {most}, {} sweeps, {} stalls", pager.sweeps, pager.stalls);
    put(text, &words(left, top - 20.0, "fill=\"#555\"", &said));
    axes(text, scale);
    for (name, ms) in [("ready", booted.ready_ms), ("balloon", booted.inflated_ms)] {
        let Some(at) = ms else { continue };
        let x = scale.x((number(at) / 1000.0).min(seconds_shown));
        put(
            text,
            &format!("<path d=\"M{x:.1} {top:.1}V{base:.1}\" stroke=\"{MOMENT}\" stroke-dasharray=\"2 3\"/>"),
        );
        let label = format!("{name} {}", seconds(ms));
        put(text, &words(x, top - 4.0, &format!("fill=\"{MOMENT}\" text-anchor=\"middle\""), &label));
    }
    let target = scale.y(mib(booted.turn.memory));
    put(
        text,
        &format!(
            "<path d=\"M{left:.1} {target:.1}H{:.1}\" stroke=\"{TARGET}\" stroke-dasharray=\"6 4\"/>",
            left + PANEL.0
        ),
    );
    put(text, &format!("<polyline fill=\"none\" stroke=\"{RESIDENT}\" points=\"{}\"/>", line(booted, scale)));
}

fn line(booted: &Booted, scale: Scale) -> String {
    let mut points = String::new();
    for &(ms, bytes) in &booted.curve {
        // Writing to a string cannot fail.
        let _ = write!(points, "{:.1},{:.1} ", scale.x(number(ms) / 1000.0), scale.y(mib(Bytes(bytes))));
    }
    points.trim_end().to_owned()
}

fn axes(text: &mut String, scale: Scale) {
    let (left, base) = (scale.left, scale.base);
    put(
        text,
        &format!(
            "<path d=\"M{left:.1} {:.1}V{base:.1}H{:.1}\" fill=\"none\" stroke=\"black\"/>",
            base - PANEL.1,
            left + PANEL.0
        ),
    );
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        put(
            text,
            &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0} s</text>",
                left + part * PANEL.0,
                base + 15.0,
                part * scale.seconds
            ),
        );
        put(
            text,
            &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} MiB</text>",
                left - 4.0,
                base - part * PANEL.1 + 4.0,
                part * scale.mib
            ),
        );
    }
}

fn put(text: &mut String, element: &str) {
    let _ = writeln!(text, "{element}");
}

#[cfg(test)]
mod test {
    use super::super::super::guest::test::booted;
    use super::super::super::plan::BootKind;
    use super::{Run, TARGET, chart};

    #[test]
    fn each_guest_has_its_line_and_its_target() {
        let runs: Vec<_> = [BootKind::Plain, BootKind::Memtest, BootKind::Plain]
            .map(|boot| Run::Boot(Box::new(booted(boot))))
            .into();
        let svg = chart(&runs);
        assert_eq!(svg.matches("<polyline").count(), 3, "{svg}");
        assert_eq!(svg.matches(&format!("stroke=\"{TARGET}\"")).count(), 3, "{svg}");
        assert!(svg.contains("256M of 512M, memtest=1") && svg.contains("ready 6.0 s"), "{svg}");
        // 256 of 512 MiB is half of the height.
        assert!(svg.contains("M56.0 204.0H476.0"), "{svg}");
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_guest_that_was_never_seen_breaks_nothing() {
        let mut one = booted(BootKind::Plain);
        (one.curve, one.pager, one.ready_ms) = (Vec::new(), None, None);
        let svg = chart(&[Run::Boot(Box::new(one))]);
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
        assert!(chart(&[]).ends_with("</svg>\n"));
    }
}
