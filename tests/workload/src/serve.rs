//! The guest's first process: takes commands from the console and answers them.
//!
//! The main thread reads the console and answers short commands at once. Long ones go to one runner thread, which
//! carries them out in order, most of them by passing them to the worker process.

mod link;
mod runner;

use std::io::BufRead;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::command::{Command, Step};
use crate::console::{Console, Seen, make_raw};
use crate::{shell, system};
use link::Link;
use runner::{Job, Load, Runner};

/// How many long commands may wait; one more is refused.
const QUEUE: usize = 32;
/// The longest line taken from the console. Longer ones are cut there, and then do not parse.
const LONGEST_LINE: usize = 4096;
/// The identifier under which the script of the kernel's command line reports.
const BOOT_SCRIPT: &str = "script";

/// Serves until the machine goes down.
pub(crate) fn run() -> std::io::Result<()> {
    make_raw()?;
    // Only root may lower it; when this is tried out on a host it stays as it is.
    drop(system::set_oom_score(std::process::id(), -1000));
    let serve = Serve::start()?;
    serve.console.say("-", &format!("ready ms={}", system::uptime_ms()));
    if let Some(script) = system::kernel_option("plimsoll.script") {
        serve.take_line(&format!("{BOOT_SCRIPT} script {script}"));
    }
    let mut input = std::io::stdin().lock();
    while let Some(line) = read_line(&mut input)? {
        serve.take_line(&line);
    }
    serve.finish()
}

/// One line of at most [`LONGEST_LINE`] bytes, `None` at the end.
fn read_line(input: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()));
        }
        let end = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let taken = buffer.iter().take(end.unwrap_or(buffer.len()));
        line.extend(taken.take(LONGEST_LINE.saturating_sub(line.len())));
        let used = end.map_or(buffer.len(), |end| end + 1);
        input.consume(used);
        if end.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

struct Serve {
    console: Arc<Console>,
    link: Arc<Link>,
    jobs: SyncSender<Job>,
    runner: std::thread::JoinHandle<()>,
}

impl Serve {
    fn start() -> std::io::Result<Self> {
        let console = Arc::new(Console::default());
        let link = Arc::new(Link::default());
        let (jobs, receiver) = sync_channel(QUEUE);
        let mut runner = Runner::new(Arc::clone(&console), Arc::clone(&link));
        let runner = std::thread::Builder::new().spawn(move || {
            for job in receiver {
                runner.run(&job);
            }
        })?;
        Ok(Self { console, link, jobs, runner })
    }

    fn take_line(&self, line: &str) {
        let Some((id, words)) = line.trim().split_once(' ') else { return };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.len() > 32 || !id.chars().all(plain) {
            return;
        }
        match self.console.arrive(id) {
            Seen::New => self.take_command(id, words),
            Seen::Running => self.console.say(id, "note busy"),
            Seen::Answered(answer) => self.console.say(id, &answer),
        }
    }

    fn take_command(&self, id: &str, words: &str) {
        match Command::parse(words) {
            Err(error) => self.console.answer(id, &format!("error reason={:?}", error.to_string())),
            Ok(Command::Script(steps)) => self.queue(id, Load::Script(steps)),
            Ok(Command::Step(step @ Step::Work(_))) => self.queue(id, Load::Step(step)),
            Ok(Command::Step(Step::Ask(ask))) => {
                let answer = runner::answer(&ask, id, &self.console);
                self.console.answer(id, &answer);
            }
            Ok(Command::Stop) => {
                self.link.stop();
                self.console.answer(id, "ok");
            }
            Ok(Command::Shell(line)) => {
                let failed = |error: std::io::Error| format!("error reason={:?}", error.to_string());
                self.console.answer(id, &shell::run(&line).unwrap_or_else(failed));
            }
            Ok(Command::Stats) => self.console.answer(id, &self.link.stats()),
        }
    }

    fn queue(&self, id: &str, load: Load) {
        if self.jobs.try_send(Job { id: id.to_owned(), load }).is_err() {
            self.console.answer(id, "error reason=\"too many commands wait\"");
        }
    }

    /// The console is gone: lets a script finish. As first process of a guest it must never end.
    fn finish(self) -> std::io::Result<()> {
        drop(self.jobs);
        if self.runner.join().is_err() {
            return Err(std::io::Error::other("the runner gave up"));
        }
        while std::process::id() == 1 {
            std::thread::park();
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use std::io::BufReader;

    use proptest::prelude::{any, proptest};

    use super::{LONGEST_LINE, read_line};

    #[test]
    fn lines_end_with_newline_or_carriage_return() {
        let mut input = BufReader::with_capacity(3, "1 ping\r\n2 stop\nrest".as_bytes());
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut input).expect("reads") {
            lines.push(line);
        }
        assert_eq!(lines, ["1 ping", "", "2 stop", "rest"]);
    }

    proptest! {
        #[test]
        fn lines_are_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..3 * LONGEST_LINE)) {
            let mut input = bytes.as_slice();
            while let Some(line) = read_line(&mut input).expect("reads") {
                // A byte that is no UTF-8 becomes a mark of three.
                assert!(line.len() <= 3 * LONGEST_LINE);
            }
        }
    }
}
