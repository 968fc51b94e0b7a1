//! Carries out long commands, one after the other.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command as Process, Stdio};
use std::sync::Arc;

use super::link::Link;
use crate::command::{Ask, Step, Work};
use crate::console::Console;
use crate::system;

/// A long command and who asked for it.
pub(crate) struct Job {
    /// The identifier to answer under.
    pub(crate) id: String,
    /// What to do.
    pub(crate) load: Load,
}

/// One step, or several that are announced.
pub(crate) enum Load {
    /// Answered with the step's own answer.
    Step(Step),
    /// Answered with a count of failures.
    Script(Vec<Step>),
}

/// The worker process.
struct Worker {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// Runs jobs.
pub(crate) struct Runner {
    console: Arc<Console>,
    link: Arc<Link>,
    worker: Option<Worker>,
}

impl Runner {
    /// A runner without a worker; one is started when it is first needed.
    pub(crate) fn new(console: Arc<Console>, link: Arc<Link>) -> Self {
        Self { console, link, worker: None }
    }

    /// Carries out one job and answers it.
    pub(crate) fn run(&mut self, job: &Job) {
        self.link.begin();
        let answer = match &job.load {
            Load::Script(steps) => self.script(&job.id, steps),
            Load::Step(step) => self.one(&job.id, step),
        };
        self.console.answer(&job.id, &answer);
    }

    fn one(&mut self, id: &str, step: &Step) -> String {
        match step {
            Step::Work(work) => self.by_worker(work).unwrap_or_else(|error| failed(&error)),
            Step::Ask(ask) => answer(ask, id, &self.console),
        }
    }

    /// A step that fails does not keep the others from running: a script usually ends with `poweroff`.
    fn script(&mut self, id: &str, steps: &[Step]) -> String {
        let mut failed_steps = 0;
        for (index, step) in steps.iter().enumerate() {
            if self.link.cancelled() {
                return format!("error reason=\"stopped before step {}\" failed={failed_steps}", index + 1);
            }
            let text = step.text();
            let begin = system::uptime_ms();
            self.console.say(id, &format!("note begin ms={begin} step={} {text:?}", index + 1));
            let answer = self.one(id, step);
            let end = system::uptime_ms();
            let took = end.saturating_sub(begin);
            self.console
                .say(id, &format!("note end ms={end} step={} took_ms={took} {text:?} {answer}", index + 1));
            failed_steps += u32::from(!answer.starts_with("ok"));
        }
        let word = if failed_steps == 0 { "ok" } else { "error reason=\"some steps failed\"" };
        format!("{word} steps={} failed={failed_steps}", steps.len())
    }

    fn by_worker(&mut self, work: &Work) -> std::io::Result<String> {
        let worker = match &mut self.worker {
            Some(worker) => worker,
            None => self.worker.insert(start_worker(&self.link)?),
        };
        // When the worker is gone already its end is found out by reading.
        drop(self.link.send(&work.text()));
        let mut line = String::new();
        loop {
            line.clear();
            if worker.output.read_line(&mut line)? == 0 {
                break;
            }
            match line.trim_end().strip_prefix("tick ") {
                Some(count) => self.link.tick(count.parse().unwrap_or(0)),
                None => return Ok(line.trim_end().to_owned()),
            }
        }
        self.link.connect(None);
        let status = worker.child.wait();
        self.worker = None;
        let status = status?;
        let how =
            status.signal().map_or_else(|| format!("exited={:?}", status.code()), |n| format!("killed={n}"));
        Ok(format!("error reason=\"the worker died with what it held\" {how} held=0"))
    }
}

fn start_worker(link: &Link) -> std::io::Result<Worker> {
    let mut child = Process::new("/proc/self/exe")
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    // When memory gives out this process shall go, not a part of the system.
    system::set_oom_score(child.id(), 1000)?;
    link.connect(child.stdin.take());
    match child.stdout.take() {
        Some(output) => Ok(Worker { child, output: BufReader::new(output) }),
        None => Err(std::io::ErrorKind::BrokenPipe.into()),
    }
}

/// Carries out what needs no worker. The machine's end is announced before it comes.
///
/// What changes the machine is refused to any but its first process: tried out on a host, by root, it would
/// otherwise turn the host off.
pub(crate) fn answer(ask: &Ask, id: &str, console: &Console) -> String {
    let changes_the_machine = !matches!(ask, Ask::Ping | Ask::Meminfo | Ask::Balloon | Ask::Vmstat);
    if changes_the_machine && std::process::id() != 1 {
        return "error reason=\"only the first process of a guest does that\"".into();
    }
    let go_down = |how: fn() -> std::io::Error| {
        console.answer(id, &format!("ok going down ms={}", system::uptime_ms()));
        console.drain();
        Err(how())
    };
    let answer = match ask {
        Ask::Ping => Ok(format!("ok pong ms={}", system::uptime_ms())),
        Ask::Meminfo => system::meminfo(),
        Ask::Balloon => system::balloon(),
        Ask::Vmstat => system::vmstat(),
        Ask::Hostfs => system::hostfs(),
        Ask::Load(module) => system::load(module),
        Ask::Unload(module) => system::unload(module),
        Ask::Swapon(device) => system::swapon(device),
        Ask::Reboot => go_down(system::restart),
        Ask::Poweroff => go_down(system::power_off),
    };
    answer.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> String {
    format!("error reason={:?}", error.to_string())
}
