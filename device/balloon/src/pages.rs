//! Reading page numbers and ranges out of descriptor chains.

use std::sync::atomic::AtomicU64;

use plimsoll_frames::Extent;
use plimsoll_units::{BalloonPfn, Bytes, Gpa, PAGE_SIZE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address as _, Bytes as _, GuestMemory};

use crate::counters::{Counters, add};
use crate::engine::{Engine, Event};
use crate::{Discarder, Lookup, MemoryMap};

/// Extents that are gathered before the ledger is asked. A Linux buffer has 256 page numbers; pages of larger buffers
/// are joined to frames only within each batch (and, by the guest's promise, with all that came before).
const BATCH: usize = 4096;

/// Pages a chain may name at most, whatever the guest's size: 4 GiB, which is all that a chain of reports can hold (virtio
/// 1.3, 2.7.5.2). It bounds the time that one chain of single page numbers can keep the device busy, to a second or two.
const MAX_PAGES: u64 = 1 << 20;

/// Bytes of page numbers read at a time.
const PIECE: usize = 4096;

/// Pages of one chain, gathered until there are enough to hand on.
#[derive(Default)]
pub(crate) struct Gathered {
    extents: Vec<Extent>,
    /// Pages that this chain may still name.
    budget: u64,
    /// Whether the chain named any page at all.
    pub(crate) any: bool,
    /// Whether the chain named pages that were not read.
    pub(crate) cut: bool,
}

/// Whether to go on with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    /// Yes.
    Yes,
    /// It has named more pages than it may.
    No,
}

impl Gathered {
    /// Before each chain: what it may name in all. Twice the guest's pages, so that no honest chain is cut, up to [`MAX_PAGES`].
    pub(crate) fn begin(&mut self, memory: &MemoryMap) {
        self.extents.clear();
        self.budget = memory.pages().saturating_mul(2).min(MAX_PAGES);
        self.any = false;
        self.cut = false;
    }

    /// Adds pages, to the last extent where they touch it: drivers send runs, Linux' are mostly descending.
    fn push(&mut self, new: Extent) {
        self.any = true;
        if let Some(last) = self.extents.last_mut().filter(|last| last.space == new.space) {
            if last.end() == new.first {
                last.count = last.count.saturating_add(new.count);
                return;
            }
            if new.end() == last.first {
                *last = Extent { count: last.count.saturating_add(new.count), ..new };
                return;
            }
        }
        self.extents.push(new);
    }

    fn spend(&mut self, pages: u64, counters: &mut Counters) -> More {
        match self.budget.checked_sub(pages) {
            Some(left) => {
                self.budget = left;
                More::Yes
            }
            None => {
                self.budget = 0;
                self.cut = true;
                add(&mut counters.over_limit, 1);
                More::No
            }
        }
    }

    /// Hands what was gathered on to the ledger.
    pub(crate) fn hand_on<W, D>(&mut self, event: Event, engine: &mut Engine<W, D>)
    where
        W: AsRef<[AtomicU64]>,
        D: Discarder,
    {
        engine.apply(event, &self.extents);
        self.extents.clear();
    }

    /// Reads a descriptor of 32-bit little-endian page numbers (virtio 1.3, 5.5.6), and hands them on batch by batch.
    pub(crate) fn read_pfns<M, W, D>(
        &mut self,
        (memory, map): (&M, &MemoryMap),
        descriptor: &Descriptor,
        event: Event,
        engine: &mut Engine<W, D>,
    ) -> More
    where
        M: GuestMemory + ?Sized,
        W: AsRef<[AtomicU64]>,
        D: Discarder,
    {
        let ragged = descriptor.len() % 4;
        add(&mut engine.counters.ragged, u64::from(ragged != 0));
        let mut left = usize::try_from(descriptor.len().saturating_sub(ragged)).unwrap_or(0);
        let mut at = descriptor.addr();
        let mut buffer = [0u8; PIECE];
        while left > 0 {
            let take = left.min(PIECE);
            let Some(piece) = buffer.get_mut(..take) else { break };
            if memory.read_slice(piece, at).is_err() {
                // Some of it may have been readable; a piece that is not there as a whole names nothing.
                self.cut = true;
                add(&mut engine.counters.unreadable, 1);
                break;
            }
            for pfn in piece.as_chunks::<4>().0 {
                if self.spend(1, &mut engine.counters) == More::No {
                    return More::No;
                }
                self.name(BalloonPfn(u32::from_le_bytes(*pfn)), map, &mut engine.counters);
                if self.extents.len() >= BATCH {
                    self.hand_on(event, engine);
                }
            }
            left = left.saturating_sub(take);
            let Some(next) = u64::try_from(take).ok().and_then(|take| at.checked_add(take)) else { break };
            at = next;
        }
        More::Yes
    }

    fn name(&mut self, pfn: BalloonPfn, map: &MemoryMap, counters: &mut Counters) {
        if pfn == BalloonPfn(0) {
            add(&mut counters.zero_pfns, 1);
            return;
        }
        match pfn.gfn().gpa().map_or(Lookup::Outside, |gpa| map.page(gpa)) {
            Lookup::Page(space, page) => self.push(Extent { space, first: page, count: 1 }),
            Lookup::Outside => add(&mut counters.outside_pages, 1),
            Lookup::Straddles => add(&mut counters.straddling_pages, 1),
        }
    }

    /// Takes the range a report's descriptor stands for: the descriptor's own buffer is what is free
    /// (virtio 1.3, 5.5.6, Free Page Reporting). Clipped to whole pages of the guest's memory.
    pub(crate) fn read_range<W, D>(
        &mut self,
        map: &MemoryMap,
        descriptor: &Descriptor,
        event: Event,
        engine: &mut Engine<W, D>,
    ) -> More
    where
        W: AsRef<[AtomicU64]>,
        D: Discarder,
    {
        let (gpa, len) = (Gpa(descriptor.addr().0), Bytes(u64::from(descriptor.len())));
        if self.spend(len.0 / PAGE_SIZE, &mut engine.counters) == More::No {
            return More::No;
        }
        let covered = map.range(gpa, len, |extent| self.push(extent));
        add(&mut engine.counters.clipped_reports, u64::from(covered < len));
        if self.extents.len() >= BATCH {
            self.hand_on(event, engine);
        }
        More::Yes
    }
}

#[cfg(test)]
mod test {
    use plimsoll_frames::{Granule, Ledger, SpaceKey};
    use plimsoll_units::PageCount;

    use super::*;
    use crate::Region;

    fn budget_of(guest: Bytes) -> u64 {
        let words: Vec<_> = (0..Ledger::words_needed(1, 0).unwrap()).map(|_| AtomicU64::new(0)).collect();
        let mut ledger = Ledger::format(words, 1, 0).unwrap();
        let space = ledger.add_space(SpaceKey { device: 0, inode: 0 }, PageCount(1), Granule::Page).unwrap();
        let region = Region { gpa: Gpa(0), len: guest, space, offset: Bytes::ZERO };
        let mut gathered = Gathered::default();
        gathered.begin(&MemoryMap::new(vec![region]).unwrap());
        gathered.budget
    }

    #[test]
    fn a_chain_may_name_twice_the_guest_and_never_more_than_4_gib() {
        assert_eq!(budget_of(Bytes::mib(512)), Bytes::gib(1).pages_floor().0);
        assert_eq!(budget_of(Bytes::gib(2)), Bytes::gib(4).pages_floor().0);
        assert_eq!(budget_of(Bytes::gib(4096)), Bytes::gib(4).pages_floor().0);
    }

    #[test]
    fn a_budget_that_is_spent_stays_spent() {
        let (mut gathered, mut counters) =
            (Gathered { budget: 5, ..Gathered::default() }, Counters::default());
        assert_eq!(gathered.spend(5, &mut counters), More::Yes);
        assert_eq!(gathered.spend(0, &mut counters), More::Yes);
        assert_eq!(gathered.spend(1, &mut counters), More::No);
        assert_eq!(counters.over_limit, 1);
    }
}
