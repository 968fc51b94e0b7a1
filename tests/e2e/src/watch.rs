//! Watching over VMs while something happens to them.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plimsoll_api::http::ListView;
use plimsoll_model::{Plan, Snapshot};
use plimsoll_testbed::guest::resident;
use plimsoll_units::Bytes;
use rustix::process::Pid;
use serde::Deserialize;

use crate::account::{Account, Positions};
use crate::{Bed, Said, Vm};

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What was seen at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// What the daemon said.
    pub list: ListView,
    /// The host's own count of all the guests' memory. Taken after the list; the guests move meanwhile.
    pub resident: Bytes,
}

/// Looks at the daemon and at the kernel ten times a second, on a thread of its own, from its start to its end.
///
/// What the daemon decided at each tick is in its journal, hence a [`Bed::journaled`] is needed.
#[derive(Debug)]
pub struct Watch<'b> {
    bed: &'b Bed,
    budget: Bytes,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Sample>>>,
    thread: Option<JoinHandle<()>>,
}

/// How an episode may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Never beyond the budget.
    Strict,
    /// Beyond it only by what guests take from their balloons by themselves, and for no longer than this.
    TakenFor(Duration),
}

impl<'b> Watch<'b> {
    /// Begins to watch over all VMs of a bed, which are these, until [`Watch::end`].
    ///
    /// # Panics
    /// When no thread can be started.
    #[must_use]
    pub fn begin(bed: &'b Bed, budget: Bytes, vms: &[&Vm<'_>]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut list = bed.command(&["list", "--json"]);
        let rams: Vec<_> = vms.iter().map(|vm| (vm.pid, vm.ram_dir())).collect();
        let (ending, samples) = (Arc::clone(&stop), Arc::clone(&seen));
        let run = move || {
            let mut last = false;
            while !last {
                // Once more when it is to end: what the test saw last is looked at as well.
                last = ending.load(Ordering::Relaxed);
                let at = Instant::now();
                let text = Said::by(&mut list).ok();
                let list = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
                let sample = Sample { at, list, resident: total(&rams) };
                samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                std::thread::park_timeout(PAUSE.saturating_sub(at.elapsed()));
            }
        };
        let thread =
            std::thread::Builder::new().name("watch".into()).spawn(run).expect("a thread can be started");
        let watch = Self { bed, budget, stop, seen, thread: Some(thread) };
        while watch.so_far().is_empty() {
            assert!(watch.thread.as_ref().is_some_and(|thread| !thread.is_finished()), "the watch gave up");
            std::thread::yield_now();
        }
        watch
    }

    /// What was seen so far.
    #[must_use]
    pub fn so_far(&self) -> Vec<Sample> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it and asserts, for every look of it and for every tick of the daemon's since it began, that no more was
    /// granted than was free and has been freed; that claims, the daemon's own sum of them and the host's count of
    /// memory stayed within the budget, or within what `limit` allows. Says what was moved, and all that was seen.
    ///
    /// # Panics
    /// When it was otherwise.
    #[track_caller]
    pub fn end(mut self, limit: Limit) -> (String, Vec<Sample>) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is ended once");
        thread.join().expect("the daemon answered all the time");
        let samples = self.so_far();
        let listed = self.check_lists(&samples, limit);
        let decided = self.check_ticks(&samples, limit);
        let mut said = String::new();
        let _ = write!(said, "{} looks: {listed}; {decided}", samples.len());
        (said, samples)
    }

    /// The books by what was listed.
    #[track_caller]
    fn check_lists(&self, samples: &[Sample], limit: Limit) -> Account {
        let mut books = Account::open(self.budget, Positions::listed(&samples[0].list));
        let mut beyond = Beyond { limit, since: None };
        for sample in samples {
            let positions = Positions::listed(&sample.list);
            let counted = sample.resident.plus(positions.overheads());
            let entered = books.enter(positions);
            entered.unwrap_or_else(|error| panic!("{error}\n{:#?}", sample.list));
            let claimed = sample.list.host.claimed;
            let most = books.beyond().max(claimed.minus(self.budget)).max(counted.minus(self.budget));
            let at_ms = u64::try_from(sample.at.duration_since(samples[0].at).as_millis()).expect("minutes");
            beyond.look(at_ms, most, books.taken).unwrap_or_else(|error| {
                panic!(
                    "{error}: {claimed} claimed by its own account, {counted} counted; {books}; {:#?}",
                    sample.list
                )
            });
        }
        books
    }

    /// The books by what was decided.
    #[track_caller]
    fn check_ticks(&self, samples: &[Sample], limit: Limit) -> String {
        let (first, last) = (samples[0].list.host.ticks, samples[samples.len() - 1].list.host.ticks);
        let ticks = self.bed.ticks();
        let during: Vec<_> = ticks.iter().filter(|tick| (first..=last).contains(&tick.number)).collect();
        assert!(during.len() >= 2, "{} ticks from {first} to {last}, of {}", during.len(), ticks.len());
        let [start, _] = Positions::around(&during[0].snapshot, &during[0].plan);
        let mut books = Account::open(self.budget, start);
        let mut beyond = Beyond { limit, since: None };
        for tick in &during {
            let [before, after] = Positions::around(&tick.snapshot, &tick.plan);
            assert_eq!(before.claimed(), tick.plan.claimed, "{tick:#?}");
            for positions in [before, after] {
                books.enter(positions).unwrap_or_else(|error| panic!("{error}\n{tick:#?}"));
            }
            let at_ms = tick.snapshot.now.0 / 1000;
            let looked = beyond.look(at_ms, books.beyond(), books.taken);
            looked.unwrap_or_else(|error| panic!("{error}; {books}; {tick:#?}"));
        }
        format!("{} ticks: {books}", during.len())
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It may have failed because of what the test fails of.
            let _ = thread.join();
        }
    }
}

fn total(rams: &[(Pid, Option<PathBuf>)]) -> Bytes {
    // A guest that is gone has nothing.
    rams.iter().map(|(pid, dir)| resident(*pid, dir.as_deref()).unwrap_or(Bytes::ZERO)).sum()
}

/// How long more than the budget was in use.
struct Beyond {
    limit: Limit,
    since: Option<u64>,
}

impl Beyond {
    fn look(&mut self, at_ms: u64, beyond: Bytes, taken: Bytes) -> Result<(), String> {
        if beyond == Bytes::ZERO {
            self.since = None;
            return Ok(());
        }
        let since = *self.since.get_or_insert(at_ms);
        match self.limit {
            Limit::TakenFor(most) if taken > Bytes::ZERO => {
                let for_ms = at_ms.saturating_sub(since);
                let late = u128::from(for_ms) > most.as_millis();
                if late { Err(format!("{beyond} beyond the budget for {for_ms} ms")) } else { Ok(()) }
            }
            Limit::Strict | Limit::TakenFor(_) => Err(format!("{beyond} beyond the budget")),
        }
    }
}

/// A tick as the daemon's journal has it.
#[derive(Clone, Debug)]
pub struct Tick {
    /// Which, from 1 with the start of the daemon, as [`plimsoll_api::http::HostView::ticks`] counts.
    pub number: u64,
    /// What was known.
    pub snapshot: Snapshot,
    /// What was decided.
    pub plan: Plan,
}

/// What is read of a journal's line.
#[derive(Deserialize)]
struct Line {
    kind: String,
    snapshot: Option<Snapshot>,
    plan: Option<Plan>,
}

impl Bed {
    /// Every tick of a [`Bed::journaled`] daemon's since its start.
    ///
    /// # Panics
    /// When there is no journal, or it cannot be read, or something is missing in it.
    #[must_use]
    #[track_caller]
    pub fn ticks(&self) -> Vec<Tick> {
        let path = self.journal_dir().join("journal.jsonl");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // The last line may still be being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(|line| {
            serde_json::from_str::<Line>(line)
                .unwrap_or_else(|error| panic!("{error} in the journal: {line}"))
        });
        let ticks = lines
            .inspect(|line| assert_ne!(line.kind, "lost"))
            .filter_map(|line| line.snapshot.zip(line.plan));
        (1..).zip(ticks).map(|(number, (snapshot, plan))| Tick { number, snapshot, plan }).collect()
    }
}
