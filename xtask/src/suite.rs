//! `cargo xtask test` and `cargo xtask ci`.

mod runner;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use plimsoll_testbed::{paths, skip};

use crate::out::{self, Step};
use crate::{layers, run, setup};
use runner::Runner;

/// Crates whose tests boot several guests each: run last, a few at a time.
const GUEST_CRATES: [&str; 2] = ["plimsoll-testbed", "plimsoll-e2e"];
/// How many of their tests run at once. Each may be two busy guests.
const GUEST_THREADS: usize = 2;

/// All steps of a run and how they went.
struct Suite {
    begin: Step,
    steps: Vec<Outcome>,
    not_run: Vec<String>,
    skip_log: PathBuf,
    require_guests: bool,
}

struct Outcome {
    name: &'static str,
    passed: bool,
    time: std::time::Duration,
    summary: String,
}

/// Runs every test.
pub(crate) fn test(fast: bool) -> Result<()> {
    let mut suite = Suite::new()?;
    suite.tests(fast)?;
    suite.finish()
}

/// Checks everything that can be checked without running, then runs every test.
pub(crate) fn ci() -> Result<()> {
    let mut suite = Suite::new()?;
    suite.check("format", run::cargo().args(["fmt", "--all", "--", "--check"]));
    let mut clippy = run::cargo();
    suite.check("lints", clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]));
    let mut doc = run::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings");
    suite.check("documentation", &mut doc);
    suite.layers();
    suite.tests(false)?;
    suite.finish()
}

impl Suite {
    fn new() -> Result<Self> {
        let dir = paths::work_dir();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let skip_log = dir.join(format!("not-run-{}.log", std::process::id()));
        let begin = Step::begin("tests of this repository");
        Ok(Self { begin, steps: Vec::new(), not_run: Vec::new(), skip_log, require_guests: false })
    }

    fn tests(&mut self, fast: bool) -> Result<()> {
        if fast {
            self.not_run.push("the tests on real guests: left out by --fast".into());
        } else {
            self.setup();
        }
        // Libraries too: one of them is preloaded into QEMU by the programs.
        if !self.check("build", run::cargo().args(["build", "--workspace"])) {
            bail!("it does not build");
        }
        let runner = Runner::find();
        let mut all = runner.command();
        all.arg("--workspace");
        for name in GUEST_CRATES {
            all.args(["--exclude", name]);
        }
        self.run_tests("tests", runner, all);
        let mut doc = Runner::doc_command();
        doc.arg("--workspace");
        self.run_tests("documentation tests", Runner::Cargo, doc);
        if !fast {
            let mut guests = runner.command();
            for name in GUEST_CRATES {
                guests.args(["--package", name]);
            }
            runner.limit(&mut guests, GUEST_THREADS);
            self.run_tests("real guests", runner, guests);
        }
        Ok(())
    }

    fn setup(&mut self) {
        let step = Step::begin("setup");
        let report = setup::run();
        self.require_guests = report.problems.is_empty();
        let summary = if self.require_guests { String::new() } else { "incomplete, see below".into() };
        self.not_run.extend(report.problems.iter().map(|problem| format!("setup of {problem}")));
        // That a machine lacks something is no failure of the tests; it is told of at the end.
        self.steps.push(Outcome { name: "setup", passed: true, time: step.elapsed(), summary });
    }

    /// A step that either succeeds or not.
    fn check(&mut self, name: &'static str, command: &mut Command) -> bool {
        let step = Step::begin(&format!("{name}: {}", run::shown(command)));
        let status = run::shown_output(command);
        let passed = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        let summary = status.map_or_else(|error| format!("{error:#}"), |_| String::new());
        step.end(if passed { "passed" } else { "FAILED" });
        self.steps.push(Outcome { name, passed, time: step.elapsed(), summary });
        passed
    }

    fn layers(&mut self) {
        let step = Step::begin("layers: who may use whom");
        let wrong = layers::check().err().map(|error| format!("{error:#}"));
        step.end(if wrong.is_none() { "passed" } else { "FAILED" });
        let (passed, summary) = (wrong.is_none(), wrong.unwrap_or_default());
        self.steps.push(Outcome { name: "layers", passed, time: step.elapsed(), summary });
    }

    /// A step that runs tests.
    fn run_tests(&mut self, name: &'static str, runner: Runner, mut command: Command) {
        let step = Step::begin(&format!("{name}: {}", run::shown(&command)));
        command.env(skip::SKIP_LOG, &self.skip_log);
        command.env(skip::REQUIRE_GUESTS, if self.require_guests { "1" } else { "0" });
        let (passed, summary) = match run::shown_and_kept(&mut command, runner.is_summary()) {
            Ok((status, lines)) => (status.success(), runner.summarize(&lines)),
            Err(error) => (false, format!("{error:#}")),
        };
        step.end(if passed { "passed" } else { "FAILED" });
        self.steps.push(Outcome { name, passed, time: step.elapsed(), summary });
    }

    /// The last words: every step, what did not run, and whether all is well.
    fn finish(mut self) -> Result<()> {
        self.not_run.extend(skipped(&self.skip_log));
        out::say("");
        for Outcome { name, passed, time, summary } in &self.steps {
            let word = if *passed { "passed" } else { "FAILED" };
            out::say(&format!("{word}  {name:<20} {:>8}  {summary}", out::seconds(*time)));
        }
        if self.not_run.is_empty() {
            out::say("Nothing was left out on this machine.");
        } else {
            out::say(&format!("NOT RUN on this machine ({}):", self.not_run.len()));
            for line in &self.not_run {
                out::say(&format!("  {line}"));
            }
        }
        let failed: Vec<_> = self.steps.iter().filter(|step| !step.passed).map(|step| step.name).collect();
        let time = out::seconds(self.begin.elapsed());
        if !failed.is_empty() {
            bail!("failed after {time}: {}", failed.join(", "));
        }
        out::say(&format!("All steps passed in {time}."));
        Ok(())
    }
}

/// What tests wrote into the log of skipped tests, each once.
fn skipped(log: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // Read; it is of no further use.
    let _ = std::fs::remove_file(log);
    let mut lines: Vec<_> =
        text.lines().map(|line| line.trim_start_matches("NOT RUN: ").to_owned()).collect();
    lines.sort();
    lines.dedup();
    lines
}

#[cfg(test)]
mod test {
    use plimsoll_testbed::guard::ShmDir;

    use super::skipped;

    #[test]
    fn skipped_tests_are_listed_once_and_the_log_goes() {
        let dir = ShmDir::create("suite").expect("a directory");
        let log = dir.path().join("log");
        std::fs::write(&log, "NOT RUN: b: needs root\nNOT RUN: a: no qemu\nNOT RUN: b: needs root\n")
            .expect("writes");
        assert_eq!(skipped(&log), ["a: no qemu", "b: needs root"]);
        assert!(!log.exists());
        assert!(skipped(&log).is_empty());
    }
}
