//! What the guests do: all compile at once, then all have their turns of memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::counters::Inside;
use super::plan::{BUILD_LIMIT, Plan, STEP_LIMIT, TURNS_LIMIT};
use crate::fleet::Fleet;
use crate::setup::sources;

/// How long a question that needs no work may take a guest that swaps.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// What one guest did.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Work {
    /// Compiling, from the common start to its own end.
    pub(crate) cpu_ms: u64,
    /// Its own turns of memory, without the waiting for them.
    pub(crate) memory_ms: u64,
    /// Files compiled.
    pub(crate) files: u64,
    /// Pages checked, and those of them with a wrong byte.
    pub(crate) checked_pages: u64,
    pub(crate) wrong_pages: u64,
    /// Its counters after boot, after compiling, and after its turns.
    pub(crate) inside: [Option<Inside>; 3],
    /// How it was lost, when it was: killed, hung, or with work that failed.
    pub(crate) lost: Option<String>,
}

/// How far a phase is, for who looks on.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) done: AtomicU64,
}

impl Progress {
    fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Gives every guest a place to swap to and the host's files.
pub(crate) fn prepare(fleet: &dyn Fleet, work: &mut [Work]) {
    each(fleet, work, &|fleet, index, work| {
        fleet.ask(index, "swapon /dev/ubda", ASK_LIMIT)?;
        fleet.ask(index, "hostfs", ASK_LIMIT)?;
        work.inside[0] = Some(inside(fleet, index)?);
        Ok(())
    });
}

/// All guests compile at the same time.
pub(crate) fn compile(
    fleet: &dyn Fleet,
    plan: &Plan,
    (seed, round): (u64, u64),
    work: &mut [Work],
    progress: &Progress,
) {
    let begin = Instant::now();
    let list = sources::list();
    each(fleet, work, &|fleet, index, work| {
        let first = plan.first_file(seed, round, u64::try_from(index)?);
        let command = format!("build {} {first} {}", list.display(), plan.files);
        let reply = fleet.ask(index, &command, BUILD_LIMIT)?;
        work.cpu_ms = ms(begin.elapsed());
        work.files = reply.number("made").unwrap_or(0);
        progress.step();
        Ok(())
    });
}

/// Guests fill, check twice and free most of their memory; as many at a time as the plan says, one after the other,
/// so that one which is slow holds up nobody but itself.
pub(crate) fn take_turns(fleet: &dyn Fleet, plan: &Plan, seed: u64, work: &mut [Work], progress: &Progress) {
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let turns = plan.rounds * plan.vms;
    let guests: Vec<_> = work.iter_mut().map(std::sync::Mutex::new).collect();
    std::thread::scope(|scope| {
        for _ in 0..plan.at_a_time {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let Ok(index) = usize::try_from(plan.guest_of_turn(seed, turn)) else { break };
                    let Some(guest) = guests.get(index).filter(|_| turn < turns) else { break };
                    // A guest whose last turn is not over is waited for: it has one turn at a time.
                    let mut work = guest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if work.lost.is_none() {
                        let outcome = if begin.elapsed() < TURNS_LIMIT {
                            turn_of(fleet, plan, turn, index, &mut work)
                        } else {
                            Err(anyhow::anyhow!("its turn did not come within {} s", TURNS_LIMIT.as_secs()))
                        };
                        note(outcome, &mut work);
                    }
                    progress.step();
                }
            });
        }
    });
}

/// Asks every guest for its counters.
pub(crate) fn look_inside(fleet: &dyn Fleet, moment: usize, work: &mut [Work]) {
    each(fleet, work, &|fleet, index, work| {
        let counters = inside(fleet, index)?;
        if let Some(slot) = work.inside.get_mut(moment) {
            *slot = Some(counters);
        }
        Ok(())
    });
}

fn turn_of(fleet: &dyn Fleet, plan: &Plan, turn: u64, index: usize, work: &mut Work) -> Result<()> {
    let begin = Instant::now();
    let fill = format!("fill {} {}", plan.fill.0, turn + 1);
    let mut outcome = Ok(());
    for command in [fill.as_str(), "verify", "verify", "free"] {
        match fleet.ask(index, command, STEP_LIMIT) {
            Ok(reply) => {
                work.wrong_pages += reply.number("bad_pages").unwrap_or(0);
                work.checked_pages +=
                    if command == "verify" { reply.number("pages").unwrap_or(0) } else { 0 };
            }
            Err(error) => {
                // The workload calls wrong bytes an error, and says how many pages.
                work.wrong_pages += number_in(&error.to_string(), "bad_pages=");
                outcome = Err(error);
                break;
            }
        }
    }
    work.memory_ms += ms(begin.elapsed());
    outcome
}

fn inside(fleet: &dyn Fleet, index: usize) -> Result<Inside> {
    Ok(Inside::from_reply(&fleet.ask(index, "vmstat", ASK_LIMIT)?))
}

/// Does something for every guest that is not lost, for all at once.
fn each(
    fleet: &dyn Fleet,
    work: &mut [Work],
    act: &(dyn Fn(&dyn Fleet, usize, &mut Work) -> Result<()> + Sync),
) {
    std::thread::scope(|scope| {
        for (index, work) in work.iter_mut().enumerate().filter(|(_, work)| work.lost.is_none()) {
            scope.spawn(move || note(act(fleet, index, work), work));
        }
    });
}

fn note(outcome: Result<()>, work: &mut Work) {
    if let Err(error) = outcome {
        let said = format!("{error:#}");
        work.lost = Some(said.lines().next().unwrap_or_default().chars().take(300).collect());
    }
}

/// The number behind a word in a line.
fn number_in(line: &str, key: &str) -> u64 {
    let digits = line.split_once(key).map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

pub(crate) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod test {
    use std::sync::Mutex;
    use std::time::Duration;

    use anyhow::{Result, bail};
    use plimsoll_testbed::guest::Reply;
    use plimsoll_units::Bytes;

    use super::{Progress, Work, number_in, take_turns};
    use crate::experiment::consolidation::plan::{Plan, Setting};
    use crate::fleet::{Fleet, Seen};

    /// Guests that note what they are told, and answer with an error to one word.
    struct Told {
        count: usize,
        refuses: Option<(usize, &'static str)>,
        told: Mutex<Vec<(usize, String)>>,
    }

    impl Fleet for Told {
        fn count(&self) -> usize {
            self.count
        }

        fn ask(&self, index: usize, command: &str, _: Duration) -> Result<Reply> {
            self.told.lock().expect("no panic").push((index, command.to_owned()));
            if self.refuses.is_some_and(|(guest, word)| guest == index && command.starts_with(word)) {
                bail!("`{command}`: reason=\"wrong bytes\" pages=9 bad_pages=3 bad_bytes=8");
            }
            Ok(Reply::of("ok pages=10 bad_pages=0"))
        }

        fn sizes(&self) -> Vec<Seen> {
            Vec::new()
        }
    }

    fn turns(refuses: Option<(usize, &'static str)>) -> (Vec<Work>, Vec<(usize, String)>) {
        let plan = Plan::new(Setting::Hard, 8, Bytes::mib(192)).expect("possible");
        let fleet = Told { count: 8, refuses, told: Mutex::default() };
        let mut work = vec![Work::default(); 8];
        let progress = Progress::default();
        take_turns(&fleet, &plan, 5, &mut work, &progress);
        assert_eq!(progress.done.load(std::sync::atomic::Ordering::Relaxed), plan.rounds * plan.vms);
        (work, fleet.told.into_inner().expect("no panic"))
    }

    #[test]
    fn every_guest_has_every_turn_whole() {
        let (work, told) = turns(None);
        assert!(work.iter().all(|work| work.lost.is_none() && work.checked_pages == 40), "{work:?}");
        let of_first: Vec<_> =
            told.iter().filter(|(guest, _)| *guest == 0).map(|(_, words)| words.as_str()).collect();
        assert_eq!(of_first.len(), 8);
        assert!(
            of_first[0].starts_with("fill ") && of_first[3] == "free" && of_first[4].starts_with("fill ")
        );
    }

    #[test]
    fn a_lost_guest_is_told_of_and_asked_no_more() {
        let (work, told) = turns(Some((2, "verify")));
        assert_eq!(work[2].wrong_pages, 3);
        assert!(work[2].lost.as_ref().is_some_and(|how| how.contains("wrong bytes")), "{:?}", work[2].lost);
        assert_eq!(told.iter().filter(|(guest, _)| *guest == 2).count(), 2);
        assert_eq!(work.iter().filter(|work| work.lost.is_some()).count(), 1);
    }

    #[test]
    fn numbers_are_found_in_a_line() {
        assert_eq!(number_in("error pages=4 bad_pages=12 x", "bad_pages="), 12);
        assert_eq!(number_in("bad_pages=7", "bad_pages="), 7);
        assert_eq!(number_in("nothing", "bad_pages="), 0);
    }
}
