//! The process that holds the memory.
//!
//! It takes one command a line from `serve` and answers each with one line `ok ...` or `error ...`, preceded by
//! `tick COUNT` lines, one a second. A line `stop` ends the command that runs. It ends with its standard input.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use plimsoll_units::Bytes;

use crate::build::{self, Built, Kept};
use crate::churn;
use crate::command::{Command, Step, Work};
use crate::counters::Ticker;
use crate::memory::{Done, Held, Job, Residence, Verdict};

/// Runs until standard input ends.
pub(crate) fn run() -> std::io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let commands = spawn_reader(Arc::clone(&stop));
    let (mut held, mut kept) = (Held::default(), Kept::default());
    let mut out = std::io::stdout();
    for line in commands {
        let answer = match Command::parse(&line) {
            Ok(Command::Step(Step::Work(work))) => carry_out(&work, (&mut held, &mut kept), &stop)
                .unwrap_or_else(|error| {
                    format!("error reason={:?} held={}", error.to_string(), held.size().0)
                }),
            Ok(_) => format!("error reason=\"the worker does not know {line:?}\""),
            Err(error) => format!("error reason={:?}", error.to_string()),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// Reads lines on a thread of its own, so that `stop` is seen while a command runs.
/// The flag is cleared when a command is read, hence a `stop` that comes too late cannot hit the next one.
fn spawn_reader(stop: Arc<AtomicBool>) -> Receiver<String> {
    // `serve` waits for each answer before it sends the next command: one place is enough.
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let is_stop = line.trim() == "stop";
            stop.store(is_stop, Ordering::Relaxed);
            if !is_stop && sender.send(line).is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    receiver
}

fn carry_out(
    work: &Work,
    (held, kept): (&mut Held, &mut Kept),
    stop: &AtomicBool,
) -> std::io::Result<String> {
    let mut tell = |count: u64| {
        // `serve` is gone when this fails, and then this process ends with its standard input.
        drop(writeln!(std::io::stdout(), "tick {count}"));
    };
    let mut job = Job { stop, ticker: Ticker::new(&mut tell) };
    Ok(match work {
        Work::Fill(size, seed) => fill_words(&held.fill(*size, *seed, Residence::Free, &mut job)?, held),
        Work::Lock(size) => fill_words(&held.fill(*size, 1, Residence::Locked, &mut job)?, held),
        Work::Grab(size, seed) => fill_words(&held.grab(*size, *seed, &mut job)?, held),
        Work::Verify => verdict_words(&held.verify(&mut job), held),
        Work::Touch(time, rate) => verdict_words(&held.touch(*time, *rate, &mut job), held),
        Work::Free(size) => {
            let Bytes(freed) = held.free(*size);
            format!("ok freed={freed} held={}", held.size().0)
        }
        Work::Hold(time) => {
            format!("ok stopped={} held={}", !job.wait(*time), held.size().0)
        }
        Work::Build(list, first, count) => {
            build_words(&build::run(list, *first, *count, kept, &mut job)?, held)
        }
        Work::Churn(time, size) => {
            let done = churn::run(*time, *size, &mut job)?;
            let churned = format!("blocks={} files={} peak={}", done.blocks, done.files, done.peak.0);
            format!("{} {churned}", verdict_words(&done.verdict, held))
        }
    })
}

fn fill_words(done: &Done, held: &Held) -> String {
    format!("ok pages={} stopped={} held={}", done.pages, done.stopped, held.size().0)
}

fn build_words(built: &Built, held: &Held) -> String {
    let Built { made, bytes, failed, first_failure, stopped } = built;
    let word = if *failed == 0 { "ok" } else { "error reason=\"programs failed\"" };
    let said = first_failure.as_ref().map_or(String::new(), |said| format!(" first={said:?}"));
    format!("{word} made={made} bytes={bytes} failed={failed} stopped={stopped} held={}{said}", held.size().0)
}

fn verdict_words(verdict: &Verdict, held: &Held) -> String {
    let word = if verdict.bad_pages == 0 { "ok" } else { "error reason=\"wrong bytes\"" };
    let Verdict { pages, bad_pages, bad_bytes, stopped, shown } = verdict;
    let mut line = format!(
        "{word} pages={pages} bad_pages={bad_pages} bad_bytes={bad_bytes} stopped={stopped} held={}",
        held.size().0
    );
    for page in shown {
        line.push_str(" | ");
        line.push_str(page);
    }
    line
}
