//! Giving memory back to the host.

use plimsoll_frames::SpaceId;
use plimsoll_units::Bytes;

/// Why memory was not given back.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// Nothing is known of that space: a fault of the embedding program.
    #[error("no memory is known for space {}", .0.index())]
    UnknownSpace(SpaceId),
    /// Not a multiple of what the host can take back.
    #[error("cannot discard {} bytes at {} of space {}: its host pages have {} bytes", .len.0, .offset.0, .space.index(), .granule.0)]
    Unaligned {
        /// The space.
        space: SpaceId,
        /// Where.
        offset: Bytes,
        /// How much.
        len: Bytes,
        /// The host's page size there.
        granule: Bytes,
    },
    /// The kernel refused.
    #[error("the kernel did not discard {} bytes at {} of space {}: {source}", .len.0, .offset.0, .space.index())]
    Kernel {
        /// The space.
        space: SpaceId,
        /// Where.
        offset: Bytes,
        /// How much.
        len: Bytes,
        /// Why.
        source: rustix::io::Errno,
    },
}

/// Gives memory of spaces back to the host. What is discarded reads as zeros afterwards.
pub trait Discarder {
    /// Discards `len` bytes from `offset` on, clipped to the space's length, and returns how many bytes that were. When it
    /// returns, the memory is the host's.
    ///
    /// # Errors
    /// [`DiscardError`]; some of the range may have been discarded.
    fn discard(&mut self, space: SpaceId, offset: Bytes, len: Bytes) -> Result<Bytes, DiscardError>;

    /// The space is no longer the guest's memory: drop whatever is held for it.
    fn forget(&mut self, space: SpaceId);
}

/// Something per space.
pub(crate) struct PerSpace<T>(Vec<(SpaceId, T)>);

impl<T> Default for PerSpace<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> PerSpace<T> {
    pub(crate) fn get(&self, space: SpaceId) -> Result<&T, DiscardError> {
        let found = self.0.iter().find(|(id, _)| *id == space);
        found.map(|(_, held)| held).ok_or(DiscardError::UnknownSpace(space))
    }

    pub(crate) fn insert(&mut self, space: SpaceId, held: T) {
        self.remove(space);
        self.0.push((space, held));
    }

    pub(crate) fn remove(&mut self, space: SpaceId) {
        self.0.retain(|(id, _)| *id != space);
    }
}

/// Clips a range to a length. `None` if nothing is left.
pub(crate) fn clip(offset: Bytes, len: Bytes, limit: Bytes) -> Option<Bytes> {
    let left = offset.plus(len).0.min(limit.0).checked_sub(offset.0)?;
    (left > 0).then_some(Bytes(left))
}
