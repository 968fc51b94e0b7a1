//! Talks to the workload in a guest through a console: a FIFO to write to and a log to follow.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::log::{Event, Line, Log};
use crate::BedError;
use crate::wait::{WaitError, poll_until};

/// After so long without an answer a command is sent again, under the same identifier: the line may have lost it,
/// and the workload carries nothing out twice.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The longest command: more might not go into the FIFO at once (PIPE_BUF, pipe(7)).
const LONGEST_COMMAND: usize = 4096;

/// A guest's console.
///
/// Works on every guest that runs the workload, whoever started it: give it the FIFO that is the guest's input and
/// the file that has its output.
#[derive(Debug)]
pub struct Console {
    input: File,
    input_path: PathBuf,
    log_path: PathBuf,
    log: Mutex<Log>,
}

/// A command that was given.
#[derive(Clone, Debug)]
pub struct Pending {
    id: String,
    command: String,
}

impl Pending {
    /// The command.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Whether asking again is harmless even when the guest has rebooted and forgotten that it was asked.
    fn may_be_repeated(&self) -> bool {
        !matches!(self.command.as_str(), "reboot" | "poweroff") && !self.command.starts_with("script")
    }
}

/// What the workload answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    line: Line,
}

impl Reply {
    /// An answer made up, for tests of what asks guests: `ok ...` or `error ...`.
    #[must_use]
    pub fn of(words: &str) -> Self {
        let (kind, text) = words.split_once(' ').unwrap_or((words, ""));
        Self { line: Line { id: String::new(), kind: kind.to_owned(), text: text.to_owned() } }
    }

    /// Whether it went well.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.line.kind == "ok"
    }

    /// The words after `ok` or `error`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.line.text
    }

    /// The number of the first word `key=NUMBER`.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        let mut words = self.text().split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?.parse().ok()
    }
}

/// Why there was no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// It did not come in time.
    Late(WaitError),
    /// Nobody is left who could answer.
    Gone(String),
    /// The console itself does not work.
    Io(BedError),
}

impl Console {
    /// Makes the FIFO and an empty log, and opens both.
    ///
    /// # Errors
    /// [`BedError::Io`].
    pub fn create(input: &Path, log: &Path) -> Result<Self, BedError> {
        mknodat(CWD, input, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .map_err(|error| BedError::io("make FIFO", input)(error.into()))?;
        File::create_new(log).map_err(BedError::io("make", log))?;
        Self::open(input, log)
    }

    /// Opens the console of a guest that somebody else started.
    ///
    /// # Errors
    /// [`BedError::Io`].
    pub fn open(input: &Path, log: &Path) -> Result<Self, BedError> {
        // For reading too: the guest must not see the end of its input when a test lets go of it. Without waiting:
        // a guest that reads nothing must not hang the test.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = rustix::fs::open(input, flags, Mode::empty());
        let fifo = fifo.map_err(|error| BedError::io("open", input)(error.into()))?;
        Ok(Self {
            input: fifo.into(),
            input_path: input.to_owned(),
            log_path: log.to_owned(),
            log: Mutex::new(Log::open(log).map_err(BedError::io("open", log))?),
        })
    }

    /// Everything printed so far, the kernel's lines included.
    ///
    /// # Errors
    /// [`BedError::Io`].
    pub fn text(&self) -> Result<String, BedError> {
        let bytes = std::fs::read(&self.log_path).map_err(BedError::io("read", &self.log_path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines printed.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let text = self.text().unwrap_or_else(|error| error.to_string());
        let all: Vec<_> = text.lines().map(str::trim_end).collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// The workload's lines so far (the latest 4096), with the time each was seen here.
    ///
    /// # Errors
    /// [`BedError::Io`].
    pub fn events(&self) -> Result<Vec<Event>, BedError> {
        Ok(self.pumped()?.events.iter().cloned().collect())
    }

    /// How often the workload has reported ready.
    ///
    /// # Errors
    /// [`BedError::Io`].
    pub fn boots(&self) -> Result<usize, BedError> {
        Ok(self.pumped()?.boots)
    }

    /// Gives the workload a command.
    ///
    /// # Errors
    /// [`BedError::Io`] when the guest takes no more input or the command is too long or has several lines.
    pub fn begin(&self, command: &str) -> Result<Pending, BedError> {
        let pending = Pending { id: new_id(), command: command.trim().to_owned() };
        self.write(&pending)?;
        Ok(pending)
    }

    /// Gives the workload a command and waits for the answer, be it good or bad.
    ///
    /// # Errors
    /// [`BedError::Wait`] when none comes within `limit`.
    pub fn ask(&self, command: &str, limit: Duration) -> Result<Reply, BedError> {
        self.answer(&self.begin(command)?, limit)
    }

    /// Waits for the answer to a command, be it good or bad.
    ///
    /// # Errors
    /// [`BedError::Wait`] when none comes within `limit`.
    pub fn answer(&self, pending: &Pending, limit: Duration) -> Result<Reply, BedError> {
        self.wait(pending, limit, &|| None).map_err(|silence| match silence {
            Silence::Late(error) => error.into(),
            Silence::Io(error) => error,
            Silence::Gone(how) => BedError::Gone {
                guest: self.log_path.display().to_string(),
                during: format!("it was asked `{}`", pending.command()),
                how,
                console: self.tail(super::SHOWN_LINES),
            },
        })
    }

    /// Waits until the workload has reported ready `boots` times.
    ///
    /// # Errors
    /// [`BedError::Wait`] when it does not within `limit`.
    pub fn wait_ready(&self, boots: usize, limit: Duration) -> Result<(), BedError> {
        self.wait_boots(boots, limit, &|| None).map_err(|silence| match silence {
            Silence::Late(error) => error.into(),
            Silence::Io(error) => error,
            Silence::Gone(how) => BedError::Unsupported(how),
        })
    }

    pub(super) fn wait_boots(
        &self,
        boots: usize,
        limit: Duration,
        gone: &dyn Fn() -> Option<String>,
    ) -> Result<(), Silence> {
        self.until(limit, &format!("boot {boots} of the guest"), gone, &mut |log| {
            if log.boots >= boots { Ok(Some(())) } else { Ok(None) }
        })
    }

    pub(super) fn wait(
        &self,
        pending: &Pending,
        limit: Duration,
        gone: &dyn Fn() -> Option<String>,
    ) -> Result<Reply, Silence> {
        let mut asked = Instant::now();
        self.until(limit, &format!("the answer to `{}`", pending.command), gone, &mut |log| {
            if let Some(line) = log.answer(&pending.id) {
                return Ok(Some(Reply { line: line.clone() }));
            }
            if asked.elapsed() > ASK_AGAIN && pending.may_be_repeated() {
                asked = Instant::now();
                self.write(pending)?;
            }
            Ok(None)
        })
    }

    /// Looks into the log until `look` finds something, the guest is gone or its kernel has given up.
    fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        gone: &dyn Fn() -> Option<String>,
        look: &mut dyn FnMut(&Log) -> Result<Option<T>, BedError>,
    ) -> Result<T, Silence> {
        let mut once = || -> Result<Option<T>, Silence> {
            // In this order: a guest that answers and ends has answered.
            let gone = gone();
            let log = self.pumped().map_err(Silence::Io)?;
            if let Some(found) = look(&log).map_err(Silence::Io)? {
                return Ok(Some(found));
            }
            gone.or_else(|| log.panic.clone()).map_or(Ok(None), |how| Err(Silence::Gone(how)))
        };
        let found = poll_until(limit, what, || match once() {
            Ok(Some(found)) => Ok(Ok(found)),
            Ok(None) => Err(format!("its console ends with {:?}", self.tail(1))),
            Err(silence) => Ok(Err(silence)),
        });
        found.map_err(Silence::Late)?
    }

    fn write(&self, pending: &Pending) -> Result<(), BedError> {
        let line = format!("{} {}\n", pending.id, pending.command);
        let failed = BedError::io("write a command to", &self.input_path);
        if line.len() > LONGEST_COMMAND || pending.command.contains('\n') {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        (&self.input).write_all(line.as_bytes()).map_err(failed)
    }

    fn pumped(&self) -> Result<MutexGuard<'_, Log>, BedError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.pump().map_err(BedError::io("read", &self.log_path))?;
        Ok(log)
    }
}

/// An identifier that no earlier process used on the same guest either.
fn new_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let started = crate::guard::run_id().rsplit('-').next().unwrap_or_default();
    format!("{}.{started}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod test {
    use std::io::{BufRead, BufReader, Write};
    use std::time::Duration;

    use super::{ASK_AGAIN, Console, Silence};
    use crate::guard::ShmDir;

    /// Answers the first `n` lines through `answer`, as a guest would.
    fn guest(dir: &ShmDir, n: usize, answer: impl Fn(&str) -> String + Send + 'static) -> Console {
        let (input, log) = (dir.path().join("in"), dir.path().join("log"));
        let console = Console::create(&input, &log).expect("makes");
        std::thread::spawn(move || {
            let input = BufReader::new(std::fs::File::open(input).expect("opens"));
            let mut log = std::fs::File::options().append(true).open(log).expect("opens");
            for line in input.lines().take(n) {
                log.write_all(answer(&line.expect("reads")).as_bytes()).expect("writes");
            }
        });
        console
    }

    #[test]
    fn a_reply_has_words_and_numbers() {
        let dir = ShmDir::create("console").expect("a directory");
        let console = guest(&dir, 1, |line| {
            let id = line.split(' ').next().expect("an identifier");
            format!("noise\r\n@plimsoll {id} ok pages=12 held=x held=34\n")
        });
        let reply = console.ask("fill 48K", Duration::from_secs(20)).expect("answers");
        assert!(reply.is_ok());
        assert_eq!(
            (reply.number("pages"), reply.number("held"), reply.number("age")),
            (Some(12), None, None)
        );
    }

    #[test]
    fn a_lost_answer_is_asked_for_again() {
        let dir = ShmDir::create("console").expect("a directory");
        let lost = std::sync::atomic::AtomicBool::new(false);
        let console = guest(&dir, 2, move |line| {
            let id = line.split(' ').next().expect("an identifier");
            let first = !lost.swap(true, std::sync::atomic::Ordering::Relaxed);
            if first { "@plims".into() } else { format!("@plimsoll {id} ok\n") }
        });
        let begin = std::time::Instant::now();
        assert!(console.ask("ping", Duration::from_secs(30)).expect("answers").is_ok());
        assert!(begin.elapsed() >= ASK_AGAIN);
    }

    #[test]
    fn silence_is_told_from_death() {
        let dir = ShmDir::create("console").expect("a directory");
        let console = guest(&dir, 0, |_| String::new());
        let pending = console.begin("ping").expect("writes");
        let late = console.wait(&pending, Duration::from_millis(30), &|| None);
        assert!(matches!(&late, Err(Silence::Late(error)) if error.what.contains("ping")), "{late:?}");
        let gone = console.wait(&pending, Duration::from_secs(30), &|| Some("exit status: 1".into()));
        assert!(matches!(&gone, Err(Silence::Gone(how)) if how == "exit status: 1"), "{gone:?}");
    }

    #[test]
    fn a_guest_that_reads_nothing_does_not_hang_the_test() {
        let dir = ShmDir::create("console").expect("a directory");
        let console = Console::create(&dir.path().join("in"), &dir.path().join("log")).expect("makes");
        let long = "x".repeat(4000);
        let error = (0..100).find_map(|_| console.begin(&long).err()).expect("a FIFO holds 64 KiB");
        assert!(error.to_string().starts_with("cannot write a command to "), "{error}");
    }
}
