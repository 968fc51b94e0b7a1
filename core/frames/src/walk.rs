//! What an event names, frame by frame.

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use plimsoll_units::PAGES_PER_FRAME;

use crate::bits::PageMask;
use crate::discard::Extent;
use crate::ledger::Ledger;
use crate::space::SpaceId;

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// The extents clipped to their spaces, ascending, without overlap.
    pub(crate) fn sorted(&mut self, named: &[Extent]) -> Vec<Extent> {
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
}

/// Walks sorted extents frame by frame.
pub(crate) struct FrameWalk<'a> {
    rest: core::iter::Peekable<core::slice::Iter<'a, Extent>>,
    /// What of an extent lies beyond the frame that was given out last.
    tail: Option<Extent>,
}

impl<'a> FrameWalk<'a> {
    pub(crate) fn new(extents: &'a [Extent]) -> Self {
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
