//! A daemon of its own.

use std::cell::RefCell;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use plimsoll_api::http::{Event, ListView, SOCKET_NAME, VmView};
use plimsoll_testbed::bins::{Bins, Prefer, bins};
use plimsoll_testbed::guard::{Marked, Process, ShmDir, leftovers};
use plimsoll_testbed::skip::unless_available;
use plimsoll_testbed::wait::poll_until;
use rustix::process::Pid;
use serde::de::DeserializeOwned;

use crate::{PATIENCE, Said};

/// A configuration for a host on which nothing but the VMs of the test matters: a budget of its own, and whatever
/// else runs on this machine meanwhile is no reason to move memory.
pub const CALM: &str = "
[host]
budget = \"4G\"
low = \"1M\"
[policy]
host-stall = \"100%\"
";

/// Where the memory of User Mode Linux guests lies, in the bed's folder.
const RAM: &str = "ram";
/// Where the journal lies, in the bed's folder.
const JOURNAL: &str = "journal";
/// How much of a log is shown when a test fails.
const SHOWN_LINES: usize = 40;

/// A daemon with a run folder of its own. Dropped, all that was started through it is killed and every file removed.
#[derive(Debug)]
pub struct Bed {
    test: String,
    bins: Bins,
    daemon: RefCell<Option<Process>>,
    // Before the folder: processes go first, then their files.
    mark: Marked,
    dir: ShmDir,
}

impl Bed {
    /// Starts a daemon with this configuration and waits until it answers.
    ///
    /// `None`, after saying so loudly, where the programs are not built. `test` is the test's name.
    ///
    /// # Panics
    /// When the daemon does not come up.
    #[must_use]
    #[track_caller]
    pub fn new(test: &str, config: &str) -> Option<Self> {
        Self::make(test, |_| config.to_owned())
    }

    #[track_caller]
    fn make(test: &str, config: impl FnOnce(&Path) -> String) -> Option<Self> {
        let bins = unless_available(test, bins(Prefer::Same))?;
        let dir = ShmDir::create("e2e").expect("a directory in memory can be made");
        let mark = Marked::new("e2e").expect("a guardian can be started");
        fs::write(dir.path().join("plimsoll.toml"), config(dir.path())).expect("a file can be written there");
        fs::create_dir(dir.path().join(RAM)).expect("a directory can be made there");
        let bed = Self { test: test.to_owned(), bins, daemon: RefCell::new(None), mark, dir };
        bed.start_daemon();
        Some(bed)
    }

    /// The same, and the daemon keeps a journal, see [`Bed::ticks`].
    ///
    /// # Panics
    /// When the daemon does not come up.
    #[must_use]
    #[track_caller]
    pub fn journaled(test: &str, config: &str) -> Option<Self> {
        Self::make(test, |dir| format!("{config}\n[journal]\ndir = \"{}\"\n", dir.join(JOURNAL).display()))
    }

    /// The test's name, for [`unless_available`].
    #[must_use]
    pub fn test(&self) -> &str {
        &self.test
    }

    /// The daemon's run folder.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A folder in memory that goes with the bed: for sockets and files of the test.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The folder, `TMPDIR` for all that is typed, in which the memory of User Mode Linux guests lies.
    #[must_use]
    pub fn ram(&self) -> PathBuf {
        self.dir.path().join(RAM)
    }

    /// Where a daemon with a journal keeps it.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.dir.path().join(JOURNAL)
    }

    /// The programs under test.
    #[must_use]
    pub fn bins(&self) -> &Bins {
        &self.bins
    }

    /// The folder of a VM's files.
    #[must_use]
    pub fn vm_dir(&self, name: &str) -> PathBuf {
        self.run_dir().join("run").join(name)
    }

    /// `plimsoll` for this daemon, marked, without input: for what [`Bed::cli`] does not do.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_in(&self.run_dir(), args)
    }

    /// The same for another run folder.
    #[must_use]
    pub fn command_in(&self, run_dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(&self.bins.plimsoll);
        self.mark.put_on(&mut command).env("TMPDIR", self.ram()).stdin(Stdio::null());
        command.arg("--run-dir").arg(run_dir).args(args);
        command
    }

    /// Types `plimsoll ARGS` and waits for its end, as [`Said::by`] does.
    ///
    /// # Panics
    /// When it cannot be run.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Said {
        Said::by(&mut self.command(args))
    }

    /// The same, and it must succeed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.cli(args).ok()
    }

    /// The same with `--json`, read.
    ///
    /// # Panics
    /// When it fails, or the answer is something else.
    #[must_use]
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> T {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error} in {text}"))
    }

    /// `list`.
    #[must_use]
    #[track_caller]
    pub fn list(&self) -> ListView {
        self.json(&["list"])
    }

    /// `show NAME`.
    #[must_use]
    #[track_caller]
    pub fn view(&self, name: &str) -> VmView {
        self.json(&["show", name])
    }

    /// Waits until a VM is as `is` wants it.
    ///
    /// # Panics
    /// With the last state seen, when it is not within `limit`.
    #[track_caller]
    pub fn wait_vm(&self, name: &str, limit: Duration, what: &str, is: impl Fn(&VmView) -> bool) -> VmView {
        let look = || {
            let said = self.cli(&["show", name, "--json"]);
            let view: VmView = serde_json::from_str(&said.stdout).map_err(|_| said.stderr.clone())?;
            if is(&view) { Ok(view) } else { Err(format!("{view:#?}")) }
        };
        poll_until(limit, &format!("{name}: {what}"), look).unwrap_or_else(|error| panic!("{error}"))
    }

    /// `events`, of one VM or of all.
    #[must_use]
    #[track_caller]
    pub fn events(&self, name: Option<&str>) -> Vec<Event> {
        let mut args = vec!["events", "--json"];
        args.extend(name);
        let read = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in the event {line}"))
        };
        self.ok(&args).lines().map(read).collect()
    }

    /// How often something of a kind has happened to a VM.
    #[must_use]
    #[track_caller]
    pub fn count(&self, name: &str, kind: &str) -> usize {
        self.events(Some(name)).iter().filter(|event| event.kind == kind).count()
    }

    /// One request to the daemon's API without a body, for what has no command: the status and the answer's text.
    ///
    /// # Panics
    /// When there is no whole answer within [`PATIENCE`].
    #[must_use]
    #[track_caller]
    pub fn http(&self, method: &str, path: &str) -> (u16, String) {
        let mut socket = UnixStream::connect(self.run_dir().join(SOCKET_NAME)).expect("the daemon listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit can be set");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: plimsoll\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).expect("the daemon reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("the daemon answers");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {head}")), body.to_owned())
    }

    /// Waits until something of a kind has happened to a VM at least once.
    ///
    /// # Panics
    /// With all that has happened to it, when it has not within [`PATIENCE`].
    #[track_caller]
    pub fn wait_event(&self, name: &str, kind: &str) {
        let look = || {
            let events = self.events(Some(name));
            if events.iter().any(|event| event.kind == kind) { Ok(()) } else { Err(format!("{events:#?}")) }
        };
        poll_until(PATIENCE, &format!("{name}: {kind}"), look).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it does not, or when one runs.
    #[track_caller]
    pub fn start_daemon(&self) {
        let mut daemon = self.daemon.borrow_mut();
        assert!(daemon.is_none(), "a daemon runs already");
        let log = fs::File::options().create(true).append(true).open(self.daemon_log());
        let log = log.expect("a file can be written there");
        let config = self.dir.path().join("plimsoll.toml");
        let mut command = self.command(&["daemon", "--config"]);
        command.arg(config).stdout(log.try_clone().expect("another descriptor")).stderr(log);
        let mut process = Process::spawn("plimsolld", command).expect("it can be started");
        let answers = || {
            if let Some(status) = process.exited() {
                panic!("the daemon ended with {status}:\n{}", tail(&self.daemon_log()));
            }
            let said = self.cli(&["host", "--json"]);
            if said.code == Some(0) { Ok(()) } else { Err(said.stderr) }
        };
        poll_until(PATIENCE, "the daemon to answer", answers).unwrap_or_else(|error| panic!("{error}"));
        *daemon = Some(process);
    }

    /// SIGKILL to the daemon.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    pub fn kill_daemon(&self) {
        let mut daemon = self.daemon.borrow_mut().take().expect("a daemon runs");
        daemon.kill().expect("it dies");
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// When none runs.
    #[must_use]
    #[track_caller]
    pub fn daemon_pid(&self) -> Pid {
        self.daemon.borrow().as_ref().expect("a daemon runs").pid()
    }

    /// What the daemon logged.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// Processes that were started through this bed and are alive, the daemon left out.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let own = self.daemon.borrow().as_ref().map(|daemon| daemon.pid().as_raw_nonzero().to_string());
        let is_daemon =
            |line: &String| own.as_ref().is_some_and(|pid| line.starts_with(&format!("process {pid}:")));
        leftovers(self.mark.mark()).into_iter().filter(|line| !is_daemon(line)).collect()
    }

    /// Files that a VM may have left: in its own folder, in the daemon's books, in memory.
    #[must_use]
    pub fn vm_files(&self) -> Vec<String> {
        let names = |dir: PathBuf| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
        };
        [names(self.run_dir().join("run")), names(self.run_dir().join("vms")), names(self.ram())].concat()
    }

    /// Asserts that no process but the daemon and no file of any VM is left.
    ///
    /// # Panics
    /// With what is left.
    #[track_caller]
    pub fn only_the_daemon_is_left(&self) {
        let clean = || {
            let left = [self.processes(), self.vm_files()].concat();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
        };
        poll_until(Duration::from_secs(5), "nothing but the daemon to be left", clean)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut logs = vec![self.daemon_log()];
        for entry in fs::read_dir(self.run_dir().join("run")).into_iter().flatten().flatten() {
            logs.extend(["console.log", "keeper.log"].map(|log| entry.path().join(log)));
        }
        for log in logs {
            let text = format!("--- {} of {} ends with:\n{}\n", log.display(), self.test, tail(&log));
            // Nobody is left to be told that it cannot be told.
            drop(std::io::stderr().write_all(text.as_bytes()));
        }
    }
}

fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
