//! The guest's memory as its VMM maps it, seen through the userfaultfd.

use plimsoll_uffd::{HostRange, Protection, Stop, Uffd, UffdError, Woken};
use plimsoll_units::PAGE_SIZE;
use rustix::io::Errno;

use crate::file::{Pages, bytes};

/// How often a request is made again that the kernel refused because the VMM's mappings are just changing. They may be
/// changing until somebody has read an event, so that asking for ever could be waiting for oneself.
const TRIES: usize = 64;

/// Where the guest's memory is mapped: page 0 of the file at the range's start.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) uffd: Uffd,
    range: HostRange,
}

/// Why pages were not filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfilled {
    /// There is no memory to be had, or the file does not take it.
    Refused(Errno),
    /// The VMM's mappings are changing: again in a moment.
    Busy,
    /// The VMM has no mapping there any more, so nobody waits.
    Unmapped,
    /// The VMM has ended.
    Gone,
}

/// How far filling came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    /// One past the last page that has memory now, of those that were to have some.
    pub(crate) end: u64,
    /// Why it did not come further; `None` if all have memory.
    pub(crate) why: Option<Unfilled>,
}

impl Mapping {
    pub(crate) fn new(uffd: Uffd, range: HostRange) -> Self {
        Self { uffd, range }
    }

    /// Addresses of pages; `None` if there are none, or they are not mapped.
    pub(crate) fn host(&self, pages: &Pages) -> Option<HostRange> {
        let (offset, len) = bytes(pages);
        let range = HostRange::new(self.range.start().checked_add(offset)?, len).ok()?;
        (range.end() <= self.range.end()).then_some(range)
    }

    /// The page at an address; `None` for one that is not the guest's memory.
    pub(crate) fn page_at(&self, address: u64) -> Option<u64> {
        let offset = self.range.contains(address).then(|| address.checked_sub(self.range.start()))?;
        offset.map(|offset| offset / PAGE_SIZE)
    }

    /// Lets all go on who wait for these pages. Whose page is not there comes back with a new fault, so that this
    /// is always safe and sometimes in vain.
    pub(crate) fn wake(&self, pages: &Pages) -> Result<(), UffdError> {
        self.host(pages).map_or(Ok(()), |range| self.uffd.wake(range))
    }

    /// Puts zero pages where there are none, without waking anybody. Pages that are there already stay as they are.
    pub(crate) fn zero(&self, pages: &Pages) -> Filled {
        let mut from = pages.start;
        let mut tries = TRIES;
        while from < pages.end {
            let Some(range) = self.host(&(from..pages.end)) else {
                return Filled { end: from, why: Some(Unfilled::Unmapped) };
            };
            let filled = match self.uffd.zeropage(range, Woken::No) {
                Ok(filled) => filled,
                Err(error) => return Filled { end: from, why: Some(why(&error)) },
            };
            from = from.saturating_add(filled.bytes / PAGE_SIZE);
            match filled.stopped {
                None => {}
                Some(Stop::Exists) => from = from.saturating_add(1),
                Some(Stop::Again) if tries > 0 => {
                    tries = tries.saturating_sub(1);
                    std::thread::yield_now();
                }
                Some(Stop::Again) => return Filled { end: from, why: Some(Unfilled::Busy) },
            }
        }
        Filled { end: pages.end, why: None }
    }

    /// Makes whoever writes to these pages wait. If it fails some of them may be protected.
    pub(crate) fn protect(&self, pages: &Pages) -> Result<(), Unfilled> {
        self.persist(pages, |range| self.uffd.write_protect(range))
    }

    /// Lifts protection and wakes who waits because of it. If it fails nobody was woken for nothing: who is
    /// still held comes back with a new fault when woken.
    pub(crate) fn lift(&self, pages: &Pages) -> Result<(), Unfilled> {
        self.persist(pages, |range| self.uffd.lift_protection(range, Woken::Yes))
    }

    fn persist(
        &self,
        pages: &Pages,
        ask: impl Fn(HostRange) -> Result<Protection, UffdError>,
    ) -> Result<(), Unfilled> {
        let Some(range) = self.host(pages) else { return Ok(()) };
        for _ in 0..TRIES {
            match ask(range) {
                Ok(Protection::Changed) => return Ok(()),
                Ok(Protection::Again) => std::thread::yield_now(),
                Err(error) => return Err(why(&error)),
            }
        }
        Err(Unfilled::Busy)
    }
}

fn why(error: &UffdError) -> Unfilled {
    match error {
        UffdError::Gone => Unfilled::Gone,
        UffdError::Kernel { errno: Errno::NOENT, .. } => Unfilled::Unmapped,
        UffdError::Kernel { errno, .. } => Unfilled::Refused(*errno),
        // None of them comes of a request about a range.
        UffdError::NotAllowed { .. }
        | UffdError::Absent
        | UffdError::Lacks { .. }
        | UffdError::Range { .. }
        | UffdError::NotUserfaultfd { .. }
        | UffdError::OddRead { .. }
        | UffdError::Read { .. } => Unfilled::Refused(Errno::INVAL),
    }
}
