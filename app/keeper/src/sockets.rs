//! The sockets in the VM's folder.

use std::fs::{DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

/// A listening socket at a path of its own, which is removed with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: OwnedFd,
    path: PathBuf,
}

impl Socket {
    /// Listens at DIR/NAME, for this user and root only. What a keeper before this one has left there is removed: the
    /// folder is locked, so it is gone.
    pub(crate) fn listen(folder: &Folder, name: &str) -> anyhow::Result<Self> {
        let path = folder.path.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::debug!(path = %path.display(), "removed a socket that nobody served"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen at {} (a path has at most 107 bytes)", path.display()))?;
        listener.set_nonblocking(true).with_context(|| format!("cannot set up {}", path.display()))?;
        Ok(Self { listener: listener.into(), path })
    }

    pub(crate) fn listener(&self) -> &OwnedFd {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a socket stays behind");
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
