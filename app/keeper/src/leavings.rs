//! What a VMM leaves of its guest's memory when it ends and others of its processes do not.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use plimsoll_vhost_user::wire::Region;
use rustix::fs::{FallocateFlags, fallocate};

/// A front end's memory table, and the files.
pub(crate) type Memory = [(Region, Arc<OwnedFd>)];

/// Gives everything in a memory table back to the host, see [`punch`].
pub(crate) fn discard(memory: &Memory) {
    memory.iter().for_each(|(region, file)| punch(file, region.offset, region.length));
}

/// Gives a piece of a file back to the host. Whoever still has it mapped finds zeros there.
///
/// That it failed is told in the log: somebody has to free that memory by hand.
pub(crate) fn punch(file: impl AsFd, offset: u64, length: u64) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| fallocate(&file, hole, offset, length)) {
        Ok(()) => tracing::info!(length, "gave the guest's memory back to the host"),
        Err(error) => {
            tracing::error!(%error, length, "the guest's memory was not given back to the host")
        }
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn regions_are_given_back_and_nothing_else() {
        let fd = rustix::fs::memfd_create("leavings", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(&[7; 4 * 4096]).unwrap();
        let shared = Arc::new(OwnedFd::from(file.try_clone().unwrap()));
        let region = Region { guest: 0x1_0000, length: 2 * 4096, user: 0, offset: 4096 };
        // One that cannot be: it keeps nobody from the other.
        let wrong = Region { length: 0, ..region };
        discard(&[(wrong, Arc::clone(&shared)), (region, shared)]);
        let mut pages = [1; 4 * 4096];
        file.read_exact_at(&mut pages, 0).unwrap();
        let sum = |page: &[u8]| page.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        assert_eq!(pages.chunks(4096).map(sum).collect::<Vec<_>>(), [7 * 4096, 0, 0, 7 * 4096]);
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (4 * 4096, 2 * 8));
    }
}
