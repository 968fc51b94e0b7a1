//! Memory of 64-bit words that two processes see.
#![expect(
    unsafe_code,
    reason = "maps a sealed memfd and lends it out as atomics; there is no safe call for it"
)]

use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::ShmError;

/// Bytes in a word.
const WORD: usize = 8;

/// What keeps the size of the memory as it is: without these seals the other side could shrink the file,
/// and the next access here would be a SIGBUS (memfd_create(2), fcntl(2) "File Sealing").
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A piece of shared memory, as 64-bit atomics. Cloning is cheap and shows the same words; a piece of it is
/// taken with [`SharedWords::piece`]. The memory is unmapped when the last clone is gone.
#[derive(Clone, Debug)]
pub struct SharedWords {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl SharedWords {
    /// New memory of `words` words, all zero, and the descriptor to give to another process. `name` shows
    /// up in /proc as `memfd:name`; it needs not be unique.
    ///
    /// # Errors
    /// When the kernel refuses the memory, or there are more words than can be mapped.
    pub fn create(name: &str, words: usize) -> Result<(Self, OwnedFd), ShmError> {
        let bytes = byte_len(words)?;
        let memfd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|errno| ShmError::kernel("create shared memory", errno))?;
        rustix::fs::ftruncate(&memfd, bytes)
            .map_err(|errno| ShmError::kernel("set the size of shared memory", errno))?;
        rustix::fs::fcntl_add_seals(&memfd, SEALS)
            .map_err(|errno| ShmError::kernel("seal shared memory", errno))?;
        let words = Self::attach(&memfd, words)?;
        Ok((words, memfd))
    }

    /// The memory behind a descriptor that another process made with [`SharedWords::create`]. The
    /// descriptor is not needed afterwards.
    ///
    /// # Errors
    /// When it has another size, could change its size, or cannot be mapped.
    pub fn attach(memfd: impl AsFd, words: usize) -> Result<Self, ShmError> {
        let wanted = byte_len(words)?;
        let found = sealed_len(&memfd)?;
        if found != wanted {
            return Err(ShmError::Size { wanted, found });
        }
        let mapping = Mapping::new(memfd, words)?;
        Ok(Self { mapping: Arc::new(mapping), start: 0, len: words })
    }

    /// All of the memory behind a descriptor, whatever its size; what lies in it has to say how much there
    /// should be.
    ///
    /// # Errors
    /// When it could change its size or cannot be mapped.
    pub fn attach_all(memfd: impl AsFd) -> Result<Self, ShmError> {
        let bytes = usize::try_from(sealed_len(&memfd)?).map_err(|_| ShmError::TooLarge(usize::MAX))?;
        Self::attach(memfd, bytes / WORD)
    }

    /// Words `start` to `start + len` of this piece; `None` if they are not all in it.
    #[must_use]
    pub fn piece(&self, start: usize, len: usize) -> Option<Self> {
        if start.checked_add(len)? > self.len {
            return None;
        }
        Some(Self { mapping: Arc::clone(&self.mapping), start: self.start.checked_add(start)?, len })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // `piece` let nothing through that is not inside, so the fallback is never taken.
        self.mapping.words().get(self.start..self.start.saturating_add(self.len)).unwrap_or(&[])
    }
}

impl AsRef<[AtomicU64]> for SharedWords {
    fn as_ref(&self) -> &[AtomicU64] {
        self
    }
}

/// The size in bytes of memory that cannot change its size.
fn sealed_len(memfd: impl AsFd) -> Result<u64, ShmError> {
    let seals = rustix::fs::fcntl_get_seals(&memfd)
        .map_err(|errno| ShmError::kernel("read the seals of shared memory", errno))?;
    if !seals.contains(SEALS) {
        return Err(ShmError::NotSealed);
    }
    let stat = rustix::fs::fstat(&memfd)
        .map_err(|errno| ShmError::kernel("read the size of shared memory", errno))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

fn byte_len(words: usize) -> Result<u64, ShmError> {
    let bytes = words.checked_mul(WORD).filter(|bytes| isize::try_from(*bytes).is_ok());
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or(ShmError::TooLarge(words))
}

/// One mapping of a whole memfd.
#[derive(Debug)]
struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory belongs to no thread, and all access to it is through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out nothing but `&[AtomicU64]`.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(memfd: impl AsFd, words: usize) -> Result<Self, ShmError> {
        if words == 0 {
            return Ok(Self { start: NonNull::dangling(), words });
        }
        let bytes = words.checked_mul(WORD).ok_or(ShmError::TooLarge(words))?;
        // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is touched. The file
        // has these bytes and is sealed, which the caller has checked, so that an access cannot fault.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memfd,
                0,
            )
        }
        .map_err(|errno| ShmError::kernel("map shared memory", errno))?;
        let start = NonNull::new(start.cast()).ok_or(ShmError::TooLarge(words))?;
        Ok(Self { start, words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `words` words, is page-aligned, zero-filled by the kernel when new, and lives
        // as long as `self`. Others write to it too, but an AtomicU64 may be changed by anybody at any time,
        // and every bit pattern is one of its values.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let bytes = self.words.saturating_mul(WORD);
        if bytes == 0 {
            return;
        }
        // SAFETY: this is the mapping that `new` made, and no reference into it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok(), "unmap shared memory: {unmapped:?}");
    }
}

#[cfg(test)]
mod test {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    #[test]
    fn two_mappings_show_the_same_words() {
        let (one, memfd) = SharedWords::create("plimsoll-test", 1000).unwrap();
        let two = SharedWords::attach(&memfd, 1000).unwrap();
        assert_eq!(SharedWords::attach_all(memfd).unwrap().len(), 1000);
        assert!(one.iter().all(|word| word.load(SeqCst) == 0));
        one[999].store(42, SeqCst);
        assert_eq!(two[999].load(SeqCst), 42);
        two[0].fetch_add(1, SeqCst);
        assert_eq!(one[0].load(SeqCst), 1);
    }

    #[test]
    fn a_piece_outlives_the_whole_and_stays_inside() {
        let (whole, _memfd) = SharedWords::create("plimsoll-test", 100).unwrap();
        let piece = whole.piece(10, 20).unwrap();
        let inner = piece.piece(19, 1).unwrap();
        whole[29].store(5, SeqCst);
        drop(whole);
        assert_eq!((piece.len(), inner.len()), (20, 1));
        assert_eq!(inner[0].load(SeqCst), 5);
        assert!(piece.piece(20, 1).is_none());
        assert!(piece.piece(usize::MAX, 2).is_none());
        assert!(piece.piece(0, usize::MAX).is_none());
        assert!(piece.piece(20, 0).is_some_and(|nothing| nothing.is_empty()));
    }

    #[test]
    fn memory_that_may_shrink_or_has_another_size_is_refused() {
        let plain = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&plain, 80).unwrap();
        assert!(matches!(SharedWords::attach(&plain, 10), Err(ShmError::NotSealed)));
        let (_words, memfd) = SharedWords::create("plimsoll-test", 10).unwrap();
        assert!(matches!(SharedWords::attach(&memfd, 11), Err(ShmError::Size { wanted: 88, found: 80 })));
        assert!(rustix::fs::ftruncate(&memfd, 0).is_err(), "the seal must hold");
        assert!(matches!(SharedWords::create("plimsoll-test", usize::MAX), Err(ShmError::TooLarge(_))));
        let (not_memory, _other) = rustix::pipe::pipe().unwrap();
        SharedWords::attach(not_memory, 1).unwrap_err();
    }
}
