//! What can be undone, by this process or by a shell.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::marked::{self, RUN_VARIABLE};
use crate::paths;
use crate::wait::poll_until;

/// How long a control group may take to become empty after everything in it was killed.
const CGROUP_LIMIT: Duration = Duration::from_secs(10);

/// Something done to the host that must be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A process group was started; undone by SIGKILL to all of it.
    Group(Pid),
    /// Commands carry a mark; undone by SIGKILL to every process that has it.
    Marked(String),
    /// A directory was made; undone by removing it with what is in it.
    Dir(PathBuf),
    /// A control group was made; undone by killing what is in it and in groups below it, and removing them all, with
    /// their twins in the other hierarchy of a hybrid host, which only tell the pressure.
    Cgroup(PathBuf),
    /// A swap file is in use; undone by swapping everything in and removing it.
    Swap(PathBuf),
    /// A file of the kernel's was written; undone by writing what it held.
    Value {
        /// The file.
        path: PathBuf,
        /// What it held.
        was: String,
    },
}

impl Deed {
    /// Undoes it. Undoing what is undone already is no error.
    pub(super) fn undo(&self) -> io::Result<()> {
        match self {
            Self::Group(pid) => match kill_process_group(*pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Self::Marked(mark) => marked::kill_all(mark),
            Self::Dir(path) => unless_gone(std::fs::remove_dir_all(path)),
            Self::Cgroup(path) => {
                let twins = twin(path).map_or(Ok(()), |twin| remove_cgroups(&twin));
                remove_cgroups(path).and(twins)
            }
            Self::Swap(path) => swap_off(path),
            Self::Value { path, was } => std::fs::write(path, was),
        }
    }

    /// The same for a shell, on one line.
    pub(super) fn shell(&self) -> String {
        match self {
            Self::Group(pid) => format!("kill -KILL -- -{}", pid.as_raw_nonzero()),
            // -z: a line ends with NUL, as in an environment. Names of ours have no character that a pattern takes
            // for another.
            Self::Marked(mark) => format!(
                "for e in $(grep -lz '^{RUN_VARIABLE}={mark}\\(-\\|$\\)' /proc/[0-9]*/environ 2>/dev/null); do \
                 p=${{e#/proc/}}; kill -KILL ${{p%/environ}}; done"
            ),
            Self::Dir(path) => format!("rm -rf {}", quoted(path)),
            Self::Cgroup(path) => {
                let twins = twin(path).map_or(String::new(), |twin| quoted(&twin));
                // "find -depth" names the groups below before those above.
                format!(
                    "for i in 1 2 3 4 5 6 7 8 9 10; do for g in {0} {1}; do \
                     for d in $(find $g -depth -type d 2>/dev/null); do \
                     for p in $(cat $d/cgroup.procs); do kill -KILL $p; done; rmdir $d; done; done; \
                     [ -d {0} ] || break; sleep 0.2; done",
                    quoted(path),
                    twins
                )
            }
            Self::Swap(path) => format!("PATH=$PATH:/sbin:/usr/sbin; swapoff {0}; rm -f {0}", quoted(path)),
            Self::Value { path, was } => {
                format!("printf %s {} > {}", quoted(Path::new(was.trim_end())), quoted(path))
            }
        }
    }
}

/// A word that a POSIX shell takes literally. Line ends cannot occur in names of ours.
fn quoted(word: &Path) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', "'\\''").replace('\n', ""))
}

fn unless_gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The group of the same name under version 2, where version 1 has the memory controller (systemd's hybrid layout).
fn twin(path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix("/sys/fs/cgroup/memory").ok()?;
    Some(Path::new("/sys/fs/cgroup/unified").join(below))
}

/// Removes a group and those below it, the deepest first. One that is not there is removed.
fn remove_cgroups(path: &Path) -> io::Result<()> {
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroups(&entry.path())?;
    }
    remove_cgroup(path)
}

fn remove_cgroup(path: &Path) -> io::Result<()> {
    let look = || match std::fs::remove_dir(path) {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(())),
        // EBUSY: processes in it are still alive, or dead and not yet gone.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
            Err(format!("{} processes in it", kill_members(path)))
        }
        Err(error) => Ok(Err(error)),
    };
    poll_until(CGROUP_LIMIT, &format!("{} to be empty", path.display()), look).map_err(io::Error::other)?
}

/// Kills everything in a control group of ours; only processes we started can be in it.
fn kill_members(path: &Path) -> usize {
    let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let pids = members.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
    // One that is gone by now needs no killing.
    pids.filter(|pid| kill_process(*pid, Signal::KILL).is_ok()).count()
}

fn swap_off(path: &Path) -> io::Result<()> {
    // The kernel lists the file by its real path; ours goes up and down again from the manifest's folder.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let in_use = std::fs::read_to_string("/proc/swaps")?.lines().any(|line| {
        let name = line.split_ascii_whitespace().next().unwrap_or_default();
        Path::new(name) == real
    });
    if in_use {
        let program = paths::program("swapoff", "mount").map_err(io::Error::other)?;
        let output = Command::new(program).arg(path).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
    }
    unless_gone(std::fs::remove_file(path))
}

#[cfg(test)]
mod test {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::{Deed, quoted};
    use crate::guard::ShmDir;

    #[test]
    fn names_with_blanks_and_quotes_reach_the_shell_whole() {
        assert_eq!(quoted(Path::new("it's / here")), "'it'\\''s / here'");
        let dir = ShmDir::create("quo'te d").expect("a directory");
        let victim = dir.path().join("a 'b' c");
        std::fs::create_dir(&victim).expect("makes");
        let deed = Deed::Dir(victim.clone());
        assert!(Command::new("sh").args(["-c", &deed.shell()]).status().expect("runs").success());
        assert!(!victim.exists());
    }

    #[test]
    fn a_value_is_written_back_by_both() {
        let dir = ShmDir::create("value").expect("a directory");
        let path = dir.path().join("knob");
        let deed = Deed::Value { path: path.clone(), was: "Y\n".into() };
        std::fs::write(&path, "N\n").expect("writes");
        deed.undo().expect("undoes");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "Y\n");
        std::fs::write(&path, "N\n").expect("writes");
        assert!(Command::new("sh").args(["-c", &deed.shell()]).status().expect("runs").success());
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "Y");
    }

    #[test]
    fn undoing_twice_is_no_error() {
        let gone = PathBuf::from("/dev/shm/plimsoll-test-not-there");
        for deed in [Deed::Dir(gone.clone()), Deed::Swap(gone.clone()), Deed::Cgroup(gone)] {
            deed.undo().unwrap_or_else(|error| panic!("{deed:?}: {error}"));
        }
    }
}
