//! cargo-nextest where it is installed, else cargo test.

use std::process::{Command, Stdio};

use crate::{out, run};

/// What runs tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runner {
    /// `cargo nextest run`.
    Nextest,
    /// `cargo test`.
    Cargo,
}

impl Runner {
    /// The better one of those that are here.
    pub(crate) fn find() -> Self {
        let mut probe = run::cargo();
        probe.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        if probe.status().is_ok_and(|status| status.success()) { Self::Nextest } else { Self::Cargo }
    }

    /// The command that runs tests; one that fails does not keep others from running.
    pub(crate) fn command(self) -> Command {
        match self {
            Self::Nextest => coloured(&["nextest", "run", "--no-fail-fast", "--no-tests=pass"]),
            // All but the documentation's, which have a step of their own.
            Self::Cargo => coloured(&["test", "--no-fail-fast", "--lib", "--bins", "--tests"]),
        }
    }

    /// The command that runs documentation tests, which cargo alone can.
    pub(crate) fn doc_command() -> Command {
        coloured(&["test", "--no-fail-fast", "--doc"])
    }

    /// Runs at most so many at once. To be called after all other arguments.
    pub(crate) fn limit(self, command: &mut Command, threads: usize) {
        match self {
            Self::Nextest => command.arg("--test-threads").arg(threads.to_string()),
            Self::Cargo => command.arg("--").arg(format!("--test-threads={threads}")),
        };
    }

    /// Which lines are the runner's own summary.
    pub(crate) fn is_summary(self) -> fn(&str) -> bool {
        match self {
            Self::Nextest => |line| line.trim_start().starts_with("Summary ["),
            Self::Cargo => |line| line.starts_with("test result: "),
        }
    }

    /// The summary in one line. cargo test has one for each program: they are added up.
    pub(crate) fn summarize(self, lines: &[String]) -> String {
        match self {
            Self::Nextest => lines.last().cloned().unwrap_or_else(|| "no summary".into()),
            Self::Cargo => {
                let sum = |word| lines.iter().filter_map(|line| count(line, word)).sum::<u64>();
                let [passed, failed, ignored] = ["passed", "failed", "ignored"].map(sum);
                let result = if failed == 0 { "ok" } else { "FAILED" };
                format!("test result: {result}. {passed} passed; {failed} failed; {ignored} ignored")
            }
        }
    }
}

fn coloured(arguments: &[&str]) -> Command {
    let mut command = run::cargo();
    command.args(arguments);
    if out::is_terminal() {
        command.args(["--color", "always"]);
    }
    command
}

/// The number before a word, in `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn count(line: &str, word: &str) -> Option<u64> {
    let part = line.split([';', '.']).find(|part| part.trim_end().ends_with(word))?;
    part.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod test {
    use super::Runner;

    #[test]
    fn results_of_several_programs_are_added_up() {
        let lines = [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ]
        .map(str::to_owned);
        assert!(lines.iter().all(|line| Runner::Cargo.is_summary()(line)));
        assert_eq!(Runner::Cargo.summarize(&lines), "test result: FAILED. 7 passed; 2 failed; 1 ignored");
        assert_eq!(Runner::Cargo.summarize(&[]), "test result: ok. 0 passed; 0 failed; 0 ignored");
    }

    #[test]
    fn nextests_own_summary_is_taken() {
        let line = "     Summary [   0.005s] 3 tests run: 3 passed, 0 skipped".to_owned();
        assert!(Runner::Nextest.is_summary()(&line));
        assert_eq!(Runner::Nextest.summarize(std::slice::from_ref(&line)), line);
    }
}
