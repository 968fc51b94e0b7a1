//! A keeper of the test's own, and a way to its back end.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use plimsoll_api::control::{Op, Outcome, Reply, Request, Status, VERSION};
use plimsoll_testbed::guard::{Process, ShmDir};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::{BalloonSize, Bytes, PageCount};

/// Longer than anything takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// The back end beside the keeper under test, built if the runner has not.
pub(crate) fn backend() -> &'static Path {
    static BACKEND: OnceLock<PathBuf> = OnceLock::new();
    BACKEND.get_or_init(|| {
        let keeper = Path::new(env!("CARGO_BIN_EXE_plimsoll-keeper"));
        let profile = keeper.parent().unwrap();
        if std::env::var_os("PLIMSOLL_BIN_DIR").is_none() {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--quiet", "--package", "plimsoll-backend", "--target-dir"]);
            cargo.arg(profile.parent().unwrap());
            if profile.ends_with("release") {
                cargo.arg("--release");
            }
            assert!(cargo.status().unwrap().success(), "the back end does not build");
        }
        profile.join("plimsoll-backend")
    })
}

/// A keeper in a folder of its own.
pub(crate) struct Keeper {
    pub(crate) process: Process,
    dir: ShmDir,
    log: PathBuf,
    /// Where a VMM connects.
    socket: PathBuf,
}

impl Keeper {
    pub(crate) fn start(name: &str, maxmem: Bytes, more: &[&str]) -> Self {
        Self::start_with(name, maxmem, backend(), more)
    }

    pub(crate) fn start_with(name: &str, maxmem: Bytes, backend: &Path, more: &[&str]) -> Self {
        Self::spawn(name, "balloon.sock", command(maxmem, backend), more)
    }

    /// For memory that is populated on demand.
    pub(crate) fn start_pod(name: &str, memory: &OwnedFd, target: Bytes, more: &[&str]) -> Self {
        Self::start_pod_with(name, memory, target, backend(), more)
    }

    pub(crate) fn start_pod_with(
        name: &str,
        memory: &OwnedFd,
        target: Bytes,
        backend: &Path,
        more: &[&str],
    ) -> Self {
        let maxmem = Bytes(u64::try_from(rustix::fs::fstat(memory).unwrap().st_size).unwrap());
        let mut command = command(maxmem, backend);
        command.args(["--pod", "--target", &target.0.to_string()]).stdin(memory.try_clone().unwrap());
        Self::spawn(name, "pod.sock", command, more)
    }

    /// With a line from an agent: the guest's end.
    pub(crate) fn start_with_line(name: &str, maxmem: Bytes, more: &[&str]) -> (Self, UnixStream) {
        let (host, guest) = UnixStream::pair().unwrap();
        let mut command = command(maxmem, backend());
        command.arg("--agent-line").stdin(OwnedFd::from(host));
        (Self::spawn(name, "balloon.sock", command, more), guest)
    }

    fn spawn(name: &str, socket: &str, mut command: Command, more: &[&str]) -> Self {
        let dir = ShmDir::create(name).unwrap();
        let log = dir.path().join("keeper.log");
        command
            .args(["--name", name, "--dir"])
            .arg(dir.path())
            .args(more)
            .env("RUST_LOG", "trace")
            .env("NO_COLOR", "1")
            .stderr(std::fs::File::create(&log).unwrap());
        let process = Process::spawn(name, command).unwrap();
        let socket = dir.path().join(socket);
        let keeper = Self { process, dir, log, socket };
        keeper.wait("a socket to connect to", |_| keeper.socket().exists().then_some(()));
        keeper
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.process.pid().as_raw_nonzero().get()).unwrap()
    }

    /// Looks until it is there; tells what the keeper said if it does not come.
    pub(crate) fn wait<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let found = poll_until(LIMIT, what, || look(self).ok_or_else(|| format!("{:?}", self.try_status())));
        found.unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// One question on a connection of its own.
    pub(crate) fn try_ask(&self, op: Op) -> std::io::Result<Reply> {
        let mut socket = UnixStream::connect(self.control_socket())?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut line = serde_json::to_vec(&Request { v: VERSION, id: 7, op }).unwrap();
        line.push(b'\n');
        socket.write_all(&line)?;
        let mut answer = String::new();
        if BufReader::new(socket).read_line(&mut answer)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer).unwrap())
    }

    /// Asks until a back end answers: it may just be dying.
    pub(crate) fn ask(&self, op: Op) -> Status {
        let reply = poll_until(LIMIT, "an answer", || self.try_ask(op).map_err(|error| error.to_string()));
        match reply.unwrap_or_else(|error| panic!("{error}\n{}", self.log())).result {
            Outcome::Ok(status) => *status,
            Outcome::Error(error) => panic!("{op:?}: {error:?}"),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.ask(Op::Status)
    }

    pub(crate) fn try_status(&self) -> Option<Status> {
        match self.try_ask(Op::Status).ok()?.result {
            Outcome::Ok(status) => Some(*status),
            Outcome::Error(_) => None,
        }
    }

    pub(crate) fn set_balloon(&self, size: Bytes) -> Status {
        self.ask(Op::SetBalloon { pages: BalloonSize(size.pages_floor()) })
    }

    /// The back end's process, if there is one.
    pub(crate) fn back_end(&self) -> Option<u32> {
        children(self.pid()).into_iter().next()
    }

    /// Kills the back end, if there is one.
    pub(crate) fn kill_back_end(&self) -> bool {
        let Some(pid) = self.back_end().and_then(|pid| i32::try_from(pid).ok()) else { return false };
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
    }
}

/// A keeper's command, without what each test has of its own.
fn command(maxmem: Bytes, backend: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-keeper"));
    command.args(["--maxmem", &maxmem.0.to_string(), "--backend"]).arg(backend).stdin(Stdio::null());
    command
}

pub(crate) fn pages(size: Bytes) -> BalloonSize {
    BalloonSize(PageCount(size.0 / 4096))
}

/// The children of a process, from /proc/PID/task/PID/children.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Descriptors a process has open.
pub(crate) fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Processor time a process has used, in clock ticks: fields 14 and 15 of /proc/PID/stat (proc(5)).
pub(crate) fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    after.split_ascii_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
}

/// Memory a process holds of its own, in KiB: RssAnon of /proc/PID/status (proc(5)), and RssFile, the program itself.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_ascii_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    field("RssAnon:") + field("RssFile:")
}
