//! Putting memory behind pages.
//!
//! Three ways, all of which leave no page in a state in which the file would call it a hole (a page that fallocate(2) reserved is
//! one to `SEEK_DATA` until somebody touches it):
//!
//! * **A frame in one piece**, where huge pages are to be had: one zero byte is written to its first page. The kernel then makes
//!   the whole huge page, fills it with zeros while nobody can see it, and lets it be mapped as one. Only into a hole, and
//!   nothing is written afterwards, for the guest may be using the page the moment it is there. Where the kernel gave less
//!   than 2 MiB the rest comes the second way, and the next frames are not tried.
//! * **Zero pages** by the userfaultfd, any number at once.
//! * **Pages with a pattern**, written into holes ([`Scrub`]).

use std::sync::atomic::{AtomicU32, Ordering};

use plimsoll_uffd::HugePages;
use plimsoll_units::{PAGE_SIZE, PAGES_PER_FRAME};
use rustix::io::Errno;

use crate::Scrub;
use crate::file::{GuestFile, Pages};
use crate::mapping::{Filled, Mapping, Unfilled};

/// Frames that are filled with small pages after one for which there was no huge page.
const PAUSE: u32 = 64;

/// How a guest's pages are filled.
#[derive(Debug)]
pub(crate) struct Filler {
    huge: bool,
    /// Frames until a huge page is tried again.
    pause: AtomicU32,
    /// A frame full of the pattern; empty for zeros.
    pattern: Vec<u8>,
}

impl Filler {
    pub(crate) fn new(huge: HugePages, scrub: Scrub) -> Self {
        let word = scrub.word().to_ne_bytes();
        let words = PAGES_PER_FRAME.saturating_mul(PAGE_SIZE / 8);
        let pattern = if scrub == Scrub::ZERO { 0 } else { usize::try_from(words).unwrap_or(0) };
        Self { huge: huge != HugePages::Never, pause: AtomicU32::new(0), pattern: word.repeat(pattern) }
    }

    /// Fills pages of one frame, as many as there is memory for. Nobody is woken.
    pub(crate) fn fill(&self, file: &GuestFile, mapping: &Mapping, pages: &Pages) -> Filled {
        if !self.pattern.is_empty() {
            return self.write_pattern(file, pages);
        }
        let whole = pages.start.is_multiple_of(PAGES_PER_FRAME)
            && pages.end.checked_sub(pages.start) == Some(PAGES_PER_FRAME);
        let mut from = pages.start;
        if whole && self.is_to_be_tried() {
            match self.in_one_piece(file, pages) {
                Ok(end) => from = end,
                Err(errno) => return Filled { end: from, why: Some(Unfilled::Refused(errno)) },
            }
        }
        mapping.zero(&(from..pages.end))
    }

    fn is_to_be_tried(&self) -> bool {
        let left = self.pause.load(Ordering::Relaxed);
        // Two threads may count one frame; it is only how often that changes.
        self.pause.store(left.saturating_sub(1), Ordering::Relaxed);
        self.huge && left == 0
    }

    /// Asks for a huge page. Returns how far memory came.
    fn in_one_piece(&self, file: &GuestFile, frame: &Pages) -> Result<u64, Errno> {
        if file.next_data(frame.start)?.is_some_and(|page| page < frame.end) {
            // Somebody put something there unseen: not to be written over.
            return Ok(frame.start);
        }
        file.write(frame.start, &[0])?;
        let end = file.next_hole(frame.start)?.min(frame.end);
        if end < frame.end {
            self.pause.store(PAUSE, Ordering::Relaxed);
        }
        Ok(end)
    }

    fn write_pattern(&self, file: &GuestFile, pages: &Pages) -> Filled {
        let mut from = pages.start;
        while from < pages.end {
            match self.write_hole(file, &(from..pages.end)) {
                Ok(end) if end > from => from = end,
                // A call that writes nothing and says nothing would be called for ever.
                Ok(_) => return Filled { end: from, why: Some(Unfilled::Refused(Errno::NOSPC)) },
                Err(errno) => return Filled { end: from, why: Some(Unfilled::Refused(errno)) },
            }
        }
        Filled { end: pages.end, why: None }
    }

    /// Fills the hole at the start of `pages`, or goes past what is no hole there. Returns how far that is.
    fn write_hole(&self, file: &GuestFile, pages: &Pages) -> Result<u64, Errno> {
        let data = file.next_data(pages.start)?.unwrap_or(pages.end).min(pages.end);
        if data == pages.start {
            return Ok(file.next_hole(pages.start)?.min(pages.end));
        }
        let most = usize::try_from(data.saturating_sub(pages.start).saturating_mul(PAGE_SIZE));
        let hole = self.pattern.get(..most.unwrap_or(usize::MAX)).unwrap_or(&self.pattern);
        let written = u64::try_from(file.write(pages.start, hole)?).unwrap_or(0);
        Ok(pages.start.saturating_add(written / PAGE_SIZE))
    }
}
