//! What goes in and out of the ledger's events.

use alloc::vec::Vec;

use plimsoll_units::{Bytes, PAGE_SIZE, PageCount};

use crate::SpaceId;

/// Pages of one space that an event names. What lies beyond the end of the space is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Which space.
    pub space: SpaceId,
    /// The first page, counted from the beginning of the space.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Extent {
    /// One past the last page.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

/// When the guest may use pages of the balloon again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reuse {
    /// Not before the device has acknowledged the deflation: `VIRTIO_BALLOON_F_MUST_TELL_HOST` was negotiated
    /// (virtio 1.3, 5.5.3 and 5.5.6). Pages that are in the balloon may be discarded at any time.
    TellsFirst,
    /// At any time: only what the present event names may be discarded.
    AtOnce,
}

/// Who took memory away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemovedBy {
    /// The VMM, because the guest put the pages into a balloon.
    Balloon,
    /// The VMM, because the guest reported them free.
    Report,
    /// Somebody else, or nobody knows.
    Other,
}

/// Memory that is to be given back to the host now, before the event is acknowledged to the guest.
/// One event's discards are ascending by space and offset, do not overlap or touch, and stay within their space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Discard {
    /// Which space.
    pub space: SpaceId,
    /// Where, in bytes from the beginning of the space.
    pub offset: Bytes,
    /// How much.
    pub len: Bytes,
}

/// What an event did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages named within their space, each counted once.
    pub named: PageCount,
    /// Pages that were in another state before.
    pub changed: PageCount,
    /// Pages that were named but not discarded because I/O on them is in flight.
    pub pinned: PageCount,
    /// Pages named whose state was left as it is because they are being populated ([`crate::Ledger::removed`]).
    pub arriving: PageCount,
    /// Pages named in frames whose states could not be recorded because no map was free; those frames count as `Present`.
    pub unmapped: PageCount,
}

/// Appends pages, as one discard with the last one where they touch.
pub(crate) fn push(out: &mut Vec<Discard>, from: usize, pages: Extent) {
    let space = pages.space;
    let offset = Bytes(pages.first.saturating_mul(PAGE_SIZE));
    let len = PageCount(pages.count).bytes();
    // What stood in the list before this event is not ours to change.
    let last = out.get_mut(from..).and_then(<[Discard]>::last_mut);
    match last {
        Some(last) if last.space == space && last.offset.plus(last.len) == offset => {
            last.len = last.len.plus(len)
        }
        _ => out.push(Discard { space, offset, len }),
    }
}
