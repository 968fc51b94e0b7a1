//! The run folder: who owns it, and what lies in it.
//!
//! * `lock`: held while the daemon lives; has its process number.
//! * `api.sock`: where it is spoken to, mode 0660, group `plimsoll` if there is one.
//! * `vms/`: one file for each VM, see [`crate::state`].

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use plimsoll_api::http::{RUN_DIR, SOCKET_NAME};
use rustix::{fs::Mode, process};

/// Members of this group may use the API.
const GROUP: &str = "plimsoll";

/// Why the run folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunDirError {
    /// No folder was named and none can be guessed.
    #[error("no run folder: XDG_RUNTIME_DIR is not set; name one with --run-dir")]
    Unknown,
    /// Another daemon has it.
    #[error("another plimsolld{} serves {}; stop it first, or give this one another --run-dir", pid_text(pid), dir.display())]
    Taken {
        /// The folder.
        dir: PathBuf,
        /// Its process, as it wrote it down.
        pid: String,
    },
    /// The kernel refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn pid_text(pid: &str) -> String {
    if pid.is_empty() { String::new() } else { format!(" (process {pid})") }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_owned();
    move |source| RunDirError::Io { what, path, source }
}

/// The run folder when none is named: `/run/plimsoll` for root, `$XDG_RUNTIME_DIR/plimsoll` for anybody else.
pub(crate) fn default_dir() -> Result<PathBuf, RunDirError> {
    if process::geteuid().is_root() {
        return Ok(RUN_DIR.into());
    }
    let own = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).ok_or(RunDirError::Unknown)?;
    Ok(PathBuf::from(own).join("plimsoll"))
}

/// The run folder while this daemon has it.
#[derive(Debug)]
pub(crate) struct RunDir {
    dir: PathBuf,
    /// Held by being open.
    _lock: File,
}

impl RunDir {
    /// Makes the folder if need be, and takes it.
    pub(crate) fn take(dir: &Path) -> Result<Self, RunDirError> {
        make_dir(dir, 0o755)?;
        make_dir(&dir.join("vms"), 0o700)?;
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only for the message; it may just be being written.
                let _ = Read::by_ref(&mut lock).take(20).read_to_string(&mut pid);
                return Err(RunDirError::Taken { dir: dir.to_owned(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        let noted = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        noted.map_err(failed("write", &path))?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Where the VMs are written down.
    pub(crate) fn vms(&self) -> PathBuf {
        self.dir.join("vms")
    }

    /// Listens on the API socket, in the place of one that a daemon left behind: the lock says that it is dead.
    pub(crate) fn listen(&self) -> Result<UnixListener, RunDirError> {
        let path = self.dir.join(SOCKET_NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace", &path)(error));
            }
            _ => {}
        }
        // Nobody may slip in between bind and chmod.
        let mask = process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&path);
        process::umask(mask);
        let listener = bound.map_err(failed("listen on", &path))?;
        match group_id(GROUP) {
            Some(gid) if process::geteuid().is_root() => {
                chown(&path, None, Some(gid)).map_err(failed("give to group plimsoll", &path))?;
            }
            Some(_) => {}
            None => tracing::info!(
                socket = %path.display(),
                "there is no group `{GROUP}`: only root and the daemon's own user may use the API"
            ),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).map_err(failed("open up", &path))?;
        listener.set_nonblocking(true).map_err(failed("listen on", &path))?;
        Ok(listener)
    }

    /// Takes the socket away.
    pub(crate) fn close(&self) {
        let path = self.dir.join(SOCKET_NAME);
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(%error, socket = %path.display(), "cannot remove the socket");
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), RunDirError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed("make the folder", path))
}

/// A group's number by /etc/group (group(5)); groups of other name services are not seen.
fn group_id(name: &str) -> Option<u32> {
    find_group(&fs::read_to_string("/etc/group").ok()?, name)
}

fn find_group(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a/b");
        let first = RunDir::take(&run).unwrap();
        let message = RunDir::take(&run).unwrap_err().to_string();
        assert!(message.contains(&format!("(process {})", std::process::id())), "{message}");
        drop(first);
        let again = RunDir::take(&run).unwrap();
        assert_eq!(fs::metadata(again.vms()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nobody_else_may_use_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::take(dir.path()).unwrap();
        drop(run.listen().unwrap());
        let _listener = run.listen().unwrap();
        let socket = dir.path().join(SOCKET_NAME);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        run.close();
        assert!(!socket.exists());
    }

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let text = "root:x:0:\nplimsoll-x:x:7:\nplimsoll:x:118:anna,otto\nbroken\n";
        assert_eq!(find_group(text, "plimsoll"), Some(118));
        assert_eq!(find_group(text, "broken"), None);
        assert_eq!(find_group(text, "otto"), None);
    }
}
