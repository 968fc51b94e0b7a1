//! The only place that prints.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Whether colours reach a person.
pub(crate) fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A line for the reader.
pub(crate) fn say(line: &str) {
    // Nobody reads on when this fails.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line that must not be missed.
pub(crate) fn error(line: &str) {
    let _ = writeln!(std::io::stderr(), "error: {line}");
}

/// Announces a step and measures it.
pub(crate) struct Step {
    begin: Instant,
}

impl Step {
    /// Begins a step.
    pub(crate) fn begin(what: &str) -> Self {
        say(&format!("==> {what}"));
        Self { begin: Instant::now() }
    }

    /// Ends it with its result.
    pub(crate) fn end(&self, result: &str) {
        say(&format!("    {result} ({})", seconds(self.begin.elapsed())));
    }

    /// Time since it began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

/// A duration as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
