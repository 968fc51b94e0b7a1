//! The memory a guest's workload holds, page by page.

mod grab;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use plimsoll_units::Bytes;

use crate::counters::Ticker;
use crate::pattern::{self, PAGE, Tag};

/// Pages mapped at a time: memory is given back in steps of this, 1 MiB.
const CHUNK_PAGES: usize = 256;
/// Chunks for which the list of them is made large enough beforehand, 16 GiB, whatever is asked for.
const MOST_RESERVED: usize = 1 << 14;
/// How many wrong pages `verify` describes.
const SHOWN: usize = 4;
/// How often a waiting command looks whether it was stopped.
const GLANCE: Duration = Duration::from_millis(20);

/// A mapping and what was written into it.
pub(crate) struct Chunk {
    map: MmapMut,
    seed: u64,
    first_page: u64,
    /// How often each page was rewritten; empty until one is. A heap that grew along with what is filled would
    /// leave a page of its own in every few MiB, and the kernel reports whole free blocks of 2 or 4 MiB only.
    generations: Vec<u32>,
}

impl Chunk {
    /// Maps `pages` pages and writes them; `first_page` is the number of the first.
    pub(crate) fn new(
        pages: usize,
        seed: u64,
        first_page: u64,
        residence: Residence,
    ) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(pages * PAGE)?;
        if residence == Residence::Locked {
            map.lock()?;
        }
        let mut chunk = Self { map, seed, first_page, generations: Vec::new() };
        for index in 0..chunk.pages() {
            chunk.write(index);
        }
        Ok(chunk)
    }

    /// Checks every byte.
    pub(crate) fn check(&self, verdict: &mut Verdict) {
        for index in 0..self.pages() {
            verdict.note(self.page(index), self.tag(index));
        }
    }

    fn tag(&self, index: usize) -> Tag {
        let generation = self.generations.get(index).copied().unwrap_or(0);
        Tag { seed: self.seed, page: self.first_page + to_u64(index), generation }
    }

    fn page(&self, index: usize) -> &[u8] {
        self.map.get(index * PAGE..(index + 1) * PAGE).unwrap_or_default()
    }

    fn write(&mut self, index: usize) {
        let tag = self.tag(index);
        if let Some(page) = self.map.get_mut(index * PAGE..(index + 1) * PAGE) {
            pattern::write(page, tag);
        }
    }

    fn rewrite(&mut self, index: usize) {
        if self.generations.is_empty() {
            self.generations = vec![0; self.pages()];
        }
        if let Some(generation) = self.generations.get_mut(index) {
            *generation = generation.wrapping_add(1);
        }
        self.write(index);
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.map.len() / PAGE
    }
}

/// All memory held.
#[derive(Default)]
pub(crate) struct Held {
    chunks: Vec<Chunk>,
    pages: usize,
    next_page: u64,
    random: u64,
}

/// How far a command came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// Pages dealt with.
    pub(crate) pages: u64,
    /// Whether it was stopped early.
    pub(crate) stopped: bool,
}

/// What a check of pages found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Pages looked at.
    pub(crate) pages: u64,
    /// Pages with a wrong byte.
    pub(crate) bad_pages: u64,
    /// Wrong bytes in all.
    pub(crate) bad_bytes: u64,
    /// The first few, in words.
    pub(crate) shown: Vec<String>,
    /// Whether it was stopped early.
    pub(crate) stopped: bool,
}

impl Verdict {
    fn note(&mut self, page: &[u8], tag: Tag) {
        self.pages += 1;
        let Some((wrong, offset)) = pattern::check(page, tag) else { return };
        self.bad_pages += 1;
        self.bad_bytes += wrong;
        if self.shown.len() < SHOWN {
            let found = page.get(offset).copied().unwrap_or(0);
            self.shown.push(format!("page={} offset={offset} wrong={wrong} byte={found:#04x}", tag.page));
        }
    }
}

/// Whether new memory is locked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residence {
    /// The kernel may swap it out.
    Free,
    /// `mlock`ed.
    Locked,
}

impl Held {
    /// The size of everything held.
    pub(crate) fn size(&self) -> Bytes {
        Bytes(to_u64(self.pages * PAGE))
    }

    /// Takes `size` more, rounded up to whole pages, and writes it. What was taken before an error stays held.
    pub(crate) fn fill(
        &mut self,
        size: Bytes,
        seed: u64,
        residence: Residence,
        job: &mut Job<'_>,
    ) -> std::io::Result<Done> {
        let wanted = usize::try_from(size.pages_ceil().0).map_err(std::io::Error::other)?;
        let mut left = wanted;
        self.chunks.reserve(wanted.div_ceil(CHUNK_PAGES).min(MOST_RESERVED));
        while left > 0 && !job.stopped() {
            let pages = left.min(CHUNK_PAGES);
            self.chunks.push(Chunk::new(pages, seed, self.next_page, residence)?);
            self.pages += pages;
            self.next_page += to_u64(pages);
            left -= pages;
            job.ticker.count(to_u64(pages));
        }
        Ok(Done { pages: to_u64(wanted - left), stopped: left > 0 })
    }

    /// Checks every byte of every page.
    pub(crate) fn verify(&self, job: &mut Job<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for chunk in &self.chunks {
            if job.stopped() {
                verdict.stopped = true;
                break;
            }
            chunk.check(&mut verdict);
            job.ticker.count(to_u64(chunk.pages()));
        }
        verdict
    }

    /// Gives back at least `size`, in whole chunks, those taken last first; all of it with `None`.
    pub(crate) fn free(&mut self, size: Option<Bytes>) -> Bytes {
        let before = self.pages;
        let wanted = size.map_or(before, |size| usize::try_from(size.pages_ceil().0).unwrap_or(before));
        while before - self.pages < wanted {
            let Some(chunk) = self.chunks.pop() else { break };
            self.pages -= chunk.pages();
        }
        Bytes(to_u64((before - self.pages) * PAGE))
    }

    /// Reads and checks pages picked at random for `time`, and rewrites every second one.
    pub(crate) fn touch(&mut self, time: Duration, rate: Option<u64>, job: &mut Job<'_>) -> Verdict {
        let begin = Instant::now();
        let mut verdict = Verdict::default();
        while begin.elapsed() < time {
            if job.stopped() {
                verdict.stopped = true;
                break;
            }
            if self.pages == 0 || rate.is_some_and(|rate| verdict.pages >= allowance(rate, begin.elapsed())) {
                job.ticker.count(0);
                std::thread::sleep(GLANCE.min(time.saturating_sub(begin.elapsed())));
                continue;
            }
            self.touch_one(&mut verdict);
            job.ticker.count(1);
        }
        verdict
    }

    fn touch_one(&mut self, verdict: &mut Verdict) {
        self.random = self.random.wrapping_add(1);
        let random = pattern::mix(self.random);
        // A chunk and a page in it are picked with equal chance; of a fill only the last chunk can be shorter.
        let n_chunks = to_u64(self.chunks.len());
        let Some(chunk) = usize::try_from(random % n_chunks).ok().and_then(|at| self.chunks.get_mut(at))
        else {
            return;
        };
        let Ok(index) = usize::try_from((random >> 32) % to_u64(chunk.pages())) else { return };
        verdict.note(chunk.page(index), chunk.tag(index));
        if random & (1 << 31) != 0 {
            chunk.rewrite(index);
        }
    }
}

/// How many pages may have been touched by now.
fn allowance(rate: u64, elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).map_or(u64::MAX, |ms| rate.saturating_mul(ms) / 1000)
}

/// What every long command is given: when to end early and where to count.
pub(crate) struct Job<'a> {
    /// Set when the command shall end.
    pub(crate) stop: &'a AtomicBool,
    /// Counts what was done in each second.
    pub(crate) ticker: Ticker<'a>,
}

impl Job<'_> {
    /// Whether the command shall end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits, ends early when stopped. True: the whole time went by.
    pub(crate) fn wait(&mut self, time: Duration) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < time {
            if self.stopped() {
                return false;
            }
            self.ticker.count(0);
            std::thread::sleep(GLANCE.min(time.saturating_sub(begin.elapsed())));
        }
        true
    }
}

/// Counts in memory fit 64 bits on every machine this is built for.
pub(crate) fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod test {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use plimsoll_units::Bytes;
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};

    use super::{Held, Job, Residence, to_u64};
    use crate::counters::Ticker;
    use crate::pattern::PAGE;

    fn with_job<T>(act: impl FnOnce(&mut Job<'_>) -> T) -> T {
        let stop = AtomicBool::new(false);
        let mut silent = |_: u64| {};
        act(&mut Job { stop: &stop, ticker: Ticker::new(&mut silent) })
    }

    #[test]
    fn what_was_filled_and_touched_verifies() {
        let mut held = Held::default();
        with_job(|job| held.fill(Bytes::mib(3), 5, Residence::Free, job)).expect("memory");
        with_job(|job| held.fill(Bytes(5000), 6, Residence::Free, job)).expect("memory");
        let touched = with_job(|job| held.touch(Duration::from_millis(20), None, job));
        assert!(touched.pages > 0 && touched.bad_pages == 0, "{touched:?}");
        let verdict = with_job(|job| held.verify(job));
        assert_eq!((verdict.pages, verdict.bad_pages), (768 + 2, 0));
    }

    #[test]
    fn a_lost_page_is_found_and_described() {
        let mut held = Held::default();
        with_job(|job| held.fill(Bytes::mib(2), 5, Residence::Free, job)).expect("memory");
        held.chunks[1].map[3 * PAGE..4 * PAGE].fill(0);
        let verdict = with_job(|job| held.verify(job));
        assert_eq!(verdict.bad_pages, 1);
        assert!(verdict.shown[0].starts_with("page=259 offset="), "{:?}", verdict.shown);
    }

    #[test]
    fn stop_ends_a_fill_early() {
        let mut held = Held::default();
        let stop = AtomicBool::new(true);
        let mut silent = |_: u64| {};
        let job = &mut Job { stop: &stop, ticker: Ticker::new(&mut silent) };
        let done = held.fill(Bytes::mib(3), 5, Residence::Free, job).expect("memory");
        assert!(done.stopped && done.pages == 0);
        assert_eq!(held.size(), Bytes::ZERO);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fill(u64),
        Free(Option<u64>),
    }

    proptest! {
        // Each case writes several MiB.
        #![proptest_config(proptest::test_runner::Config::with_cases(32))]
        #[test]
        fn size_is_what_was_filled_minus_what_was_freed(
            steps in proptest::collection::vec(prop_oneof![
                (1_u64..1200).prop_map(Step::Fill),
                any::<Option<u16>>().prop_map(|pages| Step::Free(pages.map(|pages| u64::from(pages) % 900))),
            ], 1..8)
        ) {
            let mut held = Held::default();
            let mut model = 0_u64;
            for step in steps {
                match step {
                    Step::Fill(pages) => {
                        with_job(|job| held.fill(Bytes(pages * 4096), 1, Residence::Free, job)).expect("memory");
                        model += pages * 4096;
                    }
                    Step::Free(pages) => {
                        let size = pages.map(|pages| Bytes(pages * 4096));
                        let freed = held.free(size).0;
                        assert!(freed >= size.map_or(model, |size| size.0).min(model));
                        assert!(freed < size.map_or(model, |size| size.0).saturating_add(1 << 20).max(1));
                        model -= freed;
                    }
                }
                assert_eq!(held.size().0, model);
                assert_eq!(to_u64(held.chunks.iter().map(super::Chunk::pages).sum::<usize>()) * 4096, model);
            }
            assert_eq!(with_job(|job| held.verify(job)).bad_pages, 0);
        }
    }
}
