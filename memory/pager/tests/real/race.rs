//! A guest that writes while it is swept: every byte is verified.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use plimsoll_units::PAGES_PER_FRAME;

use crate::fixture::{Dice, Guest, PATIENCE, goes_on, until};
use crate::memory::{Mapped, WORDS};

/// One of several threads that share a guest's memory, each with pages of its own.
#[derive(Clone, Copy)]
pub(crate) struct Actor {
    pub(crate) number: u64,
    pub(crate) of: u64,
    pub(crate) pages: u64,
    /// Pages that it keeps non-zero at most.
    pub(crate) most: usize,
    pub(crate) seed: u64,
}

impl Actor {
    /// What a page holds that was written as the `age`th thing.
    fn word(self, page: u64, at: u64, age: u64) -> u64 {
        Dice(page ^ at.rotate_left(20) ^ age.rotate_left(40)).next() | 1
    }

    /// Writes, clears and verifies until it is told to end; then verifies everything. Counts what it did.
    pub(crate) fn act(self, map: &Mapped, end: &AtomicBool, done: &AtomicU64) {
        let mut dice = Dice(self.seed ^ self.number.rotate_left(32));
        // Pages that are not zero, with the age of what they hold.
        let mut full: BTreeMap<u64, u64> = BTreeMap::new();
        let mut age = 0;
        while !end.load(Ordering::Relaxed) {
            age += 1;
            done.fetch_add(1, Ordering::Relaxed);
            let page = dice.below(self.pages / self.of) * self.of + self.number;
            match (dice.below(8), full.get(&page).copied()) {
                // Every kind of first access: reading, and writing to any word.
                (0..=2, Some(held)) => self.verify(map, page, Some(held)),
                (0..=2, None) => self.verify(map, page, None),
                (3..=5, _) if full.len() < self.most => {
                    self.fill(map, page, age, dice.below(WORDS));
                    full.insert(page, age);
                }
                (_, Some(_)) => {
                    (0..WORDS).for_each(|at| map.write(page, at, 0));
                    full.remove(&page);
                }
                (_, None) => {
                    let old = full.pop_first();
                    old.into_iter().for_each(|(page, held)| {
                        self.verify(map, page, Some(held));
                        (0..WORDS).for_each(|at| map.write(page, at, 0));
                    });
                }
            }
        }
        for page in (self.number..self.pages).step_by(usize::try_from(self.of).unwrap()) {
            self.verify(map, page, full.get(&page).copied());
        }
    }

    fn fill(self, map: &Mapped, page: u64, age: u64, from: u64) {
        (from..WORDS).chain(0..from).for_each(|at| map.write(page, at, self.word(page, at, age)));
    }

    fn verify(self, map: &Mapped, page: u64, held: Option<u64>) {
        for at in 0..WORDS {
            let right = held.map_or(0, |age| self.word(page, at, age));
            assert_eq!(map.read(page, at), right, "page {page}, word {at}, seed {}", self.seed);
        }
    }
}

/// Actors that share a guest's memory.
pub(crate) struct Actors {
    end: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<Receiver<()>>,
}

impl Actors {
    pub(crate) fn start(guest: &Guest, of: u64, nonzero: u64, seed: u64) -> Self {
        let (end, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pages = guest.pages();
        let most = usize::try_from(nonzero / of).unwrap();
        let start = |number| {
            let (end, done) = (Arc::clone(&end), Arc::clone(&done));
            guest.thread(move |map| Actor { number, of, pages, most, seed }.act(map, &end, &done))
        };
        let threads = (0..of).map(start).collect();
        Self { end, done, threads }
    }

    /// How much they did.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until they did so much more.
    #[track_caller]
    pub(crate) fn do_more(&self, actions: u64) {
        let before = self.done();
        until(|| self.done() >= before + actions);
    }

    /// Ends them.
    pub(crate) fn end(self) {
        self.end.store(true, Ordering::Relaxed);
        self.threads.iter().for_each(goes_on);
    }
}

fn seed() -> u64 {
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    u64::from(nanos)
}

/// Writers and sweeps against each other, within a target that makes them need the sweeps.
fn race(test: &str, seed: u64, time: Duration) {
    let Some(guest) = Guest::new(test, 24) else { return };
    let served = guest.served(12);
    let watcher = guest.watched(12 * PAGES_PER_FRAME);
    let actors = Actors::start(&guest, 3, 6 * PAGES_PER_FRAME, seed);
    let began = Instant::now();
    let mut rounds = 0;
    while began.elapsed() < time {
        served.sweep(PATIENCE).unwrap_or_else(|| panic!("a sweep does not end, seed {seed}"));
        rounds += 1;
        // Devices of the guest, in this process.
        let first = Dice(rounds).below(guest.pages() - 8);
        drop(served.pin(first, first + 8, PATIENCE).unwrap());
    }
    actors.do_more(1);
    until(|| served.status().totals.swept_pages > 0);
    actors.end();
    served.agree();
    assert!(watcher.end() <= 12 * PAGES_PER_FRAME);
}

#[test]
fn nothing_that_is_written_is_lost_in_sweeps() {
    race("nothing_that_is_written_is_lost_in_sweeps", 1, Duration::from_secs(3));
    race("nothing_that_is_written_is_lost_in_sweeps", seed(), Duration::from_secs(3));
}

#[test]
#[ignore = "ten minutes"]
fn nothing_that_is_written_is_lost_in_sweeps_for_ten_minutes() {
    race("nothing_that_is_written_is_lost_in_sweeps_for_ten_minutes", seed(), Duration::from_secs(600));
}
