//! Where things lie: the daemon's run folder, and the folder of each VM that `run` started.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use plimsoll_api::http::{RUN_DIR, SOCKET_NAME};
use plimsoll_model::VmName;
use rustix::process::geteuid;

/// The longest path a Unix socket can have, in bytes: `sun_path` of `struct sockaddr_un` (unix(7)) less its
/// closing 0.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// The daemon's run folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunDir {
    dir: PathBuf,
    /// Whether it was named, as opposed to found by default.
    named: bool,
}

impl RunDir {
    /// The folder that was named, or the default: `/run/plimsoll` for root; for others
    /// `$XDG_RUNTIME_DIR/plimsoll`, or `/run/plimsoll` where only that one has a daemon.
    pub(crate) fn find(named: Option<PathBuf>) -> anyhow::Result<Self> {
        let xdg = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let found = choose(named, geteuid().is_root(), xdg, |socket| socket.exists())?;
        if found.dir.as_os_str().is_empty() {
            bail!("the run folder's name is empty; give --run-dir DIR, or unset PLIMSOLL_RUN_DIR");
        }
        let dir = std::path::absolute(&found.dir)
            .with_context(|| format!("cannot make {} an absolute path", found.dir.display()))?;
        Ok(Self { dir, ..found })
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the folder was named on the command line or in the environment.
    pub(crate) fn is_named(&self) -> bool {
        self.named
    }

    /// The API socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET_NAME)
    }

    /// What to type to start the daemon that would listen here.
    pub(crate) fn daemon_command(&self) -> String {
        if self.named {
            format!("plimsoll --run-dir {} daemon", self.dir.display())
        } else {
            "plimsoll daemon".to_string()
        }
    }

    /// The folder in which this user's VMs have theirs: below the run folder if that is the caller's own (or
    /// the caller is root), else below the caller's `$XDG_RUNTIME_DIR`.
    pub(crate) fn vm_base(&self) -> anyhow::Result<PathBuf> {
        let own = geteuid().is_root()
            || fs::metadata(&self.dir).is_ok_and(|found| found.uid() == geteuid().as_raw());
        if own {
            return Ok(self.dir.join("run"));
        }
        let xdg = std::env::var_os("XDG_RUNTIME_DIR").context(
            "there is no folder for your VMs: XDG_RUNTIME_DIR is not set; log in through a session, or set it to a folder of yours (mode 0700)",
        )?;
        Ok(PathBuf::from(xdg).join("plimsoll").join("run"))
    }

    /// The folder of one VM.
    pub(crate) fn vm_dir(&self, name: &VmName) -> anyhow::Result<PathBuf> {
        Ok(self.vm_base()?.join(name.as_str()))
    }
}

/// [`RunDir::find`] without looking at the world.
fn choose(
    named: Option<PathBuf>,
    root: bool,
    xdg: Option<PathBuf>,
    exists: impl Fn(&Path) -> bool,
) -> anyhow::Result<RunDir> {
    if let Some(dir) = named {
        return Ok(RunDir { dir, named: true });
    }
    let system = RunDir { dir: PathBuf::from(RUN_DIR), named: false };
    if root {
        return Ok(system);
    }
    let own = xdg.map(|xdg| RunDir { dir: xdg.join("plimsoll"), named: false });
    match own {
        Some(own) if exists(&own.socket()) || !exists(&system.socket()) => Ok(own),
        Some(_) => Ok(system),
        None if exists(&system.socket()) => Ok(system),
        None => {
            bail!("no run folder: XDG_RUNTIME_DIR is not set and {RUN_DIR} has no daemon; give --run-dir DIR")
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn dir(named: Option<&str>, root: bool, xdg: Option<&str>, sockets: &[&str]) -> anyhow::Result<PathBuf> {
        let exists = |p: &Path| sockets.iter().any(|s| Path::new(s) == p);
        choose(named.map(PathBuf::from), root, xdg.map(PathBuf::from), exists).map(|found| found.dir)
    }

    #[test]
    fn the_named_folder_wins_then_the_users_own_then_the_systems() {
        let own = Some("/run/user/7");
        assert_eq!(dir(Some("/x"), true, own, &[]).unwrap(), Path::new("/x"));
        assert_eq!(dir(None, true, own, &[]).unwrap(), Path::new("/run/plimsoll"));
        assert_eq!(dir(None, false, own, &[]).unwrap(), Path::new("/run/user/7/plimsoll"));
        let system = "/run/plimsoll/api.sock";
        assert_eq!(dir(None, false, own, &[system]).unwrap(), Path::new("/run/plimsoll"));
        let both = [system, "/run/user/7/plimsoll/api.sock"];
        assert_eq!(dir(None, false, own, &both).unwrap(), Path::new("/run/user/7/plimsoll"));
        assert_eq!(dir(None, false, None, &[system]).unwrap(), Path::new("/run/plimsoll"));
        assert!(dir(None, false, None, &[]).unwrap_err().to_string().contains("--run-dir"));
    }
}
