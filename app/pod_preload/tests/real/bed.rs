//! The program with the library in it, and its memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use plimsoll_testbed::guard::{Process, ShmDir};
use plimsoll_testbed::skip::skip;
use plimsoll_uffd::agreement::{self, FileId, OnPagerLoss};
use plimsoll_uffd::handover::file_id;
use plimsoll_uffd::{Features, Uffd};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::FdFlags;

use crate::library::library;

/// How long what must happen may take, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long what must not happen is waited for.
pub(crate) const DOUBT: Duration = Duration::from_millis(150);
/// Bytes of the memory.
pub(crate) const SIZE: u64 = 4 * FRAME_SIZE;

/// Memory as `plimsoll run` makes it: of a fixed size, inherited by the VMM.
pub(crate) fn guest_memory(bytes: u64) -> OwnedFd {
    let memory = rustix::fs::memfd_create("plimsoll-guest", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    // Inherited by whatever else a test starts at the same time too, which does no harm.
    rustix::io::fcntl_setfd(&memory, FdFlags::empty()).unwrap();
    memory
}

/// Bytes of memory in a file (`st_blocks`, in units of 512).
pub(crate) fn resident(memory: impl AsFd) -> u64 {
    File::from(memory.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().blocks() * 512
}

/// Memory, a folder for sockets, and what the VMM is told.
pub(crate) struct Bed {
    pub(crate) memory: OwnedFd,
    pub(crate) dir: ShmDir,
    pub(crate) loss: OnPagerLoss,
    pub(crate) deadline: Duration,
}

impl Bed {
    /// `None`, after saying so loudly, where there is no userfaultfd.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if let Err(error) = Uffd::open(Features::SHARED_GUEST) {
            skip(test, &error.to_string());
            return None;
        }
        let dir = ShmDir::create("pod").unwrap();
        Some(Self { memory: guest_memory(SIZE), dir, loss: OnPagerLoss::Stall, deadline: PATIENCE })
    }

    pub(crate) fn file(&self) -> FileId {
        file_id(&self.memory).unwrap().0
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("pod")
    }

    pub(crate) fn resident(&self) -> u64 {
        resident(&self.memory)
    }

    /// The program, told everything it must be told.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-pod-probe"));
        command.arg(self.memory.as_raw_fd().to_string());
        self.tell(&mut command);
        command
    }

    /// Tells a VMM what `plimsoll run` would.
    pub(crate) fn tell(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", library())
            .env(agreement::FILE, self.file().to_string())
            .env(agreement::SOCKET, self.socket())
            .env(agreement::ON_LOSS, self.loss.word())
            .env(agreement::DEADLINE_MS, self.deadline.as_millis().to_string());
    }

    /// The program, ready for commands.
    pub(crate) fn start(&self) -> Vmm {
        let vmm = self.start_as(self.command());
        assert_eq!(vmm.reply(), "ready");
        vmm
    }

    pub(crate) fn start_as(&self, mut command: Command) -> Vmm {
        let (theirs, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (output, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let errors = self.dir.path().join("stderr");
        let log = File::options().create(true).append(true).open(&errors).unwrap();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::from(out)).stderr(Stdio::from(log));
        let process = Process::spawn("probe", command).unwrap();
        Vmm { process, input: File::from(input), lines: follow(output), errors }
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

/// The running program. Dropped, it is killed.
pub(crate) struct Vmm {
    pub(crate) process: Process,
    input: File,
    lines: Receiver<String>,
    errors: PathBuf,
}

impl Vmm {
    /// Gives a command and does not wait.
    pub(crate) fn begin(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    /// The next answer.
    #[track_caller]
    pub(crate) fn reply(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no answer; {}", self.said()))
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.begin(command);
        self.reply()
    }

    /// That it is inside a call, as far as can be told.
    #[track_caller]
    pub(crate) fn waits(&self) {
        assert!(matches!(self.lines.recv_timeout(DOUBT), Err(RecvTimeoutError::Timeout)), "it did not wait");
    }

    /// What is on its standard error.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    /// Its exit code, when it has ended by itself, and the one line that it said.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (i32, String) {
        let status = self.process.wait_exit(PATIENCE).unwrap();
        let said = self.said();
        assert!(said.starts_with("plimsoll-pod: ") && said.lines().count() == 1, "{said}");
        (status.code().expect("it was not killed"), said)
    }
}

/// An offset as a word of a command.
pub(crate) fn page(number: u64) -> String {
    (number * PAGE_SIZE).to_string()
}
