//! Connecting to a socket whose listener may be anybody.

use std::{io, path::Path, time::Duration};

use tokio::{
    net::UnixStream,
    time::{Instant, timeout_at},
};

use super::PeerId;

/// How long connecting may take: nothing but a full backlog makes it wait at all.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// No socket, nobody listening, no permission.
    #[error("cannot connect: {0}")]
    Refused(io::Error),
    /// The listener's backlog stayed full.
    #[error("nobody let us in within {} ms", CONNECT_TIMEOUT.as_millis())]
    Timeout,
    /// The kernel does not say who listens.
    #[error("cannot tell who listens: {0}")]
    Nameless(io::Error),
    /// The listener belongs to somebody else; nothing was sent and nothing read.
    #[error("whoever listens is user {found}, the VM belongs to user {owner}")]
    NotOwner {
        /// Who listens.
        found: u32,
        /// Who should.
        owner: u32,
    },
}

/// Connects; hangs up without a byte sent or read unless `owner` listens there or is root.
pub(super) async fn connect(path: &Path, owner: u32) -> Result<(UnixStream, PeerId), ConnectError> {
    let until = Instant::now() + CONNECT_TIMEOUT;
    let stream = match timeout_at(until, UnixStream::connect(path)).await {
        Ok(connected) => connected.map_err(ConnectError::Refused)?,
        Err(_) => return Err(ConnectError::Timeout),
    };
    let cred = stream.peer_cred().map_err(ConnectError::Nameless)?;
    let pid = cred.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let peer = PeerId { uid: cred.uid(), pid };
    if owner != 0 && peer.uid != owner {
        return Err(ConnectError::NotOwner { found: peer.uid, owner });
    }
    Ok((stream, peer))
}
