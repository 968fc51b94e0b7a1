//! Finding pages that hold nothing but the scrub pattern, by reading them.
//!
//! Reading is pread(2) into a buffer that stays in the processor's cache, never a load through a mapping: a hole would be filled by
//! it. (Pages that are swapped out are read back in; there is no call that tells them apart without a mapping.)

use std::os::fd::OwnedFd;

use plimsoll_units::PAGE_SIZE;
use rustix::io::Errno;

use crate::file::{GuestFile, Pages};
use crate::{Scrub, StartError};

/// Bytes read at once: few system calls, and little enough to be still in the cache when looked at.
const PIECE: usize = 256 << 10;
/// Bytes read at first where one page that holds something else is enough to know.
const FIRST_PIECE: usize = 32 << 10;
/// Bytes of a page that are looked at before it may be given up.
const STRIDE: usize = 512;
/// Runs with gaps of at most so many pages between them are protected as one.
const BRIDGED: u64 = 8;

/// Reads memory and tells which pages hold the pattern.
#[derive(Debug)]
pub struct Scanner {
    buffer: Vec<u8>,
    scrub: Scrub,
}

/// A file to be scanned, for measurements; a pager has its own.
#[derive(Debug)]
pub struct Scannable(GuestFile);

impl Scannable {
    /// Takes a file on tmpfs.
    ///
    /// # Errors
    /// [`StartError`] for any other.
    pub fn new(memory: OwnedFd) -> Result<Self, StartError> {
        GuestFile::new(memory).map(Self)
    }
}

impl Scanner {
    /// One that looks for pages of this pattern.
    #[must_use]
    pub fn new(scrub: Scrub) -> Self {
        Self { buffer: vec![0; PIECE], scrub }
    }

    /// Appends the runs of pages that hold the pattern, `within` some pages of a file. Holes hold zeros.
    ///
    /// # Errors
    /// What pread(2) answers.
    pub fn scan(
        &mut self,
        file: &Scannable,
        within: std::ops::Range<u64>,
        out: &mut Vec<std::ops::Range<u64>>,
    ) -> Result<(), Errno> {
        self.find(&file.0, &within, out)
    }

    pub(crate) fn find(
        &mut self,
        file: &GuestFile,
        within: &Pages,
        out: &mut Vec<Pages>,
    ) -> Result<(), Errno> {
        let mut at = within.start;
        while at < within.end {
            let word = self.scrub.word();
            let pages = self.read(file, &(at..within.end), PIECE)?;
            if pages.is_empty() {
                // The file ends here: somebody cut it.
                return Ok(());
            }
            for page in pages {
                if holds(page, word) {
                    push(out, at);
                }
                at = at.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Whether all of these pages hold the pattern. Reads little where they do not.
    pub(crate) fn is_all_empty(&mut self, file: &GuestFile, pages: &Pages) -> Result<bool, Errno> {
        let (mut at, mut piece) = (pages.start, FIRST_PIECE);
        while at < pages.end {
            let word = self.scrub.word();
            let read = self.read(file, &(at..pages.end), piece)?;
            if read.is_empty() || !read.iter().all(|page| holds(page, word)) {
                return Ok(false);
            }
            at = at.saturating_add(u64::try_from(read.len()).unwrap_or(u64::MAX));
            piece = PIECE;
        }
        Ok(true)
    }

    /// Reads pages from the first of these on, as many as fit into `most` bytes.
    fn read(&mut self, file: &GuestFile, pages: &Pages, most: usize) -> Result<&[[u8; PAGE_BYTES]], Errno> {
        let wanted = pages.end.saturating_sub(pages.start).saturating_mul(PAGE_SIZE);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(most);
        let read = file.read(pages.start, self.buffer.get_mut(..wanted).unwrap_or_default())?;
        Ok(self.buffer.get(..read).unwrap_or_default().as_chunks().0)
    }
}

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_SIZE == 4096 && PIECE.is_multiple_of(PAGE_BYTES));

/// Whether a page is `word` over and over. Written so that the compiler makes vector instructions of it: all words of a stride
/// are looked at, and only then is decided.
#[inline]
fn holds(page: &[u8; PAGE_BYTES], word: u64) -> bool {
    let (strides, _) = page.as_chunks::<STRIDE>();
    strides.iter().all(|stride| {
        let (words, _) = stride.as_chunks::<8>();
        words.iter().fold(0, |odd, bytes| odd | (u64::from_ne_bytes(*bytes) ^ word)) == 0
    })
}

/// Appends a page to ascending runs.
fn push(runs: &mut Vec<Pages>, page: u64) {
    match runs.last_mut() {
        Some(last) if last.end == page => last.end = page.saturating_add(1),
        _ => runs.push(page..page.saturating_add(1)),
    }
}

/// Runs that cover the given ones, with small gaps filled: fewer calls for what is done to each.
pub(crate) fn bridged(runs: &[Pages]) -> Vec<Pages> {
    let mut out: Vec<Pages> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some(last) if run.start.saturating_sub(last.end) <= BRIDGED => last.end = last.end.max(run.end),
            _ => out.push(run.clone()),
        }
    }
    out
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;
    use crate::file::test::memory;

    const PATTERN: Scrub = Scrub::pattern(*b"scrubbed");

    fn found(file: &GuestFile, scrub: Scrub, within: Pages) -> Vec<u64> {
        let mut runs = Vec::new();
        Scanner::new(scrub).find(file, &within, &mut runs).unwrap();
        runs.into_iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn one_other_byte_anywhere_makes_a_page_another(at in 0..PAGE_BYTES, byte: u8, word: u64) {
            let mut page = [0; PAGE_BYTES];
            for words in page.chunks_exact_mut(8) {
                words.copy_from_slice(&word.to_ne_bytes());
            }
            prop_assert!(holds(&page, word));
            let before = page[at];
            page[at] = byte;
            prop_assert_eq!(holds(&page, word), byte == before);
        }

        #[test]
        fn the_pages_found_are_those_with_the_pattern(
            kinds in proptest::collection::vec(0..4_u8, 1..200), zero: bool, start in 0..20_u64,
        ) {
            let pages = u64::try_from(kinds.len()).unwrap();
            let file = memory(pages);
            for (page, kind) in (0..).zip(&kinds) {
                let content = match kind {
                    0 => continue,
                    1 => [0; PAGE_BYTES].to_vec(),
                    2 => PATTERN.word().to_ne_bytes().repeat(PAGE_BYTES / 8),
                    _ => [vec![0; PAGE_BYTES - 1], vec![1]].concat(),
                };
                file.write(page, &content).unwrap();
            }
            let start = start.min(pages);
            let before = file.allocated().unwrap();
            let (scrub, wanted): (_, &[u8]) = if zero { (Scrub::ZERO, &[0, 1]) } else { (PATTERN, &[2]) };
            let right: Vec<u64> = (0..).zip(&kinds).filter(|(page, kind)| *page >= start && wanted.contains(kind)).map(|(page, _)| page).collect();
            prop_assert_eq!(found(&file, scrub, start..pages), right.clone());
            let all = Scanner::new(scrub).is_all_empty(&file, &(start..pages)).unwrap();
            prop_assert_eq!(u64::try_from(right.len()).unwrap() == pages - start, all);
            prop_assert_eq!(file.allocated().unwrap(), before, "scanning filled holes");
        }

        #[test]
        fn bridged_runs_cover_all_and_are_apart(pages in proptest::collection::btree_set(0..500_u64, 0..100)) {
            let mut runs = Vec::new();
            pages.iter().for_each(|page| push(&mut runs, *page));
            let wide = bridged(&runs);
            for run in &runs {
                prop_assert!(wide.iter().any(|one| one.start <= run.start && run.end <= one.end));
            }
            prop_assert!(wide.windows(2).all(|two| two[0].end + BRIDGED < two[1].start));
            let most: u64 = runs.iter().map(|run| run.end - run.start + BRIDGED).sum();
            prop_assert!(wide.iter().map(|run| run.end - run.start).sum::<u64>() <= most);
        }
    }

    #[test]
    fn a_file_that_ends_early_is_read_to_its_end() {
        let file = memory(10);
        assert_eq!(found(&file, Scrub::ZERO, 8..300), [8, 9]);
        assert!(Scanner::new(Scrub::ZERO).is_all_empty(&file, &(8..10)).unwrap());
        assert!(!Scanner::new(Scrub::ZERO).is_all_empty(&file, &(8..11)).unwrap());
    }
}
