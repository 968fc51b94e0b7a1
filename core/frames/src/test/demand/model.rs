//! The rules once more, page by page: what the ledger should believe, and what is true.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use crate::{Granule, PageState, SpaceId};

/// One page of a space on demand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    // What the ledger should believe.
    pub(super) state: PageState,
    pub(super) held: bool,
    pub(super) arriving: bool,
    pub(super) leaving: bool,
    pub(super) pins: u32,
    /// In the open batch of a sweep.
    pub(super) takeable: bool,
    // What is true.
    /// The kernel has memory here.
    pub(super) memory: bool,
    /// What stands in it.
    pub(super) content: u64,
    /// Writes by the guest meet a protection.
    pub(super) protected: bool,
    /// What the guest may rely on to find here. `None`: nothing.
    pub(super) want: Option<u64>,
    /// The guest gave it up and promised to tell before it uses it again.
    pub(super) given: bool,
}

pub(super) const UNTOUCHED: Page = Page {
    state: PageState::Outstanding,
    held: false,
    arriving: false,
    leaving: false,
    pins: 0,
    takeable: false,
    memory: false,
    content: 0,
    protected: false,
    want: Some(0),
    given: false,
};

impl Page {
    /// The ledger should believe that there is memory.
    pub(super) fn resident(&self) -> bool {
        self.state == PageState::Present || self.held
    }

    pub(super) fn settled(&self) -> bool {
        self.resident() && !self.arriving && !self.leaving
    }

    /// Memory does not move when a state changes.
    pub(super) fn set(&mut self, to: PageState) {
        self.held = self.resident() && to != PageState::Present;
        self.takeable &= to == self.state;
        self.state = to;
    }

    /// The host takes the memory. The guest must not miss anything.
    pub(super) fn punch(&mut self) {
        assert!(matches!(self.want, None | Some(0)), "the guest loses data: {self:?}");
        (self.memory, self.content, self.protected) = (false, 0, false);
    }
}

#[derive(Clone)]
pub(super) struct Space {
    pub(super) id: SpaceId,
    pub(super) granule: Granule,
    pub(super) pages: Vec<Page>,
}

pub(super) const FRAME: usize = 512;

pub(super) fn number(n: usize) -> u64 {
    u64::try_from(n).unwrap()
}

pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// What a fault should be answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Populate(u64, u64),
    Present,
    Arriving,
    Leaving,
    Exhausted,
}

impl Space {
    pub(super) fn new(id: SpaceId, granule: Granule, pages: usize) -> Self {
        Self { id, granule, pages: vec![UNTOUCHED; pages] }
    }

    pub(super) fn frame(&self, page: usize) -> core::ops::Range<usize> {
        let start = page - page % FRAME;
        start..(start + FRAME).min(self.pages.len())
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = core::ops::Range<usize>> {
        (0..self.pages.len()).step_by(FRAME).map(|start| self.frame(start))
    }

    pub(super) fn resident(&self) -> u64 {
        number(self.pages.iter().filter(|page| page.resident()).count())
    }

    pub(super) fn memory(&self) -> u64 {
        number(self.pages.iter().filter(|page| page.memory).count())
    }

    /// Hands out discards: of the wanted pages, or of whole frames whose every page is allowed.
    pub(super) fn discard(
        &mut self,
        wanted: &BTreeSet<usize>,
        allowed: impl Fn(&Self, usize) -> bool,
    ) -> BTreeSet<usize> {
        let mut all = BTreeSet::new();
        let frames: Vec<_> = self.frames().collect();
        for frame in frames {
            let wanted: Vec<usize> = frame.clone().filter(|page| wanted.contains(page)).collect();
            let free = |page: &usize| {
                let page = &self.pages[*page];
                page.pins == 0 && !page.arriving && !page.leaving
            };
            let whole = !wanted.is_empty() && frame.clone().all(|page| allowed(self, page) && free(&page));
            let found: Vec<usize> = match self.granule {
                _ if whole => frame.clone().collect(),
                Granule::Page => {
                    wanted.into_iter().filter(|page| free(page) && self.pages[*page].resident()).collect()
                }
                Granule::Frame | Granule::Never => vec![],
            };
            if found.iter().any(|page| self.pages[*page].resident()) {
                all.extend(found);
            }
        }
        for page in &all {
            self.pages[*page].leaving = true;
        }
        all
    }

    /// What a fault does, with so much room.
    pub(super) fn fault(&mut self, page: usize, room: u64) -> Answer {
        let at = self.pages[page];
        if at.leaving {
            return Answer::Leaving;
        }
        self.pages[page].takeable = false;
        if at.resident() {
            self.pages[page].set(PageState::Present);
            return if at.arriving { Answer::Arriving } else { Answer::Present };
        }
        let frame = self.frame(page);
        let spare_balloon = at.state != PageState::Ballooned;
        let eligible = |p: &usize| {
            let other = self.pages[*p];
            let alone = spare_balloon && other.state == PageState::Ballooned && self.granule == Granule::Page;
            !other.resident() && !other.leaving && !alone
        };
        let all: Vec<usize> = frame.clone().filter(|p| eligible(p)).collect();
        let run: Vec<usize> = if self.granule == Granule::Frame || (all.len() == frame.len()) {
            if number(all.len()) <= room {
                all
            } else if self.granule == Granule::Frame || room == 0 {
                return Answer::Exhausted;
            } else {
                run_at(page, &frame, room, eligible)
            }
        } else if room == 0 {
            return Answer::Exhausted;
        } else {
            run_at(page, &frame, room, eligible)
        };
        for p in &run {
            let in_balloon = spare_balloon && self.pages[*p].state == PageState::Ballooned;
            if in_balloon {
                self.pages[*p].held = true;
            } else {
                self.pages[*p].set(PageState::Present);
            }
            self.pages[*p].arriving = true;
        }
        let (first, last) = (run[0], run[run.len() - 1]);
        Answer::Populate(number(first), number(last - first + 1))
    }
}

fn run_at(
    page: usize,
    frame: &core::ops::Range<usize>,
    room: u64,
    eligible: impl Fn(&usize) -> bool,
) -> Vec<usize> {
    let most = if room >= 512 { 512 } else { index(room / 8).max(1) };
    let up: Vec<usize> = (page..frame.end).take_while(|p| eligible(p)).take(most).collect();
    let down: Vec<usize> =
        (frame.start..page).rev().take_while(|p| eligible(p)).take(most - up.len()).collect();
    down.into_iter().rev().chain(up).collect()
}
