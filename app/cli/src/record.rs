//! The folder of a VM that `run` started, and what `run` wrote down there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use plimsoll_api::http::ProcessRef;
use plimsoll_model::VmName;
use rustix::fs::{CWD, Mode, OFlags, mknodat};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::process;
use crate::rundir::MAX_SOCKET_PATH;

/// The version of [`Record`].
const VERSION: u32 = 1;

/// The umid of a User Mode Linux guest: its mconsole socket is `uml/vm/mconsole`.
pub(crate) const UMID: &str = "vm";

/// Which VMM runs a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// QEMU.
    Qemu,
    /// User Mode Linux.
    Uml,
}

/// What is needed to stop a VM without the daemon: `vm.json` in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// [`VERSION`].
    v: u32,
    /// The VM.
    pub(crate) name: VmName,
    /// What runs it.
    pub(crate) kind: Kind,
    /// Its VMM.
    pub(crate) vmm: Option<ProcessRef>,
    /// Its keeper.
    pub(crate) keeper: Option<ProcessRef>,
    /// The VMM's program, links followed.
    pub(crate) program: PathBuf,
    /// The memory cgroup that was made for it.
    pub(crate) cgroup: Option<String>,
}

impl Record {
    /// A VM of which nothing runs yet.
    pub(crate) fn new(name: VmName, kind: Kind, program: PathBuf, cgroup: Option<String>) -> Self {
        Self { v: VERSION, name, kind, vmm: None, keeper: None, program, cgroup }
    }

    /// Its VMM, if that runs still.
    pub(crate) fn running(&self) -> Option<ProcessRef> {
        self.vmm.filter(|vmm| process::is_alive(*vmm))
    }
}

/// The folder of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmDir(PathBuf);

impl VmDir {
    /// Names the folder; makes nothing.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What the guest says.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// What is typed on the guest's console: a FIFO.
    pub(crate) fn console_in(&self) -> PathBuf {
        self.0.join("console.in")
    }

    /// What the keeper and its back end say.
    pub(crate) fn keeper_log(&self) -> PathBuf {
        self.0.join("keeper.log")
    }

    /// Where the front end connects to the keeper.
    pub(crate) fn balloon_socket(&self) -> PathBuf {
        self.0.join("balloon.sock")
    }

    /// Where the daemon connects to the back end.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// Where the library in QEMU hands its guest's memory over to the keeper.
    pub(crate) fn pod_socket(&self) -> PathBuf {
        self.0.join("pod.sock")
    }

    /// Where QEMU is spoken to.
    pub(crate) fn qmp_socket(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }

    /// Where the agent in a QEMU's guest is heard.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// User Mode Linux' own folder.
    pub(crate) fn uml_dir(&self) -> PathBuf {
        self.0.join("uml")
    }

    /// Where User Mode Linux is spoken to.
    pub(crate) fn mconsole(&self) -> PathBuf {
        self.uml_dir().join(UMID).join("mconsole")
    }

    /// Refuses a folder so deep that its sockets could not be named.
    pub(crate) fn check_length(&self) -> anyhow::Result<()> {
        let longest = [self.mconsole(), self.balloon_socket(), self.control_socket(), self.qmp_socket()];
        match longest.iter().find(|path| path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH) {
            None => Ok(()),
            Some(path) => bail!(
                "the path of the socket {} has {} bytes, a Unix socket's can have {MAX_SOCKET_PATH}; choose a shorter --run-dir or --name",
                path.display(),
                path.as_os_str().as_bytes().len()
            ),
        }
    }

    /// Makes the folder (mode 0700) with an empty console log and the console's FIFO, and writes `record`.
    pub(crate) fn create(&self, record: &Record) -> anyhow::Result<()> {
        let at = |what: &str| format!("cannot make {what} {}", self.0.display());
        if let Some(base) = self.0.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(base)
                .with_context(|| at("the folder above"))?;
        }
        DirBuilder::new().mode(0o700).create(&self.0).with_context(|| at("the VM's folder"))?;
        self.append(&self.console_log())?;
        mknodat(CWD, self.console_in(), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .with_context(|| at("the console's FIFO in"))?;
        self.write(record)
    }

    /// A log file, to be written at its end.
    pub(crate) fn append(&self, log: &Path) -> anyhow::Result<File> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))
    }

    /// The console's FIFO, open to read and write: so it never comes to an end, whoever writes to it.
    pub(crate) fn open_console_in(&self) -> anyhow::Result<File> {
        let path = self.console_in();
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }

    /// Writes `vm.json`, whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> anyhow::Result<()> {
        let (path, draft) = (self.0.join("vm.json"), self.0.join("vm.json.new"));
        let write = || -> anyhow::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            fs::rename(&draft, &path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads `vm.json`; `None` if there is none. One that belongs to somebody else is refused: what it says
    /// is acted on with the caller's rights.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Record>> {
        let path = self.0.join("vm.json");
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).context("no flags")?;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let read = || -> anyhow::Result<Record> {
            let owner = file.metadata()?.uid();
            if owner != geteuid().as_raw() {
                bail!("it belongs to user {owner}");
            }
            let mut text = Vec::new();
            file.take(64 * 1024).read_to_end(&mut text)?;
            let record: Record = serde_json::from_slice(&text)?;
            if record.v != VERSION {
                bail!("it has version {}, this program knows {VERSION}", record.v);
            }
            Ok(record)
        };
        read().map(Some).with_context(|| format!("cannot use {}", path.display()))
    }

    /// Removes the folder and everything in it; one that is gone already is no error.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot remove {}", self.0.display())),
        }
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_removed() {
        let base = tempfile::tempdir().unwrap();
        let dir = VmDir::new(base.path().join("run").join("web"));
        assert_eq!(dir.read().unwrap(), None);
        let mut record = Record::new("web".parse().unwrap(), Kind::Uml, "/usr/bin/linux.uml".into(), None);
        dir.create(&record).unwrap();
        assert!(dir.create(&record).is_err(), "a second one must not take it over");
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        assert!(fs::metadata(dir.console_in()).unwrap().file_type().is_fifo());
        record.vmm = process::reference(std::process::id());
        dir.write(&record).unwrap();
        assert_eq!(dir.read().unwrap(), Some(record.clone()));
        assert_eq!(record.running(), record.vmm);
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn garbage_is_refused_by_name() {
        let base = tempfile::tempdir().unwrap();
        let dir = VmDir::new(base.path().to_path_buf());
        for garbage in ["", "[]", r#"{"v":2,"name":"web","kind":"uml"}"#] {
            fs::write(base.path().join("vm.json"), garbage).unwrap();
            assert!(format!("{:#}", dir.read().unwrap_err()).contains("vm.json"));
        }
    }

    #[test]
    fn sockets_too_deep_are_refused() {
        VmDir::new(PathBuf::from("/run/plimsoll/run/web")).check_length().unwrap();
        let deep = VmDir::new(PathBuf::from("/run").join("x".repeat(90)));
        assert!(deep.check_length().unwrap_err().to_string().contains("shorter"));
    }
}
