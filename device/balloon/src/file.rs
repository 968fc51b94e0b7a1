//! Discarding in files: memfd, tmpfs and hugetlb.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use plimsoll_frames::{Granule, SpaceError, SpaceId, SpaceKey};
use plimsoll_units::{Bytes, Gpa, PAGE_SIZE, PageCount};
use rustix::fs::{FallocateFlags, fallocate, fstat, fstatfs};
use rustix::io::Errno;

use crate::discard::{DiscardError, Discarder, PerSpace, clip};
use crate::{Balloon, MapError, MemoryMap, Region};

/// `f_type` of hugetlbfs, memfds with huge pages included (statfs(2); `include/uapi/linux/magic.h`).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Why a file cannot hold a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// fstat(2) or fstatfs(2) failed.
    #[error("cannot learn what backs the guest's memory: {0}")]
    Stat(Errno),
}

/// What is to be known of a backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// What tells it from others.
    pub key: SpaceKey,
    /// Its length, rounded down to whole pages.
    pub pages: PageCount,
    /// The host's page size in it.
    pub host_page: Bytes,
}

impl FileFacts {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`FileError::Stat`] if it does not answer.
    pub fn of(file: impl AsFd) -> Result<Self, FileError> {
        let stat = fstat(&file).map_err(FileError::Stat)?;
        let system = fstatfs(&file).map_err(FileError::Stat)?;
        // Elsewhere a hole can be punched in units of 4 KiB; hugetlb's block is its page.
        let huge = system.f_type == HUGETLBFS_MAGIC;
        let block = u64::try_from(system.f_bsize).unwrap_or(u64::MAX);
        Ok(Self {
            key: SpaceKey { device: stat.st_dev, inode: stat.st_ino },
            pages: Bytes(u64::try_from(stat.st_size).unwrap_or(0)).pages_floor(),
            host_page: Bytes(if huge { block } else { PAGE_SIZE }),
        })
    }

    /// The granule for the ledger.
    #[must_use]
    pub const fn granule(&self) -> Granule {
        Granule::from_bytes(self.host_page)
    }
}

struct Backing {
    file: OwnedFd,
    len: Bytes,
    host_page: Bytes,
}

/// Punches holes into backing files with fallocate(2). That frees the memory at once for every process
/// that maps the file, and no userfaultfd hears of it.
#[derive(Default)]
pub struct FileDiscarder {
    spaces: PerSpace<Backing>,
}

impl FileDiscarder {
    /// Makes a space's file known, or replaces it.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be asked for its length and page size.
    pub fn insert(&mut self, space: SpaceId, file: OwnedFd) -> Result<(), FileError> {
        let facts = FileFacts::of(&file)?;
        self.spaces.insert(space, Backing { file, len: facts.pages.bytes(), host_page: facts.host_page });
        Ok(())
    }
}

impl Discarder for FileDiscarder {
    fn discard(&mut self, space: SpaceId, offset: Bytes, len: Bytes) -> Result<Bytes, DiscardError> {
        let backing = self.spaces.get(space)?;
        let Some(len) = clip(offset, len, backing.len) else { return Ok(Bytes::ZERO) };
        // hugetlb zeroes the parts of pages that a hole does not cover whole: that would be work for no memory.
        let aligned = |n: Bytes| n.0.is_multiple_of(backing.host_page.0);
        if !aligned(offset) || !aligned(len) {
            return Err(DiscardError::Unaligned { space, offset, len, granule: backing.host_page });
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| fallocate(&backing.file, punch, offset.0, len.0))
            .map_err(|source| DiscardError::Kernel { space, offset, len, source })?;
        Ok(len)
    }

    fn forget(&mut self, space: SpaceId) {
        self.spaces.remove(space);
    }
}

/// A piece of guest memory as a front end passes it: addresses, and the file they lie in.
#[derive(Debug)]
pub struct FileRegion {
    /// The first guest physical address.
    pub gpa: Gpa,
    /// How much.
    pub len: Bytes,
    /// Where in the file it begins.
    pub offset: Bytes,
    /// The file. Several regions may come with descriptors of the same one.
    pub file: OwnedFd,
}

/// Why a memory table was not taken over. The device then has no memory at all, and discards nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A file is no good.
    #[error(transparent)]
    File(#[from] FileError),
    /// The ledger has no place for it.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The regions contradict one another.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A region ends beyond its file.
    #[error("the memory region at guest address {gpa:#x} needs {need} bytes of a file that has {have}")]
    FileTooShort {
        /// The region's first address.
        gpa: u64,
        /// Where it ends in the file.
        need: u64,
        /// The file's length.
        have: u64,
    },
}

impl<W: AsRef<[AtomicU64]>> Balloon<W, FileDiscarder> {
    /// Takes over a memory table: finds the files' spaces in the ledger or adds them, maps the regions, and forgets the files that
    /// are no longer in it (I/O on them must be over). Files that stay keep their pages' states.
    ///
    /// # Errors
    /// [`ReplaceError`]; the device has no memory then, until a good table comes.
    pub fn replace_memory(&mut self, regions: Vec<FileRegion>) -> Result<(), ReplaceError> {
        // If anything fails, better no memory than a half-known one.
        self.set_map(MemoryMap::default());
        let mut mapped = Vec::with_capacity(regions.len());
        let mut files = Vec::with_capacity(regions.len());
        for region in regions {
            let facts = FileFacts::of(&region.file)?;
            let (need, have) = (region.offset.plus(region.len), facts.pages.bytes());
            if need.pages_floor().bytes() > have {
                return Err(ReplaceError::FileTooShort { gpa: region.gpa.0, need: need.0, have: have.0 });
            }
            files.push((facts, region));
        }
        self.keep_spaces(|key| files.iter().any(|(facts, _)| facts.key == key));
        for (facts, region) in files {
            let space = self.ledger_mut().add_space(facts.key, facts.pages, facts.granule())?;
            mapped.push(Region { gpa: region.gpa, len: region.len, space, offset: region.offset });
            self.discarder_mut().insert(space, region.file)?;
        }
        self.set_map(MemoryMap::new(mapped)?);
        Ok(())
    }
}
