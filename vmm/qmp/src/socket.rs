//! A connection on which nothing was said yet.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixStream, time::timeout};

use crate::{QmpClient, QmpError};

/// Who listens at the other end, by SO_PEERCRED (unix(7)): the process that called `listen`, at that moment.
/// The process may have gone, or have handed the socket to another, since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process; `None` when it lives in a pid namespace that is not ours to see.
    pub pid: Option<u32>,
}

/// A connected socket on which nothing was sent and nothing read, so that the caller may look at the peer and
/// hang up.
#[derive(Debug)]
pub struct QmpSocket {
    stream: UnixStream,
    path: PathBuf,
}

impl QmpSocket {
    /// Connects to the socket at `path`, without a word, within `within`.
    pub async fn connect(path: &Path, within: Duration) -> Result<Self, QmpError> {
        let path = path.to_path_buf();
        match timeout(within, UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => Ok(Self { stream, path }),
            Ok(Err(source)) => Err(cannot_connect(path, source)),
            Err(_elapsed) => Err(QmpError::NobodyAccepts { path }),
        }
    }

    /// Takes a connection made elsewhere; `path` is what errors shall call it.
    #[must_use]
    pub fn from_stream(stream: UnixStream, path: impl Into<PathBuf>) -> Self {
        Self { stream, path: path.into() }
    }

    /// Who listens.
    pub fn peer(&self) -> Result<Peer, QmpError> {
        let failed = |source| QmpError::Io { path: self.path.clone(), during: "asking who listens", source };
        let cred = self.stream.peer_cred().map_err(failed)?;
        let pid = cred.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
        Ok(Peer { uid: cred.uid(), gid: cred.gid(), pid })
    }

    /// Waits for the greeting and enters command mode, both within `within`. Commands then have
    /// [`crate::DEFAULT_TIMEOUT`] each, see [`QmpClient::set_timeout`].
    pub async fn handshake(self, within: Duration) -> Result<QmpClient, QmpError> {
        QmpClient::greet(self.stream, self.path, within).await
    }
}

fn cannot_connect(path: PathBuf, source: io::Error) -> QmpError {
    let is = |kind| source.kind() == kind;
    if is(io::ErrorKind::NotFound) {
        QmpError::NoSocket { path }
    } else if is(io::ErrorKind::ConnectionRefused) {
        QmpError::NobodyListens { path }
    } else if is(io::ErrorKind::WouldBlock) {
        // unix(7): EAGAIN when the listener's queue is full.
        QmpError::NobodyAccepts { path }
    } else {
        QmpError::Connect { path, source }
    }
}
