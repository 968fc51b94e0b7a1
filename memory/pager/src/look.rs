//! Asking the file where memory is, when somebody else may have made holes.
//!
//! A hint says where a VMM made a hole, or says that it did. It may be late, repeated, or a lie. So the file is
//! asked, with the ledger's lock held: then no page is populated between the answer and what is made of it, other than those
//! of which the ledger knows that they are on their way, and which it leaves alone.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plimsoll_frames::Extent;
use plimsoll_uffd::handover::{Heard, Refusal, ToVmm};
use plimsoll_units::{PAGE_SIZE, PAGES_PER_FRAME};

use crate::file::Pages;
use crate::punch::pieces;
use crate::shared::{Later, Shared, State, after, bump};
use crate::status::PagerEvent;

/// Pages asked for in one go, with the lock held: at worst 2048 holes, a millisecond.
const PIECE: u64 = 4 * PAGES_PER_FRAME;
/// Messages of a VMM read in one go.
const MESSAGES: usize = 256;
/// When to look where something was just changing: a call to the kernel takes less, mostly. If nothing has changed by then,
/// ten times as long.
const LATER: Duration = Duration::from_millis(10);
/// Longer than this nobody takes for a call.
const TOO_LATE: Duration = Duration::from_secs(1);
/// Places to look at later; with more of them, everywhere is looked.
const MOST_LATER: usize = 256;

impl<W: AsRef<[AtomicU64]>> Shared<W> {
    /// Takes over what the file has of some pages, and nothing else. At most a few frames.
    pub(crate) fn correct(&self, state: &mut State<W>, pages: &Pages) {
        let mut data = Vec::new();
        if self.file.data(pages, &mut data).is_ok() {
            let data: Vec<Extent> = data.iter().map(|run| self.extent(run)).collect();
            state.ledger.correct(self.extent(pages), &data);
        }
    }

    /// Takes over what the file has of all pages.
    pub(crate) fn correct_everywhere(&self) {
        for piece in pieces(&(0..self.file.pages()), PIECE) {
            let mut state = self.lock();
            self.correct(&mut state, &piece);
            self.settle(state);
        }
    }

    /// The VMM made holes in these pages, or says so. Where there are holes the pages are given up, also those that had
    /// never been touched.
    pub(crate) fn look_for_holes(&self, pages: &Pages) {
        let pages = pages.start..pages.end.min(self.file.pages());
        for piece in pieces(&pages, PIECE) {
            let mut data = Vec::new();
            let mut state = self.lock();
            if self.file.data(&piece, &mut data).is_err() {
                continue;
            }
            let holes: Vec<Extent> = gaps(&piece, &data).map(|gap| self.extent(&gap)).collect();
            let before = state.ledger.residency().resident;
            let tally = state.ledger.removed(&holes, self.settings.holes_are);
            let gone = before.0.saturating_sub(state.ledger.residency().resident.0);
            state.hints.gone = state.hints.gone.saturating_add(gone);
            if tally.arriving.0 > 0 {
                self.look_later(&mut state, piece, LATER);
            }
            self.settle(state);
        }
    }

    /// Looks there again after a while.
    fn look_later(&self, state: &mut State<W>, pages: Pages, wait: Duration) {
        if state.look.later.len() < MOST_LATER {
            state.look.later.push(Later { at: after(wait), pages, wait });
        } else {
            state.look.everywhere = true;
        }
        self.work.notify_one();
    }

    /// Looks where somebody was about to make holes, and once more if there are still none: he may not have come to it.
    pub(crate) fn look_now(&self, later: Later) {
        let untouched = self.file.next_hole(later.pages.start).is_ok_and(|hole| hole >= later.pages.end);
        let wait = later.wait.saturating_mul(10);
        if untouched && wait <= TOO_LATE {
            return self.look_later(&mut self.lock(), later.pages, wait);
        }
        self.look_for_holes(&later.pages);
    }

    /// The VMM gives memory back and waits until this was read: the hole is made only then.
    pub(crate) fn will_be_removed(&self, start: u64, end: u64) {
        let last = end.checked_sub(1).and_then(|last| self.mapping.page_at(last));
        let (Some(first), Some(last)) = (self.mapping.page_at(start), last) else {
            bump(&mut self.lock().faults.odd);
            return;
        };
        let mut state = self.lock();
        self.look_later(&mut state, first..last.saturating_add(1), LATER);
    }

    /// Hears what the VMM has to say, if anything.
    pub(crate) fn hear(&self) {
        let Some(socket) = &self.socket else { return };
        let _one_at_a_time = self.hearing.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..MESSAGES {
            if self.hints_ended.load(Ordering::Acquire) {
                return;
            }
            match socket.hear() {
                Ok(Heard::Nothing) => return,
                Ok(Heard::Punched { extent, lost }) => self.hint(extent.offset, extent.length, lost),
                Ok(Heard::Unmapped(_)) => (self.tell)(PagerEvent::Unmapped),
                Ok(Heard::Closed) => self.end_of_hints(None),
                // Its memory is taken already. What becomes of the answer is the VMM's matter.
                Ok(Heard::Handover(_)) => {
                    let _ = socket.answer(ToVmm::Refused(Refusal::Taken));
                }
                Err(error) => self.end_of_hints(Some(error.to_string())),
            }
        }
    }

    fn end_of_hints(&self, reason: Option<String>) {
        self.hints_ended.store(true, Ordering::Release);
        (self.tell)(PagerEvent::HintsEnded { reason });
    }

    /// Somebody says that whole pages of `length` bytes from `offset` on may be gone, and that `lost` such messages were lost.
    pub(crate) fn hint(&self, offset: u64, length: u64, lost: u64) {
        let mut state = self.lock();
        state.hints.heard = state.hints.heard.saturating_add(1);
        state.hints.lost = state.hints.lost.saturating_add(lost);
        if lost > 0 {
            // Once for however many ask for it.
            state.look.everywhere = true;
            self.work.notify_one();
        }
        drop(state);
        self.look_for_holes(&(offset.div_ceil(PAGE_SIZE)..offset.saturating_add(length) / PAGE_SIZE));
    }
}

/// What of `within` is not in ascending `runs`.
fn gaps<'a>(within: &Pages, runs: &'a [Pages]) -> impl Iterator<Item = Pages> + use<'a> {
    let (mut from, end) = (within.start, within.end);
    let ends = std::iter::once(end..end);
    runs.iter().cloned().chain(ends).filter_map(move |run| {
        let gap = from..run.start;
        from = run.end;
        (gap.start < gap.end).then_some(gap)
    })
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn gaps_and_runs_make_up_the_whole(cuts in proptest::collection::btree_set(0..100_u64, 0..20)) {
            let cuts: Vec<_> = cuts.into_iter().collect();
            let runs: Vec<Pages> = cuts.chunks_exact(2).map(|two| two[0]..two[1]).collect();
            let mut all: Vec<u64> = gaps(&(0..100), &runs).chain(runs.iter().cloned()).flatten().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..100).collect::<Vec<_>>());
        }
    }
}
