//! The ledger in a world: what is asked of it, and what must come of that.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_units::{MemTarget, PAGE_SIZE, PageCount};

use super::model::{Answer, FRAME, Space, index, number};
use super::ops::Range;
use crate::test::{Words, fresh, key};
use crate::{
    Batch, Discard, Extent, Fault, Granule, Ledger, PageState, RemovedBy, Reuse, SpaceId, WriteFault,
};

/// A call to the kernel that is under way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) kind: Kind,
    pub(super) space: usize,
    pub(super) pages: core::ops::Range<usize>,
    /// It was made, but not answered.
    pub(super) done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Populate,
    Discard,
    /// A discard of pages that were found to be zero.
    Swept,
}

pub(super) const FRAMES: u32 = 7;

pub(super) struct World {
    pub(super) ledger: Ledger<Words>,
    pub(super) spaces: Vec<Space>,
    pub(super) reuse: Reuse,
    pub(super) target: u64,
    /// As its definition has it, step by step.
    pub(super) limit: u64,
    pub(super) flights: Vec<Flight>,
    pub(super) pinned: Vec<Extent>,
    /// Extents of the open batch.
    pub(super) batch: Vec<Extent>,
    /// Pages that were read and are zero.
    pub(super) zero: Vec<Extent>,
    /// After how many stores of the event the kernel had memory where.
    pub(super) notes: Vec<(usize, Vec<Extent>)>,
    /// What has happened, so that the stories are known to be about something.
    pub(super) seen: BTreeSet<&'static str>,
}

impl World {
    pub(super) fn new(target: u64, reuse: Reuse) -> Self {
        let mut ledger = fresh(FRAMES, FRAMES);
        // A space that is not on demand lies between them: it must not be touched.
        let small = ledger.add_space_on_demand(key(0), PageCount(1224), Granule::Page).unwrap();
        ledger.add_space(key(1), PageCount(700), Granule::Page).unwrap();
        let huge = ledger.add_space_on_demand(key(2), PageCount(1024), Granule::Frame).unwrap();
        let spaces = vec![Space::new(small, Granule::Page, 1224), Space::new(huge, Granule::Frame, 1024)];
        ledger.set_target(MemTarget(PageCount(target).bytes()));
        Self {
            ledger,
            spaces,
            reuse,
            target,
            limit: target,
            flights: vec![],
            pinned: vec![],
            batch: vec![],
            zero: vec![],
            notes: vec![],
            seen: BTreeSet::new(),
        }
    }

    /// Notes where the kernel has memory now.
    pub(super) fn note(&mut self) {
        let stores = self.ledger.words.log.borrow().len();
        self.notes.push((stores, data(&self.spaces)));
    }

    pub(super) fn resident(&self) -> u64 {
        self.spaces.iter().map(Space::resident).sum()
    }

    pub(super) fn memory(&self) -> u64 {
        self.spaces.iter().map(Space::memory).sum()
    }

    fn room(&self) -> u64 {
        self.target.saturating_sub(self.resident())
    }

    pub(super) fn extent(&self, (space, first, count): Range) -> Extent {
        Extent { space: self.spaces[space].id, first, count }
    }

    /// The pages a range names. Huge pages can only be named whole by those who punch them.
    pub(super) fn pages(&self, (space, first, count): Range) -> core::ops::Range<usize> {
        let len = number(self.spaces[space].pages.len());
        index(first.min(len))..index(first.saturating_add(count).min(len))
    }

    pub(super) fn space_of(&self, id: SpaceId) -> usize {
        self.spaces.iter().position(|space| space.id == id).unwrap()
    }

    /// Checks handed-out discards against the pages that should be, and sets them going.
    pub(super) fn set_going(&mut self, out: &[Discard], want: &BTreeSet<(usize, usize)>, kind: Kind) {
        let mut got = BTreeSet::new();
        for pair in out.windows(2) {
            let end = pair[0].offset.plus(pair[0].len);
            assert!((pair[0].space, end) < (pair[1].space, pair[1].offset), "{pair:?} not sorted and merged");
        }
        for Discard { space, offset, len } in out {
            let space = self.space_of(*space);
            let (first, count) = (index(offset.0 / PAGE_SIZE), index(len.0 / PAGE_SIZE));
            let pages = first..first + count;
            if self.spaces[space].granule == Granule::Frame {
                assert!(first % FRAME == 0 && count % FRAME == 0, "half a huge page");
            }
            got.extend(pages.clone().map(|page| (space, page)));
            self.flights.push(Flight { kind, space, pages, done: false });
        }
        assert_eq!(&got, want);
    }

    /// The guest touches a page. Returns whether it could go on.
    pub(super) fn touch(&mut self, space: usize, page: usize, write: Option<u64>, now: bool) -> bool {
        for _ in 0..4 {
            let at = self.spaces[space].pages[page];
            let id = self.spaces[space].id;
            let one = Extent { space: id, first: number(page), count: 1 };
            if at.memory && at.protected && write.is_some() {
                self.spaces[space].pages[page].takeable = false;
                let want = if at.leaving { WriteFault::Leaving } else { WriteFault::Lift };
                assert_eq!(self.ledger.write_fault(one), want);
                if want == WriteFault::Leaving {
                    self.seen.insert("write to a page that is being swept");
                    return false;
                }
                self.seen.insert("write to a protected page");
                self.spaces[space].pages[page].protected = false;
            } else if at.memory {
                self.access(space, page, write);
                return true;
            } else if !self.fault(space, page, now) {
                return false;
            }
        }
        panic!("the guest touched {page} again and again")
    }

    fn access(&mut self, space: usize, page: usize, write: Option<u64>) {
        let at = &mut self.spaces[space].pages[page];
        if let Some(want) = at.want {
            assert_eq!(at.content, want, "the guest finds something else in page {page}");
        }
        if let Some(stamp) = write {
            at.content = stamp;
            // Whoever uses what was given up, before that was acknowledged or against a promise, has only itself to blame.
            at.want = (!at.given && !at.leaving).then_some(stamp);
        }
    }

    /// A page without memory was touched. Returns whether to try again.
    pub(super) fn fault(&mut self, space: usize, page: usize, now: bool) -> bool {
        let room = self.room();
        let id = self.spaces[space].id;
        let want = self.spaces[space].fault(page, room);
        let got = self.ledger.fault(id, number(page));
        let residency = self.ledger.residency();
        match (want, got) {
            (Answer::Populate(first, count), Fault::Populate(extent)) => {
                assert_eq!(extent, Extent { space: id, first, count });
                assert!(self.resident() <= self.target, "populated beyond the target");
                let pages = index(first)..index(first + count);
                self.seen.insert(match pages.len() {
                    1 => "populated one page",
                    FRAME => "populated a frame",
                    _ => "populated a run",
                });
                self.flights.push(Flight { kind: Kind::Populate, space, pages, done: false });
                self.spaces[space].pages[page].given = false;
                if now {
                    self.finish(self.flights.len() - 1, true);
                }
                now
            }
            (Answer::Present, Fault::Present) => {
                if self.spaces[space].pages[page].memory {
                    self.seen.insert("fault read late");
                } else {
                    self.seen.insert("fault on a hole punched unseen");
                    self.repair(space, page);
                }
                true
            }
            (Answer::Arriving, Fault::Arriving) => {
                self.seen.insert("fault on a page that is arriving");
                false
            }
            (Answer::Leaving, Fault::Leaving) => {
                self.seen.insert("fault on a page that is leaving");
                false
            }
            (Answer::Exhausted, Fault::Exhausted(numbers)) => {
                self.seen.insert("exhausted");
                assert_eq!(numbers, residency);
                false
            }
            (want, got) => panic!("page {page}: {got:?} instead of {want:?}"),
        }
    }

    /// Somebody punched unseen: a page, or a huge page.
    fn repair(&mut self, space: usize, page: usize) {
        let at = &mut self.spaces[space];
        let gone = if at.granule == Granule::Page { page..page + 1 } else { at.frame(page) };
        let mut named = vec![];
        for page in gone {
            let one = &mut at.pages[page];
            if one.state == PageState::Present && !one.memory && !one.arriving {
                named.push(Extent { space: at.id, first: number(page), count: 1 });
                one.set(PageState::Outstanding);
                one.held = false;
            }
        }
        let changed = PageCount(number(named.len()));
        assert!(changed.0 > 0);
        assert_eq!(self.ledger.removed(&named, RemovedBy::Other).changed, changed);
    }

    /// Makes a call to the kernel.
    pub(super) fn execute(&mut self, n: usize) {
        let flight = &mut self.flights[n];
        if core::mem::replace(&mut flight.done, true) {
            return;
        }
        let flight = flight.clone();
        for page in &mut self.spaces[flight.space].pages[flight.pages] {
            match flight.kind {
                Kind::Populate => page.memory = true,
                Kind::Discard => page.punch(),
                Kind::Swept => {
                    assert_eq!(page.content, 0, "a page was swept that is not zero");
                    page.punch();
                }
            }
        }
        self.note();
    }

    /// A call is made and answered in two pieces. Huge pages have none.
    pub(super) fn split(&mut self, n: usize) {
        let first = &mut self.flights[n];
        let middle = first.pages.start + first.pages.len() / 2;
        if self.spaces[first.space].granule == Granule::Page && middle > first.pages.start {
            let mut second = first.clone();
            second.pages.start = middle;
            first.pages.end = middle;
            self.flights.push(second);
            self.seen.insert("answered in pieces");
        }
    }

    /// A call comes back. One that was made cannot fail.
    pub(super) fn finish(&mut self, n: usize, ok: bool) {
        if ok {
            self.execute(n);
        }
        let flight = self.flights.remove(n);
        let extent = Extent {
            space: self.spaces[flight.space].id,
            first: number(flight.pages.start),
            count: number(flight.pages.len()),
        };
        match flight.kind {
            Kind::Populate => self.end_populate(&flight, extent, flight.done),
            Kind::Discard | Kind::Swept => self.end_discard(&flight, extent, flight.done),
        }
    }

    fn end_populate(&mut self, flight: &Flight, extent: Extent, ok: bool) {
        let space = &mut self.spaces[flight.space];
        let mut arrived = BTreeSet::new();
        for page in flight.pages.clone() {
            let at = &mut space.pages[page];
            if !core::mem::take(&mut at.arriving) {
                continue;
            }
            if !ok {
                if at.state == PageState::Present {
                    at.set(PageState::Outstanding);
                }
                at.held = false;
            } else if at.state == PageState::Ballooned {
                arrived.insert(page);
            }
        }
        if !ok {
            self.seen.insert("populating failed");
            return self.ledger.populate_failed(extent);
        }
        let mut out = vec![];
        self.ledger.populated(extent, self.reuse, &mut out);
        if !out.is_empty() {
            self.seen.insert("given up while arriving");
        }
        self.after_release(flight.space, arrived, &out);
    }

    /// Pages in the balloon can be discarded now.
    pub(super) fn after_release(&mut self, space: usize, released: BTreeSet<usize>, out: &[Discard]) {
        let mut want = BTreeSet::new();
        if self.reuse == Reuse::TellsFirst {
            let ballooned = |space: &Space, page: usize| space.pages[page].state == PageState::Ballooned;
            let all = self.spaces[space].discard(&released, ballooned);
            want.extend(all.into_iter().map(|page| (space, page)));
        }
        self.set_going(out, &want, Kind::Discard);
    }

    fn end_discard(&mut self, flight: &Flight, extent: Extent, ok: bool) {
        self.seen.insert(match (flight.kind, ok) {
            (Kind::Swept, false) => "discard of a sweep failed",
            (_, false) => "discard failed",
            (_, true) => "discarded",
        });
        let offset = PageCount(extent.first).bytes();
        let discard = Discard { space: extent.space, offset, len: PageCount(extent.count).bytes() };
        for at in &mut self.spaces[flight.space].pages[flight.pages.clone()] {
            at.leaving = false;
            if ok {
                at.held = false;
            } else if at.held && at.state == PageState::Outstanding {
                at.set(PageState::Present);
            }
        }
        if ok { self.ledger.discarded(discard) } else { self.ledger.discard_failed(discard) }
    }

    pub(super) fn next_batch(&mut self, most: usize) {
        let mut out = vec![];
        let was_open = self.ledger.protected().is_some();
        match self.ledger.next_batch(most, &mut out) {
            Batch::Open => assert!(was_open && out.is_empty()),
            Batch::Nothing | Batch::Over => assert!(!was_open && out.is_empty()),
            Batch::Scan => {
                assert!(!was_open && !out.is_empty());
                self.open(&out, most.max(1));
            }
        }
    }

    /// Checks a batch and protects it.
    fn open(&mut self, batch: &[Extent], most: usize) {
        let space = self.space_of(batch[0].space);
        let hull = self.ledger.protected().unwrap();
        let mut frames = BTreeSet::new();
        for extent in batch {
            assert_eq!(self.space_of(extent.space), space);
            assert!(hull.first <= extent.first && extent.end() <= hull.end());
            for page in index(extent.first)..index(extent.end()) {
                let at = &mut self.spaces[space].pages[page];
                assert!(at.state == PageState::Present && at.pins == 0 && !at.arriving, "{page}: {at:?}");
                at.takeable = true;
                at.protected = at.memory;
                frames.insert(page / FRAME);
            }
        }
        assert!(frames.len() <= most);
        self.batch = batch.to_vec();
        self.zero.clear();
    }
}

/// What SEEK_DATA finds.
pub(super) fn data(spaces: &[Space]) -> Vec<Extent> {
    let mut all: Vec<Extent> = vec![];
    for space in spaces {
        for (page, _) in space.pages.iter().enumerate().filter(|(_, page)| page.memory) {
            match all.last_mut() {
                Some(last) if last.space == space.id && last.end() == number(page) => last.count += 1,
                _ => all.push(Extent { space: space.id, first: number(page), count: 1 }),
            }
        }
    }
    all
}
