//! What can go wrong.

use std::{io, path::PathBuf};

/// Why `/proc` did not tell.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// The process does not exist, or not any more, or its number belongs to another by now.
    #[error("process {pid} is gone")]
    NoProcess {
        /// Its number.
        pid: u32,
    },
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{} has no {wanted}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A call on a process failed.
    #[error("cannot {what} process {pid}: {source}")]
    Pidfd {
        /// What was attempted.
        what: &'static str,
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
}
