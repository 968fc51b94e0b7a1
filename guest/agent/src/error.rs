//! Why the agent gives up.

use std::io;
use std::path::{Path, PathBuf};

use plimsoll_agent_proto::PORT_NAME;

/// What ends the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// A file without which there is nothing to tell.
    #[error("cannot {what} {}: {source}; is /proc mounted?", path.display())]
    Proc {
        /// `open` or `read`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's file has not what every kernel since 3.14 has.
    #[error("{} has no MemTotal; is this Linux?", path.display())]
    NoTotal {
        /// The file.
        path: PathBuf,
    },
    /// The port cannot be used.
    #[error("cannot use the port {}: {source}; another can be named with --port", path.display())]
    Port {
        /// The port.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no port of ours, and none was named.
    #[error(
        "there is no virtio-serial port named {PORT_NAME}; give the VM one (and load virtio_console), or name a \
         serial line, as in --port /dev/ttyS0"
    )]
    NoPort,
    /// The host did not take a report that was asked for once.
    #[error("the host did not take the report from {}; does it read there?", path.display())]
    NotTaken {
        /// The port.
        path: PathBuf,
    },
    /// Standard output is gone.
    #[error("cannot print the report: {0}")]
    Print(io::Error),
}

impl AgentError {
    pub(crate) fn proc(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Proc { what, path, source }
    }
}
