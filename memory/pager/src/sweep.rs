//! One sweep: finding pages that hold nothing but the scrub pattern, and taking them, while the guest runs.
//!
//! ```text
//! candidates of the ledger -> look at them as they are -> protect what looks empty -> look again -> swept
//!                                                                                              |
//!   this thread                                                                                |  a chunk
//! ---------------------------------------------------------------------------------------------+----------
//!   its helper                                                       punch -> discarded -> lift, wake
//! ```
//!
//! **Whole frames first.** A frame that is taken in pieces comes back in pieces, and never as a huge page. So for a guest that
//! waits, frames without anything in them are looked for first; that is quick, since a frame is left at the first page with something
//! in it. Only if that makes no room, single pages are looked for.
//!
//! The first look keeps protection away from pages that are in use: to protect a page the kernel takes a huge mapping apart, and
//! whoever writes to it waits. While nearly all that is looked at is empty, it is left out. Only the second look counts. A chunk is
//! protected as long as it takes to look at 8 MiB and to punch twice as much: some milliseconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SendError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use plimsoll_frames::{Batch, Discard, Extent};
use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::file::Pages;
use crate::mapping::Unfilled;
use crate::punch::{count, pieces};
use crate::scan::{Scanner, bridged};
use crate::shared::{Shared, after, pages_of};
use crate::status::{PagerEvent, SweepReport};

/// Frames asked of the ledger at once.
const BATCH_FRAMES: usize = 64;
/// Pages protected, looked at and punched at once: 8 MiB.
const CHUNK: u64 = 4 * PAGES_PER_FRAME;
/// Of what was looked at, the part that was empty and lets the next chunk go without a first look: seven eighths.
const SURE: (u64, u64) = (7, 8);
/// Somebody who has waited for so long is told of, even if the sweep goes on.
const LONG: Duration = Duration::from_millis(100);

/// When to lift protection again that could not be lifted.
const LIFT_AGAIN: Duration = Duration::from_millis(10);

/// How closely a sweep looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SweepDepth {
    /// At frames of 2 MiB: those are taken of which all pages are empty. Quick, and huge pages that are in use stay whole.
    WholeFrames,
    /// At every page.
    Pages,
}

/// What is to be done with a chunk that has been looked at.
#[derive(Debug)]
struct Job {
    protected: Vec<Pages>,
    discards: Vec<Discard>,
}

/// A sweep under way.
struct Pass<'a, W> {
    shared: &'a Shared<W>,
    scanner: &'a mut Scanner,
    depth: SweepDepth,
    goal: u64,
    report: SweepReport,
    /// Nearly all of the last chunk was empty.
    sure: bool,
    jobs: SyncSender<Job>,
    done: Receiver<bool>,
    /// Chunks with the helper.
    pending: usize,
    /// Whether the protection of all chunks of this batch was lifted.
    lifted: bool,
}

impl<W: AsRef<[AtomicU64]> + Send> Shared<W> {
    /// Sweeps until `goal` pages were taken, or everything was looked at.
    pub(crate) fn sweep(&self, scanner: &mut Scanner, depth: SweepDepth, goal: u64) -> SweepReport {
        let began = Instant::now();
        let mut state = self.lock();
        state.sweep.running = true;
        state.ledger.begin_sweep();
        drop(state);
        let mut report = std::thread::scope(|scope| {
            let (jobs, todo) = sync_channel::<Job>(1);
            let (say, done) = sync_channel(BATCH_FRAMES);
            let helper = move || todo.iter().all(|job| say.send(self.finish(&job)).is_ok());
            // Without a helper its end of the channel is gone, and the work is done here.
            let _ = std::thread::Builder::new().name("pod-punch".to_owned()).spawn_scoped(scope, helper);
            let report = SweepReport::default();
            let (sure, pending, lifted) = (false, 0, true);
            let mut pass =
                Pass { shared: self, scanner, depth, goal, report, sure, jobs, done, pending, lifted };
            pass.run();
            pass.report
        });
        report.elapsed = began.elapsed();
        let mut state = self.lock();
        state.sweep.running = false;
        state.sweep.runs = state.sweep.runs.saturating_add(1);
        state.sweep.pages = state.sweep.pages.saturating_add(report.pages);
        state.sweep.last = Some(report);
        self.settle(state);
        report
    }

    /// Punches what was taken of a chunk, and lifts its protection. Returns whether that went well.
    fn finish(&self, job: &Job) -> bool {
        for discard in &job.discards {
            for piece in pieces(&pages_of(discard), CHUNK) {
                self.discard(&piece);
            }
        }
        let mut lifted = true;
        for pages in &job.protected {
            lifted &= self.lift(pages);
        }
        // A discard of a whole frame reaches beyond what was protected.
        for discard in &job.discards {
            self.wake(&pages_of(discard));
        }
        lifted
    }

    /// Lifts protection. Returns whether there is none any more.
    fn lift(&self, pages: &Pages) -> bool {
        match self.mapping.lift(pages) {
            Ok(()) => true,
            // Nobody has it mapped.
            Err(Unfilled::Unmapped | Unfilled::Gone) => true,
            Err(Unfilled::Busy | Unfilled::Refused(_)) => false,
        }
    }

    /// Lifts what a batch has protected that could not be lifted, or that a process before this one left. Returns
    /// whether there is none any more.
    pub(crate) fn lift_leftover(&self) -> bool {
        let protected = self.lock().ledger.protected();
        let lifted = protected.is_none_or(|extent| self.lift(&(extent.first..extent.end())));
        self.end_batch(lifted);
        lifted
    }

    fn end_batch(&self, lifted: bool) {
        let mut state = self.lock();
        if lifted {
            state.ledger.end_batch();
        } else {
            state.sweep.lift_at = Some(after(LIFT_AGAIN));
            self.work.notify_one();
        }
    }

    /// Tells that the guest is exhausted, if somebody has waited for room this long and it was not told yet.
    pub(crate) fn raise_exhausted(&self, long: Duration) {
        let mut state = self.lock();
        let waited = state.stalled_since.is_some_and(|since| since.elapsed() >= long);
        let residency = state.ledger.residency();
        if waited
            && !state.waiting.is_empty()
            && residency.room().0 == 0
            && !std::mem::replace(&mut state.told.exhausted, true)
        {
            let waiting = state.waiting.len();
            drop(state);
            (self.tell)(PagerEvent::Exhausted { residency, waiting });
        }
    }
}

impl<W: AsRef<[AtomicU64]> + Send> Pass<'_, W> {
    fn run(&mut self) {
        while !self.is_to_end() {
            let mut extents = Vec::new();
            let batch = self.shared.lock().ledger.next_batch(BATCH_FRAMES, &mut extents);
            match batch {
                Batch::Scan => self.batch(&extents),
                Batch::Nothing => {}
                Batch::Over => {
                    self.report.whole = true;
                    return;
                }
                Batch::Open if self.shared.lift_leftover() => {}
                Batch::Open => return,
            }
            self.shared.raise_exhausted(LONG);
        }
    }

    fn is_to_end(&self) -> bool {
        // The ledger shows frames again that are populated meanwhile, and first: a guest that is quick enough would keep a sweep
        // going for ever.
        self.report.looked >= self.shared.file.pages().saturating_mul(2)
            || self.report.pages >= self.goal
            || self.shared.is_stopping()
            || self.shared.gone.load(Ordering::Acquire)
    }

    fn batch(&mut self, extents: &[Extent]) {
        let chunks = chunks(extents);
        match self.shared.settings.around_discard.clone() {
            None => chunks.iter().for_each(|chunk| self.chunk(chunk)),
            Some(around) => {
                let empty: Vec<_> = chunks.iter().map(|chunk| self.look(chunk)).collect();
                let mut empty: Vec<_> = empty.into_iter().filter(|chunk| !chunk.is_empty()).collect();
                if !empty.is_empty() {
                    around(&mut || self.all_here(&std::mem::take(&mut empty)));
                }
            }
        }
        while self.pending > 0 {
            self.lifted &= self.done.recv().unwrap_or(false);
            self.pending = self.pending.saturating_sub(1);
        }
        self.shared.end_batch(std::mem::replace(&mut self.lifted, true));
    }

    /// One chunk, of which the helper does the second half.
    fn chunk(&mut self, chunk: &[Pages]) {
        if self.is_to_end() {
            return;
        }
        let empty = if self.sure {
            self.report.looked = self.report.looked.saturating_add(count(chunk).0);
            chunk.to_vec()
        } else {
            self.look(chunk)
        };
        let of_these = count(chunk);
        if empty.is_empty() {
            return;
        }
        let (job, found) = self.take(empty);
        self.sure = found.0.saturating_mul(SURE.1) >= of_these.0.saturating_mul(SURE.0);
        match self.jobs.send(job) {
            Ok(()) => self.pending = self.pending.saturating_add(1),
            Err(SendError(job)) => self.lifted &= self.shared.finish(&job),
        }
    }

    /// Everything at once, in this thread: somebody holds the VM's own I/O meanwhile.
    fn all_here(&mut self, chunks: &[Vec<Pages>]) {
        for chunk in chunks {
            let (job, _) = self.take(chunk.clone());
            self.lifted &= self.shared.finish(&job);
        }
    }

    /// The first look: pages that are empty now, and may be written to.
    fn look(&mut self, chunk: &[Pages]) -> Vec<Pages> {
        self.report.looked = self.report.looked.saturating_add(count(chunk).0);
        match self.depth {
            SweepDepth::Pages => self.empty_of(chunk),
            SweepDepth::WholeFrames => self.empty_frames(chunk),
        }
    }

    /// What of a chunk lies in frames of which all is empty.
    fn empty_frames(&mut self, chunk: &[Pages]) -> Vec<Pages> {
        let frames = chunk.iter().flat_map(|run| pieces(run, PAGES_PER_FRAME));
        let mut empty: Vec<Pages> = Vec::new();
        // The last frame with something in it.
        let mut full = None;
        for piece in frames {
            let frame = piece.start / PAGES_PER_FRAME;
            if full == Some(frame) {
                continue;
            }
            if self.scanner.is_all_empty(&self.shared.file, &piece) == Ok(true) {
                empty.push(piece);
            } else {
                full = Some(frame);
                empty.retain(|run| run.start / PAGES_PER_FRAME != frame);
            }
        }
        empty
    }

    fn empty_of(&mut self, runs: &[Pages]) -> Vec<Pages> {
        let mut empty = Vec::new();
        for run in runs {
            // What cannot be read is not known to be empty.
            let _ = self.scanner.find(&self.shared.file, run, &mut empty);
        }
        empty
    }

    /// Protects pages, looks at them again, and takes those that are empty. Returns what is to be done then, and how many were empty.
    fn take(&mut self, pages: Vec<Pages>) -> (Job, PageCount) {
        let protected = bridged(&pages);
        let sound = protected.iter().all(|run| self.shared.mapping.protect(run).is_ok());
        // If not all of it is protected, nothing of it counts; what is gets lifted with the rest.
        let empty = if sound { self.empty_of(&pages) } else { Vec::new() };
        let extents: Vec<Extent> = empty.iter().map(|run| self.shared.extent(run)).collect();
        let need = match self.depth {
            SweepDepth::Pages => self.goal.saturating_sub(self.report.pages),
            SweepDepth::WholeFrames => 0,
        };
        let mut discards = Vec::new();
        let tally = self.shared.lock().ledger.swept(&extents, PageCount(need), &mut discards);
        self.report.pages = self.report.pages.saturating_add(tally.pages.0);
        self.report.frames = self.report.frames.saturating_add(tally.frames);
        (Job { protected, discards }, count(&empty))
    }
}

/// A batch's extents in pieces that are swept at once. They are ascending.
fn chunks(extents: &[Extent]) -> Vec<Vec<Pages>> {
    let mut chunks: Vec<Vec<Pages>> = Vec::new();
    let mut room = 0;
    for extent in extents {
        // Cut at frames, so that whole ones stay whole.
        for piece in pieces(&(extent.first..extent.end()), PAGES_PER_FRAME) {
            let pages = piece.end.saturating_sub(piece.start);
            match chunks.last_mut() {
                Some(chunk) if pages <= room => match chunk.last_mut() {
                    Some(last) if last.end == piece.start => last.end = piece.end,
                    _ => chunk.push(piece),
                },
                _ => {
                    room = CHUNK;
                    chunks.push(vec![piece]);
                }
            }
            room = room.saturating_sub(pages);
        }
    }
    chunks
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn spaced(lens: &[(u64, u64)]) -> Vec<Pages> {
        let mut at = 0;
        let run = |(gap, len): &(u64, u64)| {
            let start = at + gap;
            at = start + len;
            start..at
        };
        lens.iter().map(run).collect()
    }

    proptest! {
        #[test]
        fn chunks_are_small_and_make_up_the_batch(
            lens in proptest::collection::vec((1..2000_u64, 1..3000_u64), 0..40),
        ) {
            let runs = spaced(&lens);
            let words: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0)).collect();
            let mut ledger = plimsoll_frames::Ledger::format(words, 1, 1).unwrap();
            let key = plimsoll_frames::SpaceKey { device: 1, inode: 1 };
            let space = ledger.add_space(key, PageCount(1), plimsoll_frames::Granule::Page).unwrap();
            let extents: Vec<_> =
                runs.iter().map(|run| Extent { space, first: run.start, count: run.end - run.start }).collect();
            let chunks = chunks(&extents);
            prop_assert!(chunks.iter().all(|chunk| count(chunk).0 <= CHUNK && !chunk.is_empty()));
            let pages = |runs: Vec<Pages>| runs.into_iter().flatten().collect::<Vec<_>>();
            prop_assert_eq!(pages(chunks.concat()), pages(runs));
        }
    }
}
