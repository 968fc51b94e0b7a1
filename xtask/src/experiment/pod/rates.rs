//! The pager's benchmark: run, and its line read.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::run;

/// What the benchmark calls itself.
const NAME: &str = "pager rates";

/// A ratio of two rates that were measured in the same round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ratio {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// What it printed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Rates {
    /// Whether the memory was on a file system that gives huge pages; else it was a memfd, as guests' memory is.
    pub(super) huge_pages: bool,
    /// A first touch of each page, served by the pager / by the kernel alone.
    pub(super) populate_vs_kernel: Ratio,
    /// The same / served page by page.
    pub(super) populate_vs_4k: Ratio,
    /// Looking for empty pages / reading the same.
    pub(super) scan_vs_read: Ratio,
    /// A whole sweep of empty memory / punching the same.
    pub(super) sweep_vs_punch: Ratio,
    /// All the rest, rates in MiB/s among it.
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

impl Rates {
    /// The four ratios, by their names.
    pub(super) fn ratios(&self) -> [(&'static str, Ratio); 4] {
        [
            ("populate_vs_kernel", self.populate_vs_kernel),
            ("populate_vs_4k", self.populate_vs_4k),
            ("scan_vs_read", self.scan_vs_read),
            ("sweep_vs_punch", self.sweep_vs_punch),
        ]
    }
}

/// Runs the benchmark, on memory with huge pages or as the machine gives it.
///
/// # Errors
/// When it fails, or prints something else.
pub(super) fn measure(huge: bool) -> Result<Rates> {
    let mut command = run::cargo();
    command.args(["bench", "--quiet", "--package", "plimsoll-pager", "--bench", "rates", "--"]);
    if huge {
        command.arg("--huge");
    }
    parse(&run::quiet(&mut command)?).with_context(|| format!("`{}`", run::shown(&command)))
}

/// The last line that is the benchmark's.
fn parse(printed: &str) -> Result<Rates> {
    let mut objects = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let Some(last) = objects.rfind(|object| object.get("name").is_some_and(|name| name == NAME)) else {
        bail!("it printed no line of {NAME}");
    };
    let rates: Rates = serde_json::from_value(last).context("its line is not understood")?;
    let is_rate = |value: f64| value.is_finite() && value > 0.0;
    for (name, ratio) in rates.ratios() {
        if ![ratio.least, ratio.median, ratio.most].into_iter().all(is_rate) {
            bail!("{name} is no ratio of rates: {ratio:?}");
        }
    }
    Ok(rates)
}

#[cfg(test)]
pub(super) mod test {
    use proptest::prelude::proptest;
    use serde_json::json;

    use super::{Rates, parse};

    fn line(sweep: f64) -> String {
        let ratio = |median: f64| json!({"median": median, "least": median / 2.0, "most": median * 2.0});
        json!({
            "name": "pager rates", "mib": 256, "huge_pages": false, "mib_per_s": {"kernel": ratio(900.0)},
            "populate_vs_kernel": ratio(1.6), "populate_vs_4k": ratio(38.0),
            "scan_vs_read": ratio(0.9), "sweep_vs_punch": ratio(sweep),
        })
        .to_string()
    }

    /// Rates that keep their limits, but for that of a sweep if that is too low.
    pub(in super::super) fn rates(sweep: f64) -> Rates {
        parse(&line(sweep)).expect("a line")
    }

    #[test]
    fn the_line_is_found_among_others_and_kept_whole() {
        let printed = format!("running\n{{\"name\":\"other\"}}\n{}\n{}\n\n", line(0.5), line(0.9));
        let rates = parse(&printed).expect("a line");
        assert!((rates.sweep_vs_punch.median - 0.9).abs() < 1e-9, "the last one counts");
        let kept = serde_json::to_value(&rates).expect("json");
        assert_eq!(kept["mib_per_s"]["kernel"]["median"], 900.0);
        assert_eq!(kept, serde_json::from_str::<serde_json::Value>(&line(0.9)).expect("json"));
    }

    #[test]
    fn what_is_no_result_is_told() {
        for (printed, word) in [
            ("", "no line"),
            ("{\"name\":\"pager rates\"}", "not understood"),
            (&line(0.0), "sweep_vs_punch is no ratio"),
            (&line(0.9).replace("0.45", "null"), "not understood"),
        ] {
            let error = format!("{:#}", parse(printed).expect_err("no result"));
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_words_panic(printed in ".{0,200}") {
            let _ = parse(&printed);
        }
    }
}
