//! Memory that is promised in one piece before the first page of it is written.

use memmap2::MmapMut;
use plimsoll_units::Bytes;

use super::{CHUNK_PAGES, Chunk, Done, Held, Job, PAGE, to_u64};

impl Held {
    /// Takes `size` more, rounded up to whole pages, in one mapping, and then writes it. The kernel promises all of it
    /// at once (`Committed_AS`), as it does to programs that allocate a large heap; [`Held::fill`] is promised 1 MiB
    /// at a time. It is given back in one piece. Stopped early, nothing of it stays.
    pub(crate) fn grab(&mut self, size: Bytes, seed: u64, job: &mut Job<'_>) -> std::io::Result<Done> {
        let pages = usize::try_from(size.pages_ceil().0).map_err(std::io::Error::other)?;
        let bytes = pages.checked_mul(PAGE).ok_or(std::io::ErrorKind::OutOfMemory)?;
        if pages == 0 {
            return Ok(Done { pages: 0, stopped: false });
        }
        let map = MmapMut::map_anon(bytes)?;
        let mut chunk = Chunk { map, seed, first_page: self.next_page, generations: Vec::new() };
        for begin in (0..pages).step_by(CHUNK_PAGES) {
            if job.stopped() {
                return Ok(Done { pages: 0, stopped: true });
            }
            let end = pages.min(begin + CHUNK_PAGES);
            (begin..end).for_each(|index| chunk.write(index));
            job.ticker.count(to_u64(end - begin));
        }
        self.chunks.push(chunk);
        self.pages += pages;
        self.next_page += to_u64(pages);
        Ok(Done { pages: to_u64(pages), stopped: false })
    }
}

#[cfg(test)]
mod test {
    use std::sync::atomic::AtomicBool;

    use plimsoll_units::Bytes;

    use crate::counters::Ticker;
    use crate::memory::{Held, Job, Residence};

    fn grab(held: &mut Held, size: Bytes, stop: bool) -> std::io::Result<super::Done> {
        let stop = AtomicBool::new(stop);
        let mut silent = |_: u64| {};
        let mut job = Job { stop: &stop, ticker: Ticker::new(&mut silent) };
        let taken = held.fill(Bytes::mib(1), 3, Residence::Free, &mut job)?;
        assert_eq!(taken.stopped, stop.load(std::sync::atomic::Ordering::Relaxed));
        held.grab(size, 7, &mut job)
    }

    #[test]
    fn it_is_written_and_given_back_in_one_piece() {
        let mut held = Held::default();
        let done = grab(&mut held, Bytes(5 * (1 << 20) + 1), false).expect("memory");
        assert_eq!((done.pages, done.stopped), (5 * 256 + 1, false));
        let stop = AtomicBool::new(false);
        let mut silent = |_: u64| {};
        let mut job = Job { stop: &stop, ticker: Ticker::new(&mut silent) };
        let verdict = held.verify(&mut job);
        assert_eq!((verdict.pages, verdict.bad_pages), (6 * 256 + 1, 0));
        assert_eq!(held.free(Some(Bytes(1))), Bytes((5 * 256 + 1) * 4096));
        assert_eq!(held.size(), Bytes::mib(1));
    }

    #[test]
    fn what_cannot_be_or_was_stopped_leaves_nothing() {
        let mut held = Held::default();
        grab(&mut held, Bytes(u64::MAX), false).expect_err("no machine has that");
        assert_eq!(held.size(), Bytes::mib(1));
        let stopped = grab(&mut held, Bytes::mib(3), true).expect("nothing is taken");
        assert!(stopped.stopped && stopped.pages == 0);
        assert_eq!(grab(&mut held, Bytes::ZERO, false).expect("nothing").pages, 0);
        assert_eq!(held.size(), Bytes::mib(2));
    }
}
