//! Tests that cannot run on this machine say so, loudly, and are counted.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use crate::BedError;

/// Names a file to which each skipped test adds a line. `cargo xtask test` sets it and prints the file at its end.
pub const SKIP_LOG: &str = "PLIMSOLL_SKIP_LOG";
/// When set to `1`, a test that would be skipped fails instead. `cargo xtask test` sets it where setup succeeded.
pub const REQUIRE_GUESTS: &str = "PLIMSOLL_REQUIRE_GUESTS";

/// Says on standard error, and in the file [`SKIP_LOG`] names, that `test` did not run and why.
pub fn skip(test: &str, reason: &str) {
    let line = format!("NOT RUN: {test}: {}\n", reason.replace('\n', " "));
    // A skip that cannot be told of must not pass for a success.
    std::io::stderr().write_all(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
    if let Some(log) = std::env::var_os(SKIP_LOG) {
        append(Path::new(&log), &line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

/// One write of a short line to a file opened for appending: tests that run at the same time do not mix.
fn append(log: &Path, line: &str) -> std::io::Result<()> {
    OpenOptions::new().append(true).create(true).open(log)?.write_all(line.as_bytes())
}

/// What `test` needs, or `None` after a loud [`skip`].
///
/// # Panics
/// When [`REQUIRE_GUESTS`] is set: then what is missing is a failure.
pub fn unless_available<T>(test: &str, needed: Result<T, BedError>) -> Option<T> {
    match needed {
        Ok(needed) => Some(needed),
        Err(error) if std::env::var_os(REQUIRE_GUESTS).is_some_and(|value| value == "1") => {
            panic!("{test} cannot run, and {REQUIRE_GUESTS}=1 says that it must: {error}")
        }
        Err(error) => {
            skip(test, &error.to_string());
            None
        }
    }
}

/// `Some` when running as root, else `None` after a loud [`skip`].
pub fn unless_root(test: &str) -> Option<()> {
    if rustix::process::geteuid().is_root() {
        return Some(());
    }
    skip(test, "it needs root");
    None
}

#[cfg(test)]
mod test {
    use super::append;

    #[test]
    fn skips_add_up_in_the_log() {
        let dir = crate::guard::ShmDir::create("skip").expect("a directory");
        let log = dir.path().join("log");
        append(&log, "NOT RUN: a: b\n").expect("writes");
        append(&log, "NOT RUN: c: d\n").expect("writes");
        assert_eq!(std::fs::read_to_string(&log).expect("reads"), "NOT RUN: a: b\nNOT RUN: c: d\n");
    }
}
