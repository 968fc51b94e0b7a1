//! Discarding in anonymous memory of this process: for a VMM that embeds the device.
#![expect(unsafe_code, reason = "madvise(2) on a mapping is the only way to give anonymous memory back")]

use std::sync::Arc;

use plimsoll_frames::SpaceId;
use plimsoll_units::{Bytes, PAGE_SIZE};
use rustix::mm::{Advice, madvise};
use vm_memory::MmapRegion;

use crate::discard::{DiscardError, Discarder, PerSpace, clip};

/// `MAP_PRIVATE` of mmap(2), `include/uapi/linux/mman.h`.
const MAP_PRIVATE: i32 = 2;

/// Why a mapping cannot be discarded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnonymousError {
    /// Memory of a file, or shared: `MADV_DONTNEED` drops only this process' view of it and frees nothing. A private
    /// mapping of a file would even show the file's old contents.
    #[error("the mapping is not private anonymous memory; discard in its file instead")]
    NotAnonymous,
    /// hugetlb pages need another granule than this discarder assumes.
    #[error("the mapping has huge pages of hugetlbfs; use memory of a file for those")]
    Hugetlb,
}

/// Discards with `madvise(MADV_DONTNEED)` (madvise(2)) in private anonymous mappings. A space here is one mapping, and offsets
/// count from its beginning. For the ledger such a space needs a key of the caller's choice that no file has,
/// for instance device 0 and the region's number.
#[derive(Default)]
pub struct AnonymousDiscarder {
    spaces: PerSpace<Arc<MmapRegion>>,
}

impl AnonymousDiscarder {
    /// Makes a space's mapping known, or replaces it. The mapping lives as long as it is known here.
    ///
    /// # Errors
    /// [`AnonymousError`] if discarding in it would not do what is meant.
    pub fn insert(&mut self, space: SpaceId, mapping: Arc<MmapRegion>) -> Result<(), AnonymousError> {
        if mapping.file_offset().is_some() || mapping.flags() & MAP_PRIVATE == 0 {
            return Err(AnonymousError::NotAnonymous);
        }
        if mapping.is_hugetlbfs() == Some(true) {
            return Err(AnonymousError::Hugetlb);
        }
        self.spaces.insert(space, mapping);
        Ok(())
    }
}

impl Discarder for AnonymousDiscarder {
    fn discard(&mut self, space: SpaceId, offset: Bytes, len: Bytes) -> Result<Bytes, DiscardError> {
        let mapping = self.spaces.get(space)?;
        let size = Bytes(u64::try_from(mapping.size()).unwrap_or(0)).pages_floor().bytes();
        let Some(len) = clip(offset, len, size) else { return Ok(Bytes::ZERO) };
        let unaligned = DiscardError::Unaligned { space, offset, len, granule: Bytes(PAGE_SIZE) };
        let (Ok(start), Ok(count)) = (usize::try_from(offset.0), usize::try_from(len.0)) else {
            return Err(unaligned);
        };
        if !offset.is_page_multiple() || !len.is_page_multiple() {
            return Err(unaligned);
        }
        let address = mapping.as_ptr().wrapping_add(start);
        // SAFETY: `address..address + count` lies within the mapping (clipped to its size above), which the `Arc` keeps mapped.
        // It is guest memory: vm-memory gives out no references to it, only volatile access, which bears that the
        // contents change to zeros at any time. It is private and anonymous (checked on insertion), so no file and no
        // other process is concerned.
        let done = unsafe { madvise(address.cast(), count, Advice::LinuxDontNeed) };
        done.map_err(|source| DiscardError::Kernel { space, offset, len, source })?;
        Ok(len)
    }

    fn forget(&mut self, space: SpaceId) {
        self.spaces.remove(space);
    }
}
