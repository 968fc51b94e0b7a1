//! What a userfaultfd tells of (`struct uffd_msg`).

use plimsoll_uffd_wire::abi::EVENT_BYTES;
use plimsoll_units::PAGE_SIZE;

use crate::UffdError;

/// `UFFD_EVENT_*`.
const PAGEFAULT: u8 = 0x12;
const FORK: u8 = 0x13;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;
/// `UFFD_PAGEFAULT_FLAG_*`.
const FLAG_WRITE: u64 = 1 << 0;
const FLAG_WP: u64 = 1 << 1;
const FLAG_MINOR: u64 = 1 << 2;

/// Something happened in the watched process.
///
/// What the kernel can tell depends on the [`Features`](crate::Features) asked for; without any, faults only.
/// With a descriptor that a hostile process passed, addresses may be any number: compare them with what is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Pagefault(Fault),
    /// Memory was given back by madvise(2); whoever did it waits until this was read.
    Remove {
        /// The first address.
        start: u64,
        /// The first address behind it.
        end: u64,
    },
    /// Addresses are no longer mapped.
    Unmap {
        /// The first address.
        start: u64,
        /// The first address behind it.
        end: u64,
    },
    /// A mapping was moved by mremap(2) and is watched at its new address.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Its bytes.
        len: u64,
    },
    /// The process forked. Only a userfaultfd that was made elsewhere tells of it: [`Features`](crate::Features) here has no name for
    /// that one, since it puts a descriptor into the reader's process whether it wants it or not.
    Fork {
        /// The number of the child's userfaultfd.
        uffd: u32,
    },
    /// An event that this version does not know.
    Unknown {
        /// Its number.
        event: u8,
    },
}

/// A thread that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The address touched; the kernel rounds it down to the page.
    pub address: u64,
    /// Why it waits.
    pub kind: FaultKind,
    /// It wants to write. The same page may be asked for by a reader and then by a writer.
    pub write: bool,
    /// The thread, if [`Features::THREAD_ID`](crate::Features::THREAD_ID) was asked for, else 0.
    pub thread: u32,
}

impl Fault {
    /// The address of the page.
    #[must_use]
    pub fn page(&self) -> u64 {
        self.address & !(PAGE_SIZE - 1)
    }
}

/// Why a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no page in the file.
    Missing,
    /// The page is write-protected.
    WriteProtected,
    /// The page is in the file but not mapped; not told of by what is registered here.
    Minor,
}

/// Room for a batch of events, kept between reads.
#[derive(Debug)]
pub struct Events {
    bytes: Vec<u8>,
}

impl Events {
    /// For at most `events` events at a time; at least one.
    #[must_use]
    pub fn with_room_for(events: usize) -> Self {
        Self { bytes: vec![0; events.max(1).saturating_mul(EVENT_BYTES)] }
    }

    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The events in the first `bytes` bytes.
    pub(crate) fn parse(&self, bytes: usize) -> Result<impl ExactSizeIterator<Item = Event> + '_, UffdError> {
        let whole = self.bytes.get(..bytes).filter(|read| read.len().is_multiple_of(EVENT_BYTES));
        let whole = whole.ok_or(UffdError::OddRead { bytes })?;
        Ok(whole.chunks_exact(EVENT_BYTES).map(parse))
    }
}

/// One event: its number in byte 0, three words from byte 8 on.
fn parse(message: &[u8]) -> Event {
    let word = |number: usize| {
        let at = number.saturating_mul(8);
        let bytes = message.get(at..at.saturating_add(8)).and_then(|bytes| bytes.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    };
    let low = |number: usize| {
        let at = number.saturating_mul(8);
        let bytes = message.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    };
    match message.first().copied().unwrap_or_default() {
        PAGEFAULT => Event::Pagefault(fault(word(1), word(2), low(3))),
        FORK => Event::Fork { uffd: low(1) },
        REMAP => Event::Remap { from: word(1), to: word(2), len: word(3) },
        REMOVE => Event::Remove { start: word(1), end: word(2) },
        UNMAP => Event::Unmap { start: word(1), end: word(2) },
        event => Event::Unknown { event },
    }
}

fn fault(flags: u64, address: u64, thread: u32) -> Fault {
    let kind = if flags & FLAG_WP != 0 {
        FaultKind::WriteProtected
    } else if flags & FLAG_MINOR != 0 {
        FaultKind::Minor
    } else {
        FaultKind::Missing
    };
    Fault { address, kind, write: flags & FLAG_WRITE != 0, thread }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn message(event: u8, words: [u64; 3]) -> Vec<u8> {
        let head = [event, 0, 0, 0, 0, 0, 0, 0];
        head.into_iter().chain(words.into_iter().flat_map(u64::to_ne_bytes)).collect()
    }

    fn read(message: &[u8]) -> Vec<Event> {
        let mut events = Events::with_room_for(4);
        events.room()[..message.len()].copy_from_slice(message);
        events.parse(message.len()).unwrap().collect()
    }

    #[test]
    fn events_are_told_apart() {
        let fault = |kind, write| Event::Pagefault(Fault { address: 0x7000_1000, kind, write, thread: 42 });
        let two: Vec<u8> =
            [message(0x12, [0, 0x7000_1000, 42]), message(0x12, [1, 0x7000_1000, 42])].concat();
        assert_eq!(read(&two), [fault(FaultKind::Missing, false), fault(FaultKind::Missing, true)]);
        let protected = message(0x12, [3, 0x7000_1000, 42]);
        assert_eq!(read(&protected), [fault(FaultKind::WriteProtected, true)]);
        assert_eq!(read(&message(0x12, [4, 0x7000_1000, 42])), [fault(FaultKind::Minor, false)]);
        assert_eq!(read(&message(0x13, [7, 0, 0])), [Event::Fork { uffd: 7 }]);
        assert_eq!(read(&message(0x14, [1, 2, 3])), [Event::Remap { from: 1, to: 2, len: 3 }]);
        assert_eq!(read(&message(0x15, [1, 2, 0])), [Event::Remove { start: 1, end: 2 }]);
        assert_eq!(read(&message(0x16, [1, 2, 0])), [Event::Unmap { start: 1, end: 2 }]);
        assert_eq!(read(&message(0x99, [1, 2, 0])), [Event::Unknown { event: 0x99 }]);
    }

    #[test]
    fn an_address_inside_a_page_is_of_that_page() {
        let fault = Fault { address: 0x1fff, kind: FaultKind::Missing, write: true, thread: 0 };
        assert_eq!(fault.page(), 0x1000);
    }

    proptest! {
        #[test]
        fn any_bytes_make_events_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let mut events = Events::with_room_for(4);
            events.room()[..bytes.len()].copy_from_slice(&bytes);
            match events.parse(bytes.len()) {
                Ok(found) => prop_assert_eq!(found.len() * EVENT_BYTES, bytes.len()),
                Err(error) => {
                    prop_assert!(bytes.len() % EVENT_BYTES != 0);
                    prop_assert!(error.to_string().contains(&bytes.len().to_string()));
                }
            }
        }
    }

    #[test]
    fn more_than_there_is_room_for_is_an_error() {
        assert!(Events::with_room_for(0).parse(EVENT_BYTES).is_ok_and(|events| events.len() == 1));
        assert!(Events::with_room_for(1).parse(2 * EVENT_BYTES).is_err());
    }
}
