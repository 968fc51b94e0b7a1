//! The emergency sweep: which pages to look at for zeros, and which of them may be taken.
//!
//! ```text
//! begin_sweep -> next_batch -> protect against writes, read, find zero pages -> swept -> discard, discarded
//!                    ^                                                                        |
//!                    +------------------ end_batch <-------- lift the protection <------------+
//! ```
//!
//! Between [`Ledger::next_batch`] and [`Ledger::swept`] nobody holds the ledger, and the guest runs. What was read counts only
//! for pages that are *still in the open batch*: whatever could change a page takes it out. A write of the guest does
//! (it meets the protection: [`Ledger::write_fault`]), a pin does, a fault does, every change of state does, and a page never
//! comes back into a batch. Memory that others write to unseen, by DMA of the VMM's own for instance, is the caller's to stop.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::AtomicU64;

use plimsoll_units::{PAGES_PER_FRAME, PageCount};

use crate::bits::PageMask;
use crate::discard::{Discard, Extent};
use crate::layout;
use crate::ledger::{Ledger, Place};
use crate::residency::add;
use crate::space::{Granule, SpaceId};
use crate::state::PageState;
use crate::walk::FrameWalk;

/// Frames remembered as populated of late: 512 MiB.
const RECENT: usize = 256;

/// Frames looked at for each one wanted before the call gives up for now.
const LOOK_AHEAD: u64 = 64;

/// What [`Ledger::next_batch`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Pages were appended that are to be looked at. The batch is open until [`Ledger::end_batch`].
    Scan,
    /// Nothing this time, but there is more to look at: call again.
    Nothing,
    /// Every frame has been looked at since [`Ledger::begin_sweep`].
    Over,
    /// A batch is open, or a process that is gone left one open ([`Ledger::protected`]): lift the protection and end it first.
    Open,
}

/// What [`Ledger::swept`] took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepTally {
    /// Pages that are `Outstanding` now.
    pub pages: PageCount,
    /// Frames among them that had memory behind every page and were taken whole.
    pub frames: u64,
    /// Pages that were offered and left alone: written to, pinned or changed since the batch was made, or not
    /// needed where taking them would have split a frame.
    pub left: PageCount,
}

/// A sweep as far as it concerns this process.
#[derive(Default)]
pub(crate) struct Sweep {
    /// Frames of the ledger, populated last at the back.
    recent: VecDeque<u64>,
    /// The frame of the ledger at which looking goes on.
    cursor: u64,
    /// Frames not looked at since the sweep began.
    left: u64,
    /// Frames of the open batch, ascending, with the pages that may be taken.
    batch: Vec<(u64, PageMask)>,
}

impl Sweep {
    /// A frame was populated, at least in part.
    pub(crate) fn populated(&mut self, frame: u64) {
        if self.recent.back() == Some(&frame) {
            return;
        }
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(frame);
    }

    /// These pages of a frame must not be taken.
    pub(crate) fn spare(&mut self, frame: u64, pages: PageMask) {
        if let Ok(at) = self.batch.binary_search_by_key(&frame, |(frame, _)| *frame)
            && let Some((_, mask)) = self.batch.get_mut(at)
        {
            *mask = mask.minus(pages);
        }
    }

    /// The pages of a frame that may be taken.
    pub(crate) fn takeable(&self, frame: u64) -> PageMask {
        let at = self.batch.binary_search_by_key(&frame, |(frame, _)| *frame).ok();
        at.and_then(|at| self.batch.get(at)).map_or(PageMask::EMPTY, |(_, mask)| *mask)
    }
}

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// A sweep begins: every frame of the spaces on demand is looked at once before [`Ledger::next_batch`] says that it is
    /// over, and those populated of late twice, because they come first. Where the last sweep was left, this one goes on.
    pub fn begin_sweep(&mut self) {
        let on_demand = self.spaces.iter().filter(|(_, space)| space.on_demand);
        self.sweep.left = on_demand.map(|(_, space)| space.frames()).sum();
    }

    /// Appends to `out` pages of up to `most` frames (1 if that is 0) of one space that may be looked at: `Present`, not pinned, their
    /// memory there. In files of huge pages whole frames only. The frames between the first and the last of them are marked as
    /// protected before this returns, and stay so over a crash.
    pub fn next_batch(&mut self, most: usize, out: &mut Vec<Extent>) -> Batch {
        if self.words.load(layout::AT_SWEEP) != 0 {
            return Batch::Open;
        }
        let most = most.max(1);
        let mut picked = Vec::new();
        self.pick_recent(most, &mut picked);
        self.pick_in_turn(most, &mut picked);
        picked.sort_unstable_by_key(|(place, _)| place.entry);
        picked.dedup_by_key(|(place, _)| place.entry);
        let (Some((first, _)), Some((last, _))) = (picked.first(), picked.last()) else {
            return if self.sweep.left == 0 { Batch::Over } else { Batch::Nothing };
        };
        self.words.store(layout::AT_SWEEP, encode(&(first.entry..last.entry.saturating_add(1))));
        for (place, pages) in &picked {
            out.extend(pages.runs().map(|run| place.extent(run)));
        }
        self.sweep.batch.extend(picked.iter().map(|(place, pages)| (place.entry, *pages)));
        Batch::Scan
    }

    /// What may be write-protected for a sweep, from the first page to the last: the open batch, or one that a process which is gone
    /// left open. Its protection is to be lifted before [`Ledger::end_batch`].
    #[must_use]
    pub fn protected(&self) -> Option<Extent> {
        let (space, frames) = self.marked()?;
        let (id, space) = self.spaces.iter().find(|(id, _)| *id == space)?;
        let first = frames.start.saturating_sub(u64::from(space.first_frame)).saturating_mul(PAGES_PER_FRAME);
        let count = frames.end.saturating_sub(frames.start).saturating_mul(PAGES_PER_FRAME);
        Some(Extent { space: *id, first, count: count.min(space.pages.saturating_sub(first)) })
    }

    /// Pages of the open batch that were found to be all zero, while protected. Takes whole frames first, then pieces of frames
    /// until `need` pages are taken in all, so that no frame is split in vain. A frame counts as whole
    /// if all the memory it has is zero. What is taken is `Outstanding`; appends the discards to `out`, which
    /// are to be carried out before the protection is lifted, and answered.
    pub fn swept(&mut self, zero: &[Extent], need: PageCount, out: &mut Vec<Discard>) -> SweepTally {
        let from = out.len();
        let extents = self.sorted(zero);
        let mut tally = SweepTally::default();
        let mut found = Vec::new();
        let mut taken = 0u64;
        for (space, frame, mask) in FrameWalk::new(&extents) {
            let Some(place) = self.place(space, frame) else { continue };
            let take = mask.and(self.sweep.takeable(place.entry));
            let huge = place.granule != Granule::Page;
            let take = if huge && take != place.valid { PageMask::EMPTY } else { take };
            let whole = take.covers(self.memory(&place));
            add(&mut tally.left.0, mask.minus(take).count());
            if whole {
                add(&mut taken, take.count());
            }
            found.push((place, take, whole));
        }
        for (place, take, whole) in found {
            if whole || taken < need.0 {
                if !whole {
                    add(&mut taken, take.count());
                }
                self.take(&place, take, &mut tally, (from, out));
            } else {
                add(&mut tally.left.0, take.count());
            }
        }
        self.finish(extents);
        tally
    }

    /// The protection of the batch has been lifted, all of [`Ledger::protected`].
    pub fn end_batch(&mut self) {
        self.sweep.batch.clear();
        self.words.store_changed(layout::AT_SWEEP, 0);
    }

    /// Turns zero pages of a frame into outstanding ones.
    fn take(
        &mut self,
        place: &Place,
        take: PageMask,
        tally: &mut SweepTally,
        (from, out): (usize, &mut Vec<Discard>),
    ) {
        let pages = take.count();
        let frames = u64::from(pages == PAGES_PER_FRAME);
        self.discard(place, take, take, (from, out));
        self.change(place, take, PageState::Outstanding);
        add(&mut tally.pages.0, pages);
        add(&mut tally.frames, frames);
        add(&mut self.totals.swept_pages, pages);
        add(&mut self.totals.swept_frames, frames);
    }

    /// Frames populated of late, last one first.
    fn pick_recent(&mut self, most: usize, picked: &mut Vec<(Place, PageMask)>) {
        while picked.len() < most
            && let Some(entry) = self.sweep.recent.pop_back()
        {
            let Some(place) = self.place_of_entry(entry) else { continue };
            if picked.first().is_some_and(|(first, _)| first.space != place.space) {
                self.sweep.recent.push_back(entry);
                return;
            }
            let pages = self.sweepable(&place);
            let again = picked.iter().any(|(other, _)| other.entry == entry);
            if !pages.is_empty() && !again {
                picked.push((place, pages));
            }
        }
    }

    /// All frames, from where the last call stopped.
    fn pick_in_turn(&mut self, most: usize, picked: &mut Vec<(Place, PageMask)>) {
        let wanted = u64::try_from(most).unwrap_or(u64::MAX);
        let mut looks = wanted.saturating_mul(LOOK_AHEAD);
        while picked.len() < most && self.sweep.left > 0 && looks > 0 {
            let Some(place) = self.on_demand_from(self.sweep.cursor) else {
                if core::mem::take(&mut self.sweep.cursor) == 0 {
                    self.sweep.left = 0;
                }
                continue;
            };
            if picked.first().is_some_and(|(first, _)| first.space != place.space) {
                return;
            }
            self.sweep.cursor = place.entry.saturating_add(1);
            self.sweep.left = self.sweep.left.saturating_sub(1);
            looks = looks.saturating_sub(1);
            let pages = self.sweepable(&place);
            if !pages.is_empty() {
                picked.push((place, pages));
            }
        }
    }

    /// The pages of a frame that are worth looking at.
    fn sweepable(&self, place: &Place) -> PageMask {
        let busy = self.pins.mask(place.entry).or(self.transit.of(place.entry).arriving);
        let pages = self.states(place).1.present(place.valid).minus(busy);
        if place.granule == Granule::Page || pages == place.valid { pages } else { PageMask::EMPTY }
    }

    /// A frame of the ledger, if a space on demand has it.
    fn place_of_entry(&self, entry: u64) -> Option<Place> {
        self.on_demand_from(entry).filter(|place| place.entry == entry)
    }

    /// The first frame at or after this one that a space on demand has.
    pub(crate) fn on_demand_from(&self, entry: u64) -> Option<Place> {
        let spaces = self.spaces.iter().filter(|(_, space)| space.on_demand && entry < space.end_frame());
        let (id, space) = spaces.min_by_key(|(_, space)| space.first_frame)?;
        let frame = entry.saturating_sub(u64::from(space.first_frame));
        Some(Place::of(*id, *space, frame))
    }

    /// The frames the mark names, if it makes sense.
    fn marked(&self) -> Option<(SpaceId, Range<u64>)> {
        let frames = decode(self.words.load(layout::AT_SWEEP));
        let inside = |first: u32, end: u64| u64::from(first) <= frames.start && frames.end <= end;
        let space = self.spaces.iter().find(|(_, space)| {
            space.on_demand && frames.start < frames.end && inside(space.first_frame, space.end_frame())
        });
        space.map(|(id, _)| (*id, frames))
    }

    /// Takes away a mark that names no frames of a space on demand.
    pub(crate) fn check_mark(&mut self) {
        if self.marked().is_none() {
            self.end_batch();
        }
    }

    /// Frames are no longer the guest's memory.
    pub(crate) fn forget_sweep(&mut self, frames: &Range<u64>) {
        self.sweep.recent.retain(|frame| !frames.contains(frame));
        self.check_mark();
    }
}

/// The mark for these frames of the ledger. A ledger has less than 2^32 of them.
const fn encode(frames: &Range<u64>) -> u64 {
    (frames.start << 32) | frames.end
}

const fn decode(mark: u64) -> Range<u64> {
    (mark >> 32)..(mark & 0xffff_ffff)
}
