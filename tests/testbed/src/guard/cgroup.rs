//! A memory control group for the time of a test, of either version.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use plimsoll_units::Bytes;
use rustix::process::Pid;

use super::{Deed, Undo, unique_name};
use crate::BedError;
use crate::host::Numbers;

/// Where version 1's memory controller is mounted.
const V1: &str = "/sys/fs/cgroup/memory";
/// Where version 2 is mounted.
const V2: &str = "/sys/fs/cgroup";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A control group; dropped, everything in it is killed and it is removed.
#[derive(Debug)]
pub struct TestCgroup {
    version: Version,
    path: PathBuf,
    /// A group below another goes with it.
    _undo: Option<Undo>,
}

impl TestCgroup {
    /// Makes one whose processes and children together may use `limit` of memory. Swap is not limited.
    ///
    /// # Errors
    /// [`BedError::Unsupported`] without a memory controller at the usual places, [`BedError::Io`] without the
    /// right to make groups.
    pub fn create(what: &str, limit: Bytes) -> Result<Self, BedError> {
        let (version, parent) = hierarchy()?;
        let path = parent.join(unique_name(what));
        let undo = Undo::register(Deed::Cgroup(path.clone()))?;
        std::fs::create_dir(&path).map_err(BedError::io("make control group", &path))?;
        let cgroup = Self { version, path, _undo: Some(undo) };
        cgroup.write(cgroup.pick("memory.limit_in_bytes", "memory.max"), &limit.0.to_string())?;
        Ok(cgroup)
    }

    /// Limits the swap of all processes in it and below it together.
    ///
    /// # Errors
    /// [`BedError::Io`] where the kernel does not account swap (version 1 booted with `swapaccount=0`).
    pub fn limit_swap(&self, swap: Bytes) -> Result<(), BedError> {
        match self.version {
            // Version 1 limits memory and swap together.
            Version::One => {
                let memory = Bytes(self.number("memory.limit_in_bytes")?);
                self.write("memory.memsw.limit_in_bytes", &memory.plus(swap).0.to_string())
            }
            Version::Two => self.write("memory.swap.max", &swap.0.to_string()),
        }
    }

    /// Changes the limit of memory; on version 1 it must stay below that of memory and swap together.
    ///
    /// # Errors
    /// [`BedError::Io`] when the kernel cannot reclaim as much as a lower limit wants.
    pub fn set_limit(&self, limit: Bytes) -> Result<(), BedError> {
        self.write(self.pick("memory.limit_in_bytes", "memory.max"), &limit.0.to_string())
    }

    /// Makes a group below it, without limits of its own. It goes when this one goes.
    ///
    /// # Errors
    /// [`BedError::Io`] when there is one of that name.
    pub fn child(&self, name: &str) -> Result<Self, BedError> {
        if self.version == Version::Two {
            self.write("cgroup.subtree_control", "+memory")?;
        }
        let path = self.path.join(name);
        std::fs::create_dir(&path).map_err(BedError::io("make control group", &path))?;
        Ok(Self { version: self.version, path, _undo: None })
    }

    /// The same group for another thread, without a say in when it goes.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { version: self.version, path: self.path.clone(), _undo: None }
    }

    /// Whether compressed swap (zswap) is charged to the group. Version 1 does not do that
    /// (`obj_cgroup_charge_zswap` of Linux's mm/memcontrol.c).
    #[must_use]
    pub fn charges_zswap(&self) -> bool {
        self.version == Version::Two
    }

    /// Whether this host can be asked to reclaim from a group (`memory.reclaim`, version 2 since Linux 5.19).
    #[must_use]
    pub fn can_reclaim(&self) -> bool {
        self.path.join("memory.reclaim").exists()
    }

    /// Asks the kernel to take back so much of the group's memory.
    ///
    /// # Errors
    /// [`BedError::Io`] when it found less, or there is no `memory.reclaim`.
    pub fn reclaim(&self, size: Bytes) -> Result<(), BedError> {
        self.write("memory.reclaim", &size.0.to_string())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it. Memory it has already stays counted where it was.
    ///
    /// # Errors
    /// [`BedError::Io`] when the process is gone.
    pub fn add(&self, pid: Pid) -> Result<(), BedError> {
        self.write("cgroup.procs", &pid.as_raw_nonzero().to_string())
    }

    /// Memory in use.
    ///
    /// # Errors
    /// [`BedError`] when the file is not as it should be.
    pub fn usage(&self) -> Result<Bytes, BedError> {
        self.number(self.pick("memory.usage_in_bytes", "memory.current")).map(Bytes)
    }

    /// The most that ever was in use.
    ///
    /// # Errors
    /// [`BedError::Io`] on version 2 before Linux 5.19, which does not keep it.
    pub fn peak(&self) -> Result<Bytes, BedError> {
        self.number(self.pick("memory.max_usage_in_bytes", "memory.peak")).map(Bytes)
    }

    /// memory.stat, in the kernel's words and units (bytes and events). What is below it is in the numbers `total_`
    /// on version 1, and in all of them on version 2.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be read.
    pub fn stat(&self) -> Result<Numbers, BedError> {
        Numbers::read(self.path.join("memory.stat"))
    }

    /// Processes in it and below it that were killed because a limit was met.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be read.
    pub fn oom_kills(&self) -> Result<u64, BedError> {
        let file = self.pick("memory.oom_control", "memory.events");
        let own = Numbers::read(self.path.join(file))?.get("oom_kill");
        // Version 2 counts what happened below; version 1 counts for the dead one's own group only.
        let below = if self.version == Version::One { self.groups_below() } else { Vec::new() };
        let kills =
            |dir: &PathBuf| Numbers::read(dir.join(file)).map_or(0, |numbers| numbers.get("oom_kill"));
        Ok(below.iter().map(kills).fold(own, u64::saturating_add))
    }

    /// The groups directly below; Plimsoll makes one for each VM and none below those.
    fn groups_below(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.map(|entry| entry.path()).collect()
    }

    /// A command for `program` that begins inside the group: a shell puts itself there and becomes the program.
    /// Arguments, environment and files are added to it as to any other command.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.path.join("cgroup.procs"))
            .arg(program);
        command
    }

    fn pick(&self, one: &'static str, two: &'static str) -> &'static str {
        match self.version {
            Version::One => one,
            Version::Two => two,
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<(), BedError> {
        let path = self.path.join(file);
        std::fs::write(&path, value).map_err(BedError::io("write", &path))
    }

    fn number(&self, file: &str) -> Result<u64, BedError> {
        let path = self.path.join(file);
        let text = std::fs::read_to_string(&path).map_err(BedError::io("read", &path))?;
        let malformed = |error: std::num::ParseIntError| BedError::Malformed {
            what: "a number",
            path: path.clone(),
            why: error.to_string(),
        };
        text.trim().parse().map_err(malformed)
    }
}

/// Where memory is controlled here, and groups of ours are made.
fn hierarchy() -> Result<(Version, PathBuf), BedError> {
    if Path::new(V1).join("memory.limit_in_bytes").exists() {
        return Ok((Version::One, V1.into()));
    }
    let controllers = std::fs::read_to_string(Path::new(V2).join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_ascii_whitespace().any(|name| name == "memory") {
        return Err(BedError::Unsupported(format!("no memory controller at {V1} or {V2}")));
    }
    let control = Path::new(V2).join("cgroup.subtree_control");
    std::fs::write(&control, "+memory").map_err(BedError::io("write", &control))?;
    Ok((Version::Two, V2.into()))
}

/// The places where groups of ours can be.
pub(super) fn parents() -> [PathBuf; 2] {
    [V1.into(), V2.into()]
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use plimsoll_units::Bytes;

    use super::TestCgroup;
    use crate::guard::Process;
    use crate::skip;
    use crate::wait::poll_until;

    #[test]
    fn a_process_starts_inside_and_goes_with_the_group() {
        let Some(()) = skip::unless_root("guard::cgroup") else { return };
        let cgroup = TestCgroup::create("unit", Bytes::mib(64)).expect("makes");
        let mut command = cgroup.command("sleep");
        command.arg("600");
        let mut process = Process::spawn("sleeper", command).expect("starts");
        let pid = process.pid().as_raw_nonzero().to_string();
        let inside = || {
            let members = std::fs::read_to_string(cgroup.path().join("cgroup.procs")).expect("reads");
            if members.lines().any(|line| line == pid) { Ok(()) } else { Err(members) }
        };
        poll_until(Duration::from_secs(10), "the process in its group", inside).expect("in time");
        assert!(cgroup.usage().expect("reads") < Bytes::mib(64));
        assert_eq!(cgroup.oom_kills().expect("reads"), 0);
        assert!(cgroup.stat().expect("reads") != crate::host::Numbers::default());
        let child = cgroup.child("below").expect("makes");
        assert!(child.usage().is_ok_and(|usage| usage == Bytes::ZERO));
        cgroup.limit_swap(Bytes::mib(32)).expect("swap is accounted");
        cgroup.set_limit(Bytes::mib(48)).expect("changes");
        let path = cgroup.path().to_owned();
        drop(cgroup);
        assert!(!path.exists());
        assert!(!child.path().exists());
        assert!(process.wait_exit(Duration::from_secs(10)).is_ok_and(|status| !status.success()));
    }
}
