//! A VMM in a process of its own, with the real library preloaded into it: the probe of `app/pod_preload`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use plimsoll_testbed::guard::Process;
use plimsoll_testbed::paths;
use plimsoll_uffd::agreement::{self, LIBRARY, OnPagerLoss};
use plimsoll_uffd::handover::file_id;

use super::guest::DOUBT;
use crate::common::{Keeper, LIMIT};

/// The program and the library, built if need be: cargo builds neither for this test by itself.
fn built() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = paths::work_dir().join("preload");
        let cargo = |more: &[&str]| {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args([
                "build",
                "--quiet",
                "--offline",
                "--package",
                "plimsoll-pod-preload",
                "--target-dir",
            ]);
            assert!(cargo.arg(&target).args(more).status().unwrap().success(), "it does not build");
        };
        cargo(&["--bin", "plimsoll-pod-probe"]);
        // As it ships: without the standard library.
        cargo(&["--lib", "--profile", "agent"]);
        (target.join("debug/plimsoll-pod-probe"), target.join("agent").join(LIBRARY))
    })
}

/// Tells a VMM what `plimsoll run` would.
pub(super) fn tell(command: &mut Command, keeper: &Keeper, memory: &OwnedFd, loss: OnPagerLoss) {
    command
        .env("LD_PRELOAD", &built().1)
        .env(agreement::FILE, file_id(memory).unwrap().0.to_string())
        .env(agreement::SOCKET, keeper.socket())
        .env(agreement::ON_LOSS, loss.word())
        .env(agreement::DEADLINE_MS, LIMIT.as_millis().to_string());
}

/// The running program. Dropped, it is killed.
pub(super) struct Vmm {
    pub(super) process: Process,
    input: File,
    lines: Receiver<String>,
    errors: PathBuf,
}

impl Vmm {
    /// Ready for commands, and to connect to this keeper.
    pub(super) fn start(keeper: &Keeper, memory: &OwnedFd, loss: OnPagerLoss) -> Self {
        // Inherited by whatever else is started at the same time too, which does no harm.
        let inherited = rustix::io::dup(memory).unwrap();
        let mut command = Command::new(&built().0);
        command.arg(inherited.as_raw_fd().to_string());
        tell(&mut command, keeper, memory, loss);
        let vmm = Self::spawn(command, keeper.dir());
        assert_eq!(vmm.reply(), "ready");
        vmm
    }

    fn spawn(mut command: Command, dir: &Path) -> Self {
        let (theirs, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (output, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let errors = dir.join("vmm.log");
        let log = File::options().create(true).append(true).open(&errors).unwrap();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::from(out)).stderr(Stdio::from(log));
        let process = Process::spawn("probe", command).unwrap();
        Self { process, input: File::from(input), lines: follow(output), errors }
    }

    /// Gives a command and does not wait.
    pub(super) fn begin(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    #[track_caller]
    pub(super) fn reply(&self) -> String {
        self.lines.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no answer; {}", self.said()))
    }

    #[track_caller]
    pub(super) fn ask(&mut self, command: &str) -> String {
        self.begin(command);
        self.reply()
    }

    /// That it is inside a call, as far as can be told.
    #[track_caller]
    pub(super) fn waits(&self) {
        assert!(matches!(self.lines.recv_timeout(DOUBT), Err(RecvTimeoutError::Timeout)), "it did not wait");
    }

    /// What is on its standard error.
    pub(super) fn said(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }
}

/// The lines that come out of a pipe.
fn follow(output: OwnedFd) -> Receiver<String> {
    let (sender, receiver) = channel();
    // It ends when the other end of the pipe is closed, which the end of the process does.
    std::thread::spawn(move || {
        for line in BufReader::new(File::from(output)).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
