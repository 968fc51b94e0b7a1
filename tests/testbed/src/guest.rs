//! Real guests: starting them, talking to the workload in them, and what the host itself knows of them.

mod console;
mod log;
mod qemu;
mod ram;
mod uml;

pub use console::{Console, Pending, Reply};
pub use log::{Event, Line};
pub use qemu::{Accel, QEMU_PACKAGE, QemuBalloon, QemuSpec, probe_kvm};
pub use uml::{UmlSpec, VhostUserDevice};

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plimsoll_units::Bytes;
use rustix::process::{Pid, Signal};

use crate::BedError;
use crate::guard::{Process, ShmDir, TestCgroup};

/// A command for `program`, inside the group when there is one.
fn command_in(cgroup: Option<&TestCgroup>, program: &Path) -> Command {
    cgroup.map_or_else(|| Command::new(program), |cgroup| cgroup.command(program))
}

/// The memory the host has given to a guest that somebody else started: its QEMU's memfd, or, when `uml_tmpdir` is
/// given, the nameless file in that directory which is its User Mode Linux' memory. Counted by the host's file system.
///
/// # Errors
/// [`BedError::Io`] when the process is gone, [`BedError::Unsupported`] when it has no such file.
pub fn resident(pid: Pid, uml_tmpdir: Option<&Path>) -> Result<Bytes, BedError> {
    uml_tmpdir.map_or(ram::Ram::Memfd, |dir| ram::Ram::UnnamedIn(dir.to_owned())).resident(pid)
}

/// How much of a console is shown when a guest is gone.
const SHOWN_LINES: usize = 25;

/// A running guest. Dropped, it is killed and everything of it removed.
#[derive(Debug)]
pub struct Guest {
    name: String,
    // Before the directory: a guest is killed first, and its files removed then.
    process: Mutex<Process>,
    pid: Pid,
    console: Console,
    ram: ram::Ram,
    dir: ShmDir,
}

impl Guest {
    /// Starts the program with its console on a FIFO and a log file of `dir`.
    fn start(name: &str, mut command: Command, ram: ram::Ram, dir: ShmDir) -> Result<Self, BedError> {
        let (input, log) = (dir.path().join("console.in"), dir.path().join("console.log"));
        let console = Console::create(&input, &log)?;
        let open = |path: &Path, writing: bool| {
            File::options().read(!writing).append(writing).open(path).map_err(BedError::io("open", path))
        };
        // The console holds both ends of the FIFO open, hence this does not wait for a writer.
        command.stdin(Stdio::from(open(&input, false)?));
        command.stdout(Stdio::from(open(&log, true)?)).stderr(Stdio::from(open(&log, true)?));
        let process = Process::spawn(name, command)?;
        Ok(Self {
            name: name.to_owned(),
            pid: process.pid(),
            process: Mutex::new(process),
            console,
            ram,
            dir,
        })
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id of QEMU, or of UML's main process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its console, for what goes beyond [`Guest::send`].
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// A directory of its own, in memory, that goes when it goes.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where its machine protocol listens, when it is a QEMU.
    #[must_use]
    pub fn qmp_socket(&self) -> PathBuf {
        self.dir.path().join(qemu::QMP_SOCKET)
    }

    /// Waits until the workload has reported ready `boots` times since the start: once after the start, once more
    /// after each reboot.
    ///
    /// # Errors
    /// [`BedError::Wait`] when it takes longer than `limit`, [`BedError::Gone`] when the guest ends or panics.
    pub fn wait_boots(&self, boots: usize, limit: Duration) -> Result<(), BedError> {
        let during = format!("waiting for boot {boots}");
        self.or_gone(&during, self.console.wait_boots(boots, limit, &|| self.gone()))
    }

    /// Gives the workload a command and waits for its answer.
    ///
    /// # Errors
    /// [`BedError::Refused`] when the answer is an error, [`BedError::Wait`] when none comes within `limit`,
    /// [`BedError::Gone`] when the guest ends or panics.
    pub fn send(&self, command: &str, limit: Duration) -> Result<Reply, BedError> {
        self.wait(&self.begin(command)?, limit)
    }

    /// Gives the workload a command and does not wait. Others may be given meanwhile.
    ///
    /// # Errors
    /// [`BedError::Io`] when the console cannot be written.
    pub fn begin(&self, command: &str) -> Result<Pending, BedError> {
        self.console.begin(command)
    }

    /// Waits for the answer to a command.
    ///
    /// # Errors
    /// As [`Guest::send`].
    pub fn wait(&self, pending: &Pending, limit: Duration) -> Result<Reply, BedError> {
        let reply = self.console.wait(pending, limit, &|| self.gone());
        let reply = self.or_gone(&format!("it was asked `{}`", pending.command()), reply)?;
        if reply.is_ok() {
            return Ok(reply);
        }
        let (guest, command) = (self.name.clone(), pending.command().to_owned());
        Err(BedError::Refused { guest, command, answer: reply.text().to_owned() })
    }

    /// The memory the host has given to this guest: the blocks of the file that is its RAM, counted by the host's
    /// file system.
    ///
    /// # Errors
    /// [`BedError::Io`] when the guest is gone, [`BedError::Unsupported`] when its RAM is in no file.
    pub fn resident(&self) -> Result<Bytes, BedError> {
        self.ram.resident(self.pid)
    }

    /// How it ended, `None` while it runs.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.process().exited()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// [`BedError::Wait`] when it still runs after `limit`.
    pub fn wait_exit(&self, limit: Duration) -> Result<ExitStatus, BedError> {
        self.process().wait_exit(limit)
    }

    /// Sends its process a signal.
    ///
    /// # Errors
    /// [`BedError::Io`] when it is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), BedError> {
        self.process().signal(signal)
    }

    /// SIGKILL, helpers included.
    ///
    /// # Errors
    /// [`BedError::Wait`] when it does not die.
    pub fn kill(&self) -> Result<ExitStatus, BedError> {
        self.process().kill()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> Option<String> {
        self.exited().map(|status| status.to_string())
    }

    fn or_gone<T>(&self, during: &str, outcome: Result<T, console::Silence>) -> Result<T, BedError> {
        outcome.map_err(|silence| match silence {
            console::Silence::Late(error) => error.into(),
            console::Silence::Io(error) => error,
            console::Silence::Gone(how) => BedError::Gone {
                guest: self.name.clone(),
                during: during.to_owned(),
                how,
                console: self.console.tail(SHOWN_LINES),
            },
        })
    }
}
