//! The file that is the guest's memory. It is never mapped here: reading a hole through a mapping would fill it.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use plimsoll_frames::SpaceKey;
use plimsoll_units::{Bytes, PAGE_SIZE, PageCount};
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::StartError;

/// `st_blocks` counts 512 bytes (stat(2)).
pub(crate) const BLOCKS_PER_PAGE: u64 = PAGE_SIZE / 512;
/// `TMPFS_MAGIC` (linux/magic.h); a memfd has it too.
const TMPFS: u64 = 0x0102_1994;
/// How often a call is made again that a signal interrupted.
const TRIES: usize = 64;

/// Pages of the guest's memory, counted from the beginning of the file.
pub(crate) type Pages = Range<u64>;

/// Guest memory, by a descriptor of its own where /proc is there.
///
/// The VMM has the file too and can do to it what it likes: fill it, or shrink it if it is not sealed. Then calls here find something
/// else or fail, and its own guest suffers. What came from it is the same *open file*, though, with one position and one
/// set of flags; a VMM that reads from it into memory that is missing would hold lseek(2) up here for ever.
#[derive(Debug)]
pub(crate) struct GuestFile {
    fd: OwnedFd,
    pages: u64,
}

impl GuestFile {
    /// Checks that it is of a kind that can be served.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, StartError> {
        let failed = |what| move |errno| StartError::File { what, errno };
        let system = rustix::fs::fstatfs(&fd).map_err(failed("file system"))?;
        let found = u64::try_from(system.f_type).unwrap_or(u64::MAX);
        if found != TMPFS {
            return Err(StartError::FileSystem { found });
        }
        let stat = rustix::fs::fstat(&fd).map_err(failed("size"))?;
        let fd = opened_anew(&fd, &stat).unwrap_or(fd);
        Ok(Self { fd, pages: Bytes(size_of(&stat)).pages_floor().0 })
    }

    /// What the ledger knows it by.
    pub(crate) fn key(&self) -> Result<SpaceKey, Errno> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(SpaceKey { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Bytes it has now.
    pub(crate) fn size(&self) -> Result<u64, Errno> {
        rustix::fs::fstat(&self.fd).map(|stat| size_of(&stat))
    }

    /// Whole pages it had in the beginning.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages that the kernel counts: in memory or swapped out.
    pub(crate) fn allocated(&self) -> Result<PageCount, Errno> {
        let blocks = rustix::fs::fstat(&self.fd)?.st_blocks;
        Ok(PageCount(u64::try_from(blocks).unwrap_or(0) / BLOCKS_PER_PAGE))
    }

    /// The first page at or after `page` that has memory. Memory that was only reserved, by fallocate(2), does
    /// not count until it is touched; that is why nothing here reserves any.
    pub(crate) fn next_data(&self, page: u64) -> Result<Option<u64>, Errno> {
        self.seek(SeekFrom::Data(page.saturating_mul(PAGE_SIZE)))
    }

    /// The first page at or after `page` that has none.
    pub(crate) fn next_hole(&self, page: u64) -> Result<u64, Errno> {
        let hole = self.seek(SeekFrom::Hole(page.saturating_mul(PAGE_SIZE)))?;
        // Beyond the end everything is hole.
        Ok(hole.unwrap_or(page))
    }

    fn seek(&self, to: SeekFrom) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(&self.fd, to) {
            Ok(offset) => Ok(Some(offset / PAGE_SIZE)),
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether a page has memory.
    pub(crate) fn has(&self, page: u64) -> Result<bool, Errno> {
        self.next_data(page).map(|next| next == Some(page))
    }

    /// Appends the runs of pages that have memory, `within` some.
    pub(crate) fn data(&self, within: &Pages, out: &mut Vec<Pages>) -> Result<(), Errno> {
        let mut from = within.start;
        while from < within.end {
            let Some(start) = self.next_data(from)?.filter(|start| *start < within.end) else { break };
            let end = self.next_hole(start)?.clamp(start.saturating_add(1), within.end);
            out.push(start..end);
            from = end;
        }
        Ok(())
    }

    /// Gives memory back to the host.
    pub(crate) fn punch(&self, pages: &Pages) -> Result<(), Errno> {
        let (offset, len) = bytes(pages);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        again(|| rustix::fs::fallocate(&self.fd, flags, offset, len))
    }

    /// Reads from the beginning of a page on, as far as one call comes. Holes read as zeros and stay holes.
    pub(crate) fn read(&self, page: u64, into: &mut [u8]) -> Result<usize, Errno> {
        again(|| rustix::io::pread(&self.fd, &mut *into, page.saturating_mul(PAGE_SIZE)))
    }

    /// Writes from the beginning of a page on, as far as one call comes.
    pub(crate) fn write(&self, page: u64, from: &[u8]) -> Result<usize, Errno> {
        again(|| rustix::io::pwrite(&self.fd, from, page.saturating_mul(PAGE_SIZE)))
    }
}

/// The same file in an open file of its own; `None` where that is not allowed.
fn opened_anew(fd: &OwnedFd, stat: &Stat) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let own = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let same = rustix::fs::fstat(&own).ok()?;
    ((same.st_dev, same.st_ino) == (stat.st_dev, stat.st_ino)).then_some(own)
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Where pages lie in the file, and how long they are.
pub(crate) fn bytes(pages: &Pages) -> (u64, u64) {
    let len = pages.end.saturating_sub(pages.start);
    (pages.start.saturating_mul(PAGE_SIZE), len.saturating_mul(PAGE_SIZE))
}

fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..TRIES {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
    call()
}

#[cfg(test)]
pub(crate) mod test {
    use proptest::prelude::*;
    use rustix::fs::MemfdFlags;

    use super::*;

    pub(crate) fn memory(pages: u64) -> GuestFile {
        let fd = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, pages * PAGE_SIZE).unwrap();
        GuestFile::new(fd).unwrap()
    }

    proptest! {
        #[test]
        fn what_was_written_is_data_and_the_rest_is_holes(written in proptest::collection::btree_set(0..64_u64, 0..40)) {
            let file = memory(64);
            for page in &written {
                assert_eq!(file.write(*page, &[1]).unwrap(), 1);
            }
            let mut runs = Vec::new();
            file.data(&(0..64), &mut runs).unwrap();
            prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
            prop_assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), written.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(file.allocated().unwrap(), PageCount(u64::try_from(written.len()).unwrap()));
            for page in 0..64 {
                prop_assert_eq!(file.has(page).unwrap(), written.contains(&page));
            }
        }
    }

    #[test]
    fn only_what_is_within_is_told() {
        let file = memory(16);
        file.write(0, &[1; 16 * 4096]).unwrap();
        let mut runs = Vec::new();
        file.data(&(3..9), &mut runs).unwrap();
        assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn punched_pages_are_holes_and_reading_leaves_them_so() {
        let file = memory(8);
        file.write(0, &[7; 8 * 4096]).unwrap();
        file.punch(&(2..5)).unwrap();
        let mut read = [1; 2 * 4096];
        assert_eq!(file.read(3, &mut read).unwrap(), read.len());
        assert!(read[..4096].iter().all(|byte| *byte == 0));
        assert_eq!(file.allocated().unwrap(), PageCount(5));
    }

    // What the rule "nothing reserves memory" rests on.
    #[test]
    fn memory_that_is_only_reserved_looks_like_a_hole() {
        let file = memory(8);
        rustix::fs::fallocate(&file.fd, FallocateFlags::empty(), 0, 8 * PAGE_SIZE).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        assert_eq!(file.allocated().unwrap(), PageCount(8));
    }

    #[test]
    fn a_file_that_was_cut_is_holes_from_there_on() {
        let file = memory(8);
        file.write(0, &[7; 8 * 4096]).unwrap();
        rustix::fs::ftruncate(&file.fd, 2 * PAGE_SIZE).unwrap();
        let mut runs = Vec::new();
        file.data(&(0..8), &mut runs).unwrap();
        assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), [0, 1]);
        assert!(!file.has(5).unwrap());
        assert_eq!(file.read(5, &mut [0; 4096]).unwrap(), 0);
        file.punch(&(5..6)).unwrap();
    }

    #[test]
    fn what_a_vmm_does_to_its_open_file_does_not_matter() {
        let fd = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 8 * PAGE_SIZE).unwrap();
        let file = GuestFile::new(fd.try_clone().unwrap()).unwrap();
        // With this flag a write goes to the end, wherever it was meant for (pwrite(2), "BUGS").
        rustix::fs::fcntl_setfl(&fd, OFlags::APPEND).unwrap();
        rustix::fs::seek(&fd, SeekFrom::Start(99)).unwrap();
        file.write(1, &[7; 4096]).unwrap();
        assert_eq!((file.next_data(0).unwrap(), file.size().unwrap()), (Some(1), 8 * PAGE_SIZE));
        assert_eq!(rustix::fs::tell(&fd).unwrap(), 99);
    }

    #[test]
    fn a_file_on_another_file_system_is_refused() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(matches!(GuestFile::new(pipe), Err(StartError::FileSystem { .. })));
    }
}
