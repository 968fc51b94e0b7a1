//! The guest's memory, as a memory table tells of it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::wire::Region;

/// Bytes in the scratch page, see [`Memory::with_scratch`].
const SCRATCH: u64 = 4096;

/// Why a memory table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file's kind or size cannot be read.
    #[error("a memory region's file cannot be looked at: {0}")]
    Stat(std::io::Error),
    /// A directory, a device, a pipe.
    #[error("a memory region is not backed by a regular file (mode {0:#o})")]
    NotAFile(u32),
    /// The first access past its end would be a SIGBUS.
    #[error("a memory region ends at byte {end} of a file of {length} bytes")]
    BeyondFile {
        /// Where the region ends in its file.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// More than the guest was said to have.
    #[error("the regions have {total} bytes, more than the {limit} allowed for this VM")]
    TooMuch {
        /// All regions together.
        total: u64,
        /// The most allowed.
        limit: u64,
    },
    /// The kernel refused to map a region.
    #[error("a memory region of {length} bytes cannot be mapped: {reason}")]
    Map {
        /// Its length.
        length: u64,
        /// Why.
        reason: String,
    },
    /// The device cannot work with it.
    #[error("the device refuses the memory: {0}")]
    Device(String),
}

/// One region, mapped.
#[derive(Clone, Debug)]
pub struct MappedRegion {
    /// Where it is.
    pub region: Region,
    /// The file it is in.
    pub file: Arc<File>,
    /// The file's device number.
    pub device: u64,
    /// The file's inode number.
    pub inode: u64,
    /// The file's length in bytes when it was mapped.
    pub file_length: u64,
}

/// The guest's memory, mapped into this process.
///
/// A front end may still truncate a file afterwards. The next access is then a SIGBUS that ends this process,
/// which serves this one VM only; its keeper starts another.
#[derive(Debug)]
pub struct Memory {
    map: GuestMemoryMmap,
    regions: Vec<MappedRegion>,
}

impl Memory {
    /// Maps the regions of a table, whose files must hold all of them, up to `limit` bytes together.
    ///
    /// # Errors
    /// When a region cannot be what it says; nothing stays mapped.
    pub fn map(table: Vec<(Region, Arc<OwnedFd>)>, limit: u64) -> Result<Self, MemoryError> {
        let total = table.iter().fold(0u64, |sum, (region, _)| sum.saturating_add(region.length));
        if total > limit {
            return Err(MemoryError::TooMuch { total, limit });
        }
        let mut regions = Vec::with_capacity(table.len());
        for (region, fd) in table {
            regions.push(open_region(region, &fd)?);
        }
        regions.sort_by_key(|mapped| mapped.region.guest);
        let mut mapped = Vec::with_capacity(regions.len());
        for part in &regions {
            mapped.push(Arc::new(map_region(part)?));
        }
        let map = GuestMemoryMmap::from_arc_regions(mapped)
            .map_err(|error| MemoryError::Map { length: total, reason: error.to_string() })?;
        Ok(Self { map, regions })
    }

    /// The memory as the guest addresses it.
    #[must_use]
    pub fn map_of_guest(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Its regions, by guest physical address.
    #[must_use]
    pub fn regions(&self) -> &[MappedRegion] {
        &self.regions
    }

    /// Where something is that the front end names by its own address.
    #[must_use]
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|mapped| {
            let offset = user.checked_sub(mapped.region.user)?;
            let guest = mapped.region.guest.checked_add(offset)?;
            (offset < mapped.region.length).then_some(GuestAddress(guest))
        })
    }

    /// Host memory behind the guest's, in bytes: what the kernel counts for each backing file, once.
    #[must_use]
    pub fn resident(&self) -> u64 {
        let mut seen = Vec::new();
        let mut bytes = 0u64;
        for mapped in &self.regions {
            let key = (mapped.device, mapped.inode);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let blocks = mapped.file.metadata().map_or(0, |stat| stat.blocks());
            bytes = bytes.saturating_add(blocks.saturating_mul(512));
        }
        bytes
    }

    /// The memory with a page of our own at an address where the guest has none, from which
    /// [`crate::Ring::recover`] works. None if the guest's regions leave no such page.
    #[must_use]
    pub fn with_scratch(&self) -> Option<(GuestMemoryMmap, GuestAddress)> {
        let ends = self.regions.iter().filter_map(|mapped| {
            let end = mapped.region.guest.checked_add(mapped.region.length)?;
            end.checked_next_multiple_of(SCRATCH)
        });
        let length = usize::try_from(SCRATCH).ok()?;
        ends.chain([0]).find_map(|at| {
            at.checked_add(SCRATCH)?;
            let page = MmapRegion::new(length).ok()?;
            let page = GuestRegionMmap::new(page, GuestAddress(at))?;
            // Refused where it would overlap a region.
            let map = self.map.insert_region(Arc::new(page)).ok()?;
            Some((map, GuestAddress(at)))
        })
    }
}

fn open_region(region: Region, fd: &OwnedFd) -> Result<MappedRegion, MemoryError> {
    let file = File::from(fd.as_fd().try_clone_to_owned().map_err(MemoryError::Stat)?);
    let stat = file.metadata().map_err(MemoryError::Stat)?;
    if !stat.is_file() {
        return Err(MemoryError::NotAFile(stat.mode()));
    }
    let end = region.offset.saturating_add(region.length);
    if end > stat.len() {
        return Err(MemoryError::BeyondFile { end, length: stat.len() });
    }
    let (device, inode, file_length) = (stat.dev(), stat.ino(), stat.len());
    Ok(MappedRegion { region, file: Arc::new(file), device, inode, file_length })
}

fn map_region(mapped: &MappedRegion) -> Result<GuestRegionMmap, MemoryError> {
    let length = mapped.region.length;
    let refuse = |reason: String| MemoryError::Map { length, reason };
    let bytes = usize::try_from(length).map_err(|error| refuse(error.to_string()))?;
    let place = FileOffset::from_arc(Arc::clone(&mapped.file), mapped.region.offset);
    let map = MmapRegion::from_file(place, bytes).map_err(|error| refuse(error.to_string()))?;
    GuestRegionMmap::new(map, GuestAddress(mapped.region.guest))
        .ok_or_else(|| refuse("it wraps around the end of the address space".to_owned()))
}

#[cfg(test)]
mod test {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    fn memfd(length: u64) -> Arc<OwnedFd> {
        let fd = rustix::fs::memfd_create("plimsoll-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, length).unwrap();
        Arc::new(fd)
    }

    fn region(guest: u64, length: u64, user: u64, offset: u64) -> Region {
        Region { guest, length, user, offset }
    }

    #[test]
    fn two_regions_on_one_file_are_translated_and_counted_once() {
        let file = memfd(0x10_0000);
        let table = vec![
            (region(0x100_0000, 0x4000, 0x7000_0000, 0x8000), Arc::clone(&file)),
            (region(0x1000, 0x8000, 0x6000_0000, 0), file),
        ];
        let memory = Memory::map(table, u64::MAX).unwrap();
        assert_eq!(memory.guest_address(0x7000_3fff), Some(GuestAddress(0x100_3fff)));
        assert_eq!(memory.guest_address(0x7000_4000), None);
        assert_eq!(memory.guest_address(0x6000_0000), Some(GuestAddress(0x1000)));
        assert_eq!(memory.guest_address(0), None);
        assert_eq!(memory.resident(), 0);
        memory.map_of_guest().write_obj(7u64, GuestAddress(0x100_0000)).unwrap();
        memory.map_of_guest().write_obj(7u64, GuestAddress(0x1000)).unwrap();
        assert_eq!(memory.resident(), 8192);
        let mut word = [0; 8];
        rustix::io::pread(&memory.regions()[0].file, &mut word, 0).unwrap();
        assert_eq!(u64::from_le_bytes(word), 7, "the lower region is at the file's beginning");
        let (scratch, at) = memory.with_scratch().unwrap();
        assert_eq!(scratch.num_regions(), 3);
        assert_eq!(memory.map_of_guest().num_regions(), 2);
        assert!(memory.map_of_guest().find_region(at).is_none());
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let refuse = |region, fd, limit| Memory::map(vec![(region, fd)], limit).unwrap_err();
        let file = || memfd(0x4000);
        assert!(matches!(
            refuse(region(0, 0x4001, 0, 0), file(), u64::MAX),
            MemoryError::BeyondFile { end: 0x4001, length: 0x4000 }
        ));
        assert!(matches!(
            refuse(region(0, 0x1000, 0, 0x4000), file(), u64::MAX),
            MemoryError::BeyondFile { .. }
        ));
        assert!(matches!(refuse(region(0, 0x4000, 0, 0), file(), 0x3fff), MemoryError::TooMuch { .. }));
        assert!(matches!(refuse(region(0, 0x1000, 0, 1), file(), u64::MAX), MemoryError::Map { .. }));
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(matches!(refuse(region(0, 1, 0, 0), Arc::new(pipe), 1), MemoryError::NotAFile(_)));
        let null = OwnedFd::from(File::open("/dev/zero").unwrap());
        assert!(matches!(refuse(region(0, 1, 0, 0), Arc::new(null), 1), MemoryError::NotAFile(_)));
        let read_only = OwnedFd::from(File::open("/proc/self/exe").unwrap());
        assert!(matches!(refuse(region(0, 4096, 0, 0), Arc::new(read_only), 4096), MemoryError::Map { .. }));
    }
}
