//! The one mapping of the guest's memory.
//!
//! ```text
//! Free -- mmap of the told file --> Claimed -- accepted by the pager --> Watched -- all of it unmapped --> Free
//!              |                       |
//!              |                       `- mmap failed -> Free;  not watched, not accepted -> the process ends
//!              `- privately, in part -> the process ends
//! a mmap of the told file in any state but Free -> the process ends
//! ```

use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};

use libc::c_int;
use plimsoll_uffd_wire::agreement::{OnPagerLoss, exit};
use plimsoll_uffd_wire::handover::{Extent, Handover};

use crate::calls::{self, Errno, Mmap};
use crate::say::Line;
use crate::told::Told;
use crate::{environment, pager, userfaultfd};

const FREE: u8 = 0;
const CLAIMED: u8 = 1;
const WATCHED: u8 = 2;

/// Which mapping is watched, from where on it counts in the state `Watched`.
struct Mapping {
    state: AtomicU8,
    start: AtomicU64,
    length: AtomicU64,
    socket: AtomicI32,
    /// The library's own copy of the userfaultfd, or -1.
    kept: AtomicI32,
    /// A child that this process forked is another one.
    process: AtomicI32,
}

static MAPPING: Mapping = Mapping {
    state: AtomicU8::new(FREE),
    start: AtomicU64::new(0),
    length: AtomicU64::new(0),
    socket: AtomicI32::new(-1),
    kept: AtomicI32::new(-1),
    process: AtomicI32::new(0),
};

/// Maps the told file, watched, and returns when its pager has accepted.
///
/// # Safety
/// As mmap(2).
pub(crate) unsafe fn map(told: &Told, call: &Mmap, size: u64) -> Result<usize, Errno> {
    if let Some(why) = unfit(call, size) {
        refuse(why);
    }
    let claimed = MAPPING.state.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Acquire);
    if claimed.is_err() {
        refuse("a second time, whose faults nobody would see");
    }
    // Not accessible until it is watched, so that nothing fills it before: neither MAP_POPULATE nor MAP_LOCKED, nor
    // mlockall(2), which the kernel would carry out here and now.
    let closed = Mmap { protection: libc::PROT_NONE, ..*call };
    // SAFETY: the caller's arguments, on the caller's promise.
    let address = match unsafe { calls::mmap(&closed) } {
        Ok(address) => address,
        Err(errno) => {
            MAPPING.state.store(FREE, Ordering::Release);
            return Err(errno);
        }
    };
    watch(told, address, size, call);
    Ok(address)
}

/// What is wrong with a mapping of the told file, if anything.
fn unfit(call: &Mmap, size: u64) -> Option<&'static str> {
    let shared = matches!(call.flags & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE);
    if !shared {
        return Some("privately, whose copies no limit would hold for; it needs share=on");
    }
    let whole = call.offset == 0 && u64::try_from(call.length) == Ok(size);
    if !whole {
        return Some("in part, or beyond its end");
    }
    None
}

fn refuse(how: &str) -> ! {
    Line::new("this process maps its guest's memory ").and(how).end(exit::MAPPING)
}

fn watch(told: &Told, address: usize, length: u64, call: &Mmap) {
    let start = u64::try_from(address).unwrap_or(0);
    let uffd = userfaultfd::watch(start, length);
    if let Err(errno) = calls::mprotect(address, call.length, call.protection) {
        Line::new("cannot make the guest's memory accessible").errno(errno).end(exit::KERNEL);
    }
    let said = Handover { address: start, length, offset: 0, loss: told.loss };
    let socket = pager::hand_over(told, said, uffd, call.fd);
    let kept = match told.loss {
        OnPagerLoss::Stall => uffd,
        OnPagerLoss::Open => {
            calls::close(uffd);
            -1
        }
    };
    MAPPING.start.store(start, Ordering::Relaxed);
    MAPPING.length.store(length, Ordering::Relaxed);
    MAPPING.socket.store(socket, Ordering::Relaxed);
    MAPPING.kept.store(kept, Ordering::Relaxed);
    MAPPING.process.store(calls::process_id(), Ordering::Relaxed);
    MAPPING.state.store(WATCHED, Ordering::Release);
    environment::forget_preload();
}

/// The piece of the file that is mapped between two addresses, if it is watched.
pub(crate) fn piece(address: usize, length: usize) -> Option<Extent> {
    if MAPPING.state.load(Ordering::Acquire) != WATCHED {
        return None;
    }
    let start = MAPPING.start.load(Ordering::Relaxed);
    let whole = Extent { offset: start, length: MAPPING.length.load(Ordering::Relaxed) };
    let asked = Extent { offset: u64::try_from(address).ok()?, length: u64::try_from(length).ok()? };
    let common = overlap(whole, asked)?;
    Some(Extent { offset: common.offset.checked_sub(start)?, length: common.length })
}

fn overlap(one: Extent, other: Extent) -> Option<Extent> {
    let end = |extent: Extent| extent.offset.saturating_add(extent.length);
    let offset = one.offset.max(other.offset);
    let length = end(one).min(end(other)).checked_sub(offset)?;
    (length > 0).then_some(Extent { offset, length })
}

/// The socket, if there is a mapping that this very process handed over.
fn socket() -> Option<c_int> {
    let watched = MAPPING.state.load(Ordering::Acquire) == WATCHED;
    let ours = watched && MAPPING.process.load(Ordering::Relaxed) == calls::process_id();
    ours.then(|| MAPPING.socket.load(Ordering::Relaxed))
}

/// Memory of the file was given back.
pub(crate) fn punched(told: &Told, extent: Extent) {
    if let Some(socket) = socket() {
        pager::punched(socket, told.loss, extent);
    }
}

/// A piece is no longer mapped. When that is all of it, the file may be mapped again.
pub(crate) fn unmapped(told: &Told, extent: Extent) {
    let Some(socket) = socket() else { return };
    pager::unmapped(socket, told.loss, extent);
    if extent.length < MAPPING.length.load(Ordering::Relaxed) {
        return;
    }
    let freed = MAPPING.state.compare_exchange(WATCHED, FREE, Ordering::AcqRel, Ordering::Acquire);
    if freed.is_ok() {
        calls::close(MAPPING.kept.load(Ordering::Relaxed));
        calls::close(socket);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const SHARED: Mmap = Mmap {
        address: core::ptr::null_mut(),
        length: 8192,
        protection: libc::PROT_READ,
        flags: libc::MAP_SHARED,
        fd: 3,
        offset: 0,
    };

    #[test]
    fn only_the_whole_file_shared_will_do() {
        assert_eq!(unfit(&SHARED, 8192), None);
        let with = |flags| unfit(&Mmap { flags, ..SHARED }, 8192);
        assert_eq!(with(libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE | libc::MAP_POPULATE), None);
        assert_eq!(with(libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC), None);
        assert!(with(libc::MAP_PRIVATE).is_some_and(|why| why.contains("share=on")));
        assert_eq!(with(libc::MAP_SHARED | libc::MAP_LOCKED), None);
        for (length, offset, size) in [(4096, 0, 8192), (8192, 4096, 12288), (8192, 0, 4096), (0, 0, 8192)] {
            let why = unfit(&Mmap { length, offset, ..SHARED }, size);
            assert!(why.is_some_and(|why| why.contains("part")), "{length} from {offset} of {size}");
        }
    }

    #[test]
    fn what_two_pieces_have_in_common() {
        let whole = Extent { offset: 100, length: 50 };
        let with = |offset, length| {
            overlap(whole, Extent { offset, length }).map(|common| (common.offset, common.length))
        };
        assert_eq!(with(0, 1000), Some((100, 50)));
        assert_eq!(with(110, 10), Some((110, 10)));
        assert_eq!(with(90, 20), Some((100, 10)));
        assert_eq!(with(140, u64::MAX), Some((140, 10)));
        assert_eq!((with(0, 100), with(150, 10), with(120, 0)), (None, None, None));
    }

    #[test]
    fn without_a_mapping_nothing_is_watched() {
        assert_eq!(piece(0, usize::MAX), None);
        assert_eq!(socket(), None);
    }
}
