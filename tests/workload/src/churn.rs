//! A load with the habits of a compiler: many blocks of mixed sizes, short lives, files in the page cache, and
//! work between one allocation and the next.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plimsoll_units::Bytes;

use crate::memory::{Chunk, Job, Residence, Verdict, to_u64};
use crate::pattern::{self, PAGE, Tag};

/// Where the files go: the tmpfs that the image's `/init` mounts.
const FILES: &str = "/tmp";
/// The largest block, in pages: 1 MiB. The smallest is 4 pages, and small ones are the most frequent.
const LARGEST_SHIFT: u64 = 8;
/// Bytes of a file.
const FILE_PAGES: usize = 64;
/// How often a block is read before it is freed.
const PASSES: usize = 3;

/// What a churn did.
#[derive(Debug, Default)]
pub(crate) struct Churned {
    /// Blocks allocated and written.
    pub(crate) blocks: u64,
    /// Files written.
    pub(crate) files: u64,
    /// The most that was held at one time.
    pub(crate) peak: Bytes,
    /// What the checks before freeing found.
    pub(crate) verdict: Verdict,
}

/// Everything alive.
struct Churn {
    blocks: Vec<Chunk>,
    block_pages: usize,
    files: Vec<PathBuf>,
    random: u64,
    next_page: u64,
    done: Churned,
}

/// Allocates, reads and frees for `time`, at most `size` at once, a quarter of it in files.
pub(crate) fn run(time: Duration, size: Bytes, job: &mut Job<'_>) -> std::io::Result<Churned> {
    let begin = Instant::now();
    let pages = usize::try_from(size.pages_floor().0).map_err(std::io::Error::other)?;
    let mut churn = Churn {
        blocks: Vec::new(),
        block_pages: 0,
        files: Vec::new(),
        random: 0x6368_7572_6e00,
        next_page: 0,
        done: Churned::default(),
    };
    let outcome = churn.live(begin, time, pages, job);
    // Files are removed whether or not memory gave out.
    while churn.remove_file()? {}
    outcome?;
    while !churn.blocks.is_empty() {
        churn.free_one();
    }
    Ok(churn.done)
}

impl Churn {
    fn live(
        &mut self,
        begin: Instant,
        time: Duration,
        pages: usize,
        job: &mut Job<'_>,
    ) -> std::io::Result<()> {
        while begin.elapsed() < time {
            if job.stopped() {
                self.done.verdict.stopped = true;
                return Ok(());
            }
            match self.pick(16) {
                0 => self.write_file(pages / 4)?,
                1..=8 => self.allocate(pages - pages / 4)?,
                _ if self.block_pages > pages / 4 => self.free_one(),
                _ => self.allocate(pages - pages / 4)?,
            }
            let held = to_u64((self.block_pages + self.files.len() * FILE_PAGES) * PAGE);
            self.done.peak = self.done.peak.max(Bytes(held));
            job.ticker.count(1);
        }
        Ok(())
    }

    /// A number below `bound`.
    fn pick(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(1);
        let random = pattern::mix(self.random) % to_u64(bound.max(1));
        usize::try_from(random).unwrap_or(0)
    }

    fn allocate(&mut self, limit: usize) -> std::io::Result<()> {
        let shift = 2 + self.pick(7).min(self.pick(7));
        debug_assert!(to_u64(shift) <= LARGEST_SHIFT, "the largest block is 1 MiB");
        let pages = 1_usize << shift;
        while self.block_pages + pages > limit && !self.blocks.is_empty() {
            self.free_one();
        }
        self.blocks.push(Chunk::new(pages, self.random, self.next_page, Residence::Free)?);
        self.block_pages += pages;
        self.next_page += to_u64(pages);
        self.done.blocks += 1;
        Ok(())
    }

    fn free_one(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let at = self.pick(self.blocks.len());
        let block = self.blocks.swap_remove(at);
        for _ in 0..PASSES {
            block.check(&mut self.done.verdict);
        }
        self.block_pages -= block.pages();
    }

    fn write_file(&mut self, limit: usize) -> std::io::Result<()> {
        if FILE_PAGES > limit {
            return Ok(());
        }
        while (self.files.len() + 1) * FILE_PAGES > limit {
            self.remove_file()?;
        }
        let mut bytes = vec![0; FILE_PAGES * PAGE];
        pattern::write(&mut bytes, Tag { seed: self.random, page: self.done.files, generation: 0 });
        let path = Path::new(FILES).join(format!("churn-{}-{}", std::process::id(), self.done.files));
        self.files.push(path.clone());
        self.done.files += 1;
        std::fs::write(path, bytes)
    }

    /// Removes the oldest file. False: there was none.
    fn remove_file(&mut self) -> std::io::Result<bool> {
        if self.files.is_empty() {
            return Ok(false);
        }
        match std::fs::remove_file(self.files.remove(0)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(true),
        }
    }
}

#[cfg(test)]
mod test {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use plimsoll_units::Bytes;

    use super::run;
    use crate::counters::Ticker;
    use crate::memory::Job;

    #[test]
    fn it_stays_below_its_size_checks_what_it_frees_and_removes_its_files() {
        let stop = AtomicBool::new(false);
        let mut silent = |_: u64| {};
        let mut job = Job { stop: &stop, ticker: Ticker::new(&mut silent) };
        let done = run(Duration::from_millis(200), Bytes::mib(8), &mut job).expect("memory and /tmp");
        assert!(done.blocks > 10, "{done:?}");
        assert!(done.peak <= Bytes::mib(8) && done.peak > Bytes::mib(1), "{done:?}");
        assert!(done.verdict.pages > 0 && done.verdict.bad_pages == 0, "{done:?}");
        let mine = format!("churn-{}-", std::process::id());
        let left = std::fs::read_dir("/tmp").expect("readable").flatten();
        assert!(left.filter(|file| file.file_name().to_string_lossy().starts_with(&mine)).count() == 0);
    }
}
