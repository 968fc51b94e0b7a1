//! The sockets in the VM's folder, and those that come from elsewhere.

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::SocketType;

/// A listening socket at a path of its own, which is removed with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: OwnedFd,
    _place: Place,
}

impl Socket {
    /// Listens at DIR/NAME, for this user and root only.
    pub(crate) fn listen(folder: &Folder, name: &str) -> anyhow::Result<Self> {
        let place = Place::clear(folder, name)?;
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let path = place.path();
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot listen at {} (a path has at most 107 bytes)", path.display()))?;
        listener.set_nonblocking(true).with_context(|| format!("cannot set up {}", path.display()))?;
        Ok(Self { listener: listener.into(), _place: place })
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A path in the VM's folder, for a socket that is removed with it.
#[derive(Debug)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// DIR/NAME. What a keeper before this one has left there is removed: the folder is locked, so it is gone.
    pub(crate) fn clear(folder: &Folder, name: &str) -> anyhow::Result<Self> {
        let path = folder.path.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::debug!(path = %path.display(), "removed a socket that nobody served"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "a socket stays behind");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// The VM's folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, and locks it.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let lock = File::open(path).with_context(|| format!("cannot open the folder {}", path.display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(Errno::WOULDBLOCK) => {
                bail!(
                    "another keeper serves {}; stop it, or give this VM a folder of its own",
                    path.display()
                )
            }
            Err(errno) => Err(errno).with_context(|| format!("cannot lock the folder {}", path.display())),
        }
    }
}

/// Takes the agent's line from standard input.
pub(crate) fn agent_line() -> anyhow::Result<OwnedFd> {
    let line = standard_input()?;
    match rustix::net::sockopt::socket_type(&line) {
        Ok(SocketType::STREAM) => Ok(line),
        Ok(_) | Err(_) => {
            bail!("--agent-line: standard input is not a stream socket; `plimsoll run` makes one")
        }
    }
}

/// Takes over what this process was given as standard input.
pub(crate) fn standard_input() -> anyhow::Result<OwnedFd> {
    std::io::stdin().as_fd().try_clone_to_owned().context("cannot take standard input over")
}

/// The process that has connected, if it runs as root or as this process's user. Others are turned away, and told of in the log.
pub(crate) fn trusted_peer(socket: impl AsFd) -> Option<u32> {
    match plimsoll_shm::peer(socket) {
        Ok(peer) if peer.is_trusted_user() => Some(peer.pid),
        Ok(peer) => {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a stranger");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "refused a connection");
            None
        }
    }
}

/// A socket that becomes readable on SIGTERM and SIGINT.
pub(crate) fn signals() -> anyhow::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair().context("cannot make a socket pair")?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        let writer = writer.try_clone().context("cannot copy a socket")?;
        signal_hook::low_level::pipe::register(signal, writer)
            .with_context(|| format!("cannot listen to signal {signal}"))?;
    }
    Ok(reader)
}
