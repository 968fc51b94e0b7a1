//! What can go wrong.

use std::{io, path::PathBuf, time::Duration};

/// Why pressure could not be read or waited for.
#[derive(Debug, thiserror::Error)]
pub enum PsiError {
    /// The kernel has no PSI, or not for this group.
    #[error(
        "no pressure information at {}: the kernel needs CONFIG_PSI, and psi=1 on its command line where that \
         is not the default", path.display()
    )]
    Absent {
        /// The file.
        path: PathBuf,
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
    #[error("{} holds `{seen}`, which is no pressure", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The beginning of what was read.
        seen: String,
    },
    /// A threshold that no kernel takes.
    #[error(
        "a trigger for {} ms of stall within {} ms cannot be: the window is 500 ms to 10 s, the stall more than \
         0 and at most the window", stall.as_millis(), window.as_millis()
    )]
    BadThreshold {
        /// The stall asked for.
        stall: Duration,
        /// The window asked for.
        window: Duration,
    },
    /// The kernel does not let this program have this trigger.
    #[error(
        "the kernel refuses `{text}` for {}: {source}; without CAP_SYS_RESOURCE the window must be a multiple of \
         2 s, and before Linux 6.5 no trigger is allowed at all", path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// What was written to it.
        text: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Waiting failed.
    #[error("cannot wait for pressure at {}: {source}", path.display())]
    Wait {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The group was removed: the trigger will never fire again.
    #[error("the group behind {} is gone", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
}
