//! A chart of bars as SVG: some panels beside each other, each with its own scale, each with one bar per column.
//!
//! Written by hand: bars and words need no library, and every figure stays readable in the file itself.

use std::fmt::Write;

use super::figures::Spread;

/// One quantity.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// What is shown.
    pub(crate) title: String,
    /// In which unit.
    pub(crate) unit: String,
    /// For each column its figures; `None`: it was not measured.
    pub(crate) bars: Vec<Option<Spread>>,
}

/// Colours for columns, told apart by the colour-blind too (Okabe and Ito's set).
const COLOURS: [&str; 4] = ["#999999", "#e69f00", "#0072b2", "#009e73"];
const PANEL: f64 = 190.0;
const HEIGHT: f64 = 220.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 64.0;
const MARGIN: f64 = 16.0;

/// The chart. `columns` names the bars of every panel, `caption` says what it is.
pub(crate) fn svg(caption: &str, columns: &[String], panels: &[Panel]) -> String {
    let width = panels.iter().fold(2.0 * MARGIN, |width, _| width + PANEL);
    let height = TOP + HEIGHT + BOTTOM;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN:.0}\" y=\"22\" font-size=\"14\">{}</text>\n",
        escaped(caption)
    );
    legend(&mut text, columns, height - 14.0);
    let mut left = MARGIN;
    for panel in panels {
        draw(&mut text, panel, columns, left);
        left += PANEL;
    }
    text.push_str("</svg>\n");
    text
}

fn legend(text: &mut String, columns: &[String], y: f64) {
    let mut x = MARGIN;
    for (column, colour) in columns.iter().zip(COLOURS.iter().cycle()) {
        put(
            text,
            &format!(
                "<rect x=\"{x:.0}\" y=\"{:.0}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
                y - 9.0
            ),
        );
        put(text, &format!("<text x=\"{:.0}\" y=\"{y:.0}\">{}</text>", x + 15.0, escaped(column)));
        x += 110.0;
    }
    put(
        text,
        &format!(
            "<text x=\"{x:.0}\" y=\"{y:.0}\" fill=\"#555\">bars: medians; lines: least to greatest</text>"
        ),
    );
}

fn draw(text: &mut String, panel: &Panel, columns: &[String], left: f64) {
    let base = TOP + HEIGHT;
    put(
        text,
        &format!("<text x=\"{left:.1}\" y=\"46\" font-weight=\"bold\">{}</text>", escaped(&panel.title)),
    );
    put(text, &format!("<text x=\"{left:.1}\" y=\"59\" fill=\"#555\">{}</text>", escaped(&panel.unit)));
    put(
        text,
        &format!(
            "<line x1=\"{left:.1}\" y1=\"{base:.1}\" x2=\"{:.1}\" y2=\"{base:.1}\" stroke=\"black\"/>",
            left + PANEL - 24.0
        ),
    );
    let greatest = panel.bars.iter().flatten().fold(0.0_f64, |most, bar| most.max(bar.max));
    // The value stands above its bar and needs room.
    let scale = if greatest > 0.0 { (HEIGHT - 26.0) / greatest } else { 0.0 };
    let step = columns.iter().fold(0.0, |n, _| n + 1.0);
    let wide = (PANEL - 30.0) / f64::max(step, 1.0);
    let mut x = left + 4.0;
    for (bar, colour) in panel.bars.iter().zip(COLOURS.iter().cycle()) {
        draw_bar(text, *bar, colour, (x, base), (wide - 8.0, scale));
        x += wide;
    }
}

fn draw_bar(
    text: &mut String,
    bar: Option<Spread>,
    colour: &str,
    (x, base): (f64, f64),
    (wide, scale): (f64, f64),
) {
    let middle = x + wide / 2.0;
    let Some(bar) = bar else {
        put(
            text,
            &format!("<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">-</text>", base - 4.0),
        );
        return;
    };
    let top = |value: f64| base - value * scale;
    put(
        text,
        &format!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{wide:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            top(bar.median),
            bar.median * scale
        ),
    );
    put(
        text,
        &format!(
            "<line x1=\"{middle:.1}\" y1=\"{:.1}\" x2=\"{middle:.1}\" y2=\"{:.1}\" stroke=\"black\"/>",
            top(bar.min),
            top(bar.max)
        ),
    );
    put(
        text,
        &format!(
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            top(bar.max) - 4.0,
            short(bar.median)
        ),
    );
}

fn put(text: &mut String, element: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{element}");
}

/// A figure of at most five characters or so.
fn short(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.2}M", value / 1e6)
    } else if value >= 1e4 {
        format!("{:.0}k", value / 1e3)
    } else if value >= 100.0 || value.fract().abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// Text that XML takes for text; what it has no way to write (XML 1.0, section 2.2) is left out.
fn escaped(text: &str) -> String {
    let allowed = |c: &char| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let text: String = text.chars().filter(allowed).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod test {
    use proptest::prelude::{any, proptest};

    use super::{COLOURS, Panel, Spread, short, svg};

    /// Enough of XML for what is written here: every element is closed in order, and text has no bare signs.
    fn well_formed(text: &str) -> Result<usize, String> {
        let (mut open, mut elements) = (Vec::new(), 0);
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('<') {
            if before.contains('>') {
                return Err(format!("a bare > in {before:?}"));
            }
            for entity in before.split('&').skip(1) {
                let name = entity.split(';').next().unwrap_or_default();
                if !["amp", "lt", "gt", "quot"].contains(&name) {
                    return Err(format!("a bare & before {entity:?}"));
                }
            }
            let (tag, after) = after.split_once('>').ok_or("a tag without an end")?;
            if tag.matches('"').count() % 2 == 1 {
                return Err(format!("quotes of <{tag}>"));
            }
            let name = tag.trim_matches('/').split(' ').next().unwrap_or_default().to_owned();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => {
                    let opened = open.pop();
                    if opened.as_ref() != Some(&name) {
                        return Err(format!("</{name}> ends {opened:?}"));
                    }
                }
                (false, true) => elements += 1,
                (false, false) => {
                    elements += 1;
                    open.push(name);
                }
            }
            rest = after;
        }
        if open.is_empty() { Ok(elements) } else { Err(format!("{open:?} stay open")) }
    }

    fn panel(title: &str, medians: &[f64]) -> Panel {
        let bar = |&median: &f64| Some(Spread { min: median / 2.0, median, max: median * 2.0 });
        Panel { title: title.into(), unit: "pages".into(), bars: medians.iter().map(bar).collect() }
    }

    #[test]
    fn every_bar_is_drawn_with_its_colour_and_its_figure() {
        let columns = ["nothing".to_owned(), "plimsoll".to_owned()];
        let mut panels = vec![panel("swap in", &[12_345.0, 0.0])];
        panels.push(Panel { title: "x".into(), unit: "s".into(), bars: vec![None, None] });
        let text = svg("8 guests", &columns, &panels);
        assert!(well_formed(&text).is_ok_and(|n| n > 10), "{text}");
        assert!(text.contains(">12k<") && text.contains(">0<") && text.contains(">-<"), "{text}");
        assert_eq!(text.matches(COLOURS[0]).count(), 2, "in the legend and one bar");
    }

    #[test]
    fn figures_are_short() {
        let shown: Vec<_> = [0.0, 7.25, 31.0, 250.4, 12_345.0, 2_500_000.0].into_iter().map(short).collect();
        assert_eq!(shown, ["0", "7.2", "31", "250", "12k", "2.50M"]);
    }

    proptest! {
        #[test]
        fn no_words_and_no_figures_break_the_file(title in ".{0,20}", median in any::<u32>(), name in ".{0,8}") {
            let text = svg(&title, &[name], &[panel(&title, &[f64::from(median)])]);
            assert_eq!(well_formed(&text).map(|_| ()), Ok(()));
            assert!(!text.contains("NaN") && !text.contains("inf"));
        }
    }
}
