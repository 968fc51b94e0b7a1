//! What a guest tells, and what may be discarded on its word.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::bits::PageMask;
use crate::discard::{Discard, Extent, Reuse, Tally, push};
use crate::layout;
use crate::ledger::{Ledger, Place};
use crate::space::{Granule, SpaceId};
use crate::state::PageState;

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// The guest puts pages into the balloon. Appends to `out` what is to be discarded before the guest is answered.
    ///
    /// Extents may come in any order and overlap. Naming a page again changes nothing, but discards it again:
    /// after a crash an unanswered request is run once more, and the first run may not have come to the discard.
    ///
    /// When the ledger has no map left for a frame whose pages begin to differ, the whole frame counts as `Present`
    /// ([`Tally::unmapped`]): that may count less given up than was, and can discard nothing that was not named.
    pub fn inflate(&mut self, named: &[Extent], reuse: Reuse, out: &mut Vec<Discard>) -> Tally {
        self.give_up(PageState::Ballooned, named, reuse, out)
    }

    /// The guest reports free pages, like [`Ledger::inflate`]. `reuse` says what holds for pages of the *balloon*; reported
    /// ones may always be re-used without a word, so only those named now count towards a whole frame.
    pub fn report(&mut self, named: &[Extent], reuse: Reuse, out: &mut Vec<Discard>) -> Tally {
        self.give_up(PageState::Reported, named, reuse, out)
    }

    /// The guest takes pages back. It may name pages that it never gave up.
    pub fn deflate(&mut self, named: &[Extent]) -> Tally {
        let extents = self.sorted(named);
        let mut tally = Tally::default();
        for (space, frame, mask) in FrameWalk::new(&extents) {
            if let Some(place) = self.place(space, frame) {
                self.record(&place, mask, PageState::Present, &mut tally);
            }
        }
        self.finish(extents);
        tally
    }

    /// The guest began anew, or its device was reset: nothing is given up any more. Takes effect with one store,
    /// so that a crash leaves all of it or none. Pins stay; their I/O is still in flight.
    pub fn reset(&mut self) {
        self.words.store(layout::AT_RESETTING, 1);
        self.finish_reset();
    }

    /// Carries out a reset that is marked, and takes the mark away.
    pub(crate) fn finish_reset(&mut self) {
        for (id, space) in self.spaces.clone() {
            for frame in 0..space.frames() {
                let place = Place::of(id, space, frame);
                self.change(&place, place.valid, PageState::Present);
            }
        }
        self.words.store_counts(self.counts);
        self.words.store(layout::AT_RESETTING, 0);
    }

    /// I/O on these pages begins: they are not discarded until [`Ledger::unpin`] has been called as often.
    pub fn pin(&mut self, extent: Extent) {
        let extents = self.sorted(&[extent]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            if let Some(place) = self.place(space, frame) {
                self.pins.pin(place.entry, mask);
            }
        }
        self.scratch = extents;
    }

    /// I/O on these pages is over. Pages that lose their last pin and are in the balloon, and which the guest promised not
    /// to touch ([`Reuse::TellsFirst`]), are to be discarded now: their inflation met the pin, or the I/O put memory
    /// behind them again. Without the promise the chance has passed with the acknowledgement, and it has for reported pages always.
    /// Pages that are not pinned are ignored.
    pub fn unpin(&mut self, extent: Extent, reuse: Reuse, out: &mut Vec<Discard>) {
        let from = out.len();
        let extents = self.sorted(&[extent]);
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let released = self.pins.unpin(place.entry, mask);
            if reuse == Reuse::TellsFirst {
                let given = self.states(&place).1.mask(PageState::Ballooned);
                self.discard(&place, released.and(given), given, (from, out));
            }
        }
        self.scratch = extents;
    }

    fn give_up(&mut self, to: PageState, named: &[Extent], reuse: Reuse, out: &mut Vec<Discard>) -> Tally {
        let from = out.len();
        let extents = self.sorted(named);
        let mut tally = Tally::default();
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let earlier = match reuse {
                Reuse::TellsFirst => self.states(&place).1.mask(PageState::Ballooned),
                Reuse::AtOnce => PageMask::EMPTY,
            };
            let pinned = self.discard(&place, mask, mask.or(earlier), (from, out));
            tally.pinned.0 = tally.pinned.0.saturating_add(pinned);
            self.record(&place, mask, to, &mut tally);
        }
        self.finish(extents);
        tally
    }

    /// Discards `wanted` pages of a frame, or the whole frame if every page is in `allowed`. Returns how many
    /// wanted pages are pinned.
    fn discard(
        &self,
        place: &Place,
        wanted: PageMask,
        allowed: PageMask,
        (from, out): (usize, &mut Vec<Discard>),
    ) -> u64 {
        if wanted.is_empty() {
            return 0;
        }
        let pinned = self.pins.mask(place.entry);
        let whole = place.valid.minus(allowed.minus(pinned)).is_empty();
        let free = match place.granule {
            Granule::Page if whole => place.valid,
            Granule::Page => wanted.minus(pinned),
            Granule::Frame if whole && place.valid.count() == PAGES_PER_FRAME => place.valid,
            Granule::Frame | Granule::Never => PageMask::EMPTY,
        };
        let base = place.frame.saturating_mul(PAGES_PER_FRAME);
        for run in free.runs() {
            push(out, from, place.space, base.saturating_add(run.start)..base.saturating_add(run.end));
        }
        wanted.and(pinned).count()
    }

    fn record(&mut self, place: &Place, mask: PageMask, to: PageState, tally: &mut Tally) {
        let named = mask.count();
        let add = |sum: &mut PageCount, n: u64| sum.0 = sum.0.saturating_add(n);
        add(&mut tally.named, named);
        match self.change(place, mask, to) {
            Some(changed) => add(&mut tally.changed, changed),
            None => add(&mut tally.unmapped, named),
        }
    }

    /// The extents clipped to their spaces, ascending, without overlap.
    fn sorted(&mut self, named: &[Extent]) -> Vec<Extent> {
        let mut extents = core::mem::take(&mut self.scratch);
        extents.clear();
        for extent in named {
            let pages = self.space(extent.space).map_or(0, |space| space.pages);
            let end = extent.end().min(pages);
            if let Some(count) = end.checked_sub(extent.first).filter(|&count| count > 0) {
                extents.push(Extent { count, ..*extent });
            }
        }
        extents.sort_unstable();
        extents.dedup_by(|later, kept| {
            let joins = later.space == kept.space && later.first <= kept.end();
            if joins {
                kept.count = kept.end().max(later.end()).saturating_sub(kept.first);
            }
            joins
        });
        extents
    }

    fn finish(&mut self, extents: Vec<Extent>) {
        self.scratch = extents;
        self.words.store_counts(self.counts);
    }
}

/// Walks sorted extents frame by frame.
struct FrameWalk<'a> {
    rest: core::iter::Peekable<core::slice::Iter<'a, Extent>>,
    /// What of an extent lies beyond the frame that was given out last.
    tail: Option<Extent>,
}

impl<'a> FrameWalk<'a> {
    fn new(extents: &'a [Extent]) -> Self {
        Self { rest: extents.iter().peekable(), tail: None }
    }
}

impl Iterator for FrameWalk<'_> {
    /// Space, frame within the space, pages of the frame.
    type Item = (SpaceId, u64, PageMask);

    fn next(&mut self) -> Option<Self::Item> {
        let mut extent = self.tail.take().or_else(|| self.rest.next().copied())?;
        let (space, frame) = (extent.space, extent.first / PAGES_PER_FRAME);
        let base = frame.saturating_mul(PAGES_PER_FRAME);
        let end = base.saturating_add(PAGES_PER_FRAME);
        let mut mask = PageMask::EMPTY;
        loop {
            let stop = extent.end().min(end);
            mask = mask.or(PageMask::range(&(extent.first.saturating_sub(base)..stop.saturating_sub(base))));
            if extent.end() > end {
                self.tail = Some(Extent { space, first: end, count: extent.end().saturating_sub(end) });
                break;
            }
            match self.rest.next_if(|next| next.space == space && next.first < end) {
                Some(next) => extent = *next,
                None => break,
            }
        }
        Some((space, frame, mask))
    }
}
