//! What can go wrong on the testbed.

use std::io;
use std::path::{Path, PathBuf};

use crate::wait::WaitError;

/// Why something on the testbed did not work.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// Something that `cargo xtask setup` provides is not there.
    #[error("{what} is missing: run `cargo xtask setup`{}", hint(.package))]
    Missing {
        /// What was looked for.
        what: String,
        /// The Debian package that has it, empty when none has.
        package: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A state did not come in time.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// A program that was run to its end failed.
    #[error("`{program}` failed: {said}")]
    Program {
        /// What was run.
        program: String,
        /// What it wrote to standard error.
        said: String,
    },
    /// The workload in a guest answered with an error.
    #[error("guest {guest} was told `{command}` and answered: {answer}")]
    Refused {
        /// The guest's name.
        guest: String,
        /// What it was told.
        command: String,
        /// What it said.
        answer: String,
    },
    /// A guest ended or its kernel gave up while something was expected of it.
    #[error("guest {guest} is gone while {during}: {how}; the end of its console:\n{console}")]
    Gone {
        /// The guest's name.
        guest: String,
        /// What was expected of it.
        during: String,
        /// How it ended.
        how: String,
        /// The last lines of its console.
        console: String,
    },
    /// Something was not of the form it must have.
    #[error("{what} {} is not understood: {why}", path.display())]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// This machine cannot do what was asked.
    #[error("{0}")]
    Unsupported(String),
}

fn hint(package: &str) -> String {
    if package.is_empty() { String::new() } else { format!(" (Debian package {package})") }
}

impl BedError {
    /// Wraps an error of the operating system; for `map_err`.
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { what, path, source }
    }
}
