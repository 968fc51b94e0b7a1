//! The file that is the guest's memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use plimsoll_uffd::agreement::FileId;
use plimsoll_uffd::handover::file_id;
use plimsoll_units::{Bytes, PAGE_SIZE};
use rustix::fs::SealFlags;

use crate::args::Args;
use crate::leavings;

/// Without these its size might change under whoever has it mapped (fcntl(2)).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// A guest's memory, as it was made for it.
#[derive(Debug)]
pub(super) struct GuestMemory {
    file: OwnedFd,
    id: FileId,
    size: u64,
}

impl GuestMemory {
    /// Takes it over, if it is what the arguments say.
    pub(super) fn new(file: OwnedFd, args: &Args) -> anyhow::Result<Self> {
        let (maxmem, target) = (args.maxmem, args.target.unwrap_or_default());
        for (option, size) in [("--maxmem", maxmem), ("--target", target)] {
            if size == Bytes::ZERO || !size.0.is_multiple_of(PAGE_SIZE) {
                bail!("{option} {} is no number of whole pages of {PAGE_SIZE} bytes", size.0);
            }
        }
        if target > maxmem {
            bail!("--target {target} is more than --maxmem {maxmem}");
        }
        let seals = rustix::fs::fcntl_get_seals(&file)
            .context("--pod: standard input is no memfd; `plimsoll run` makes one")?;
        if !seals.contains(SEALS) {
            bail!("--pod: the guest's memory is not sealed (F_SEAL_SHRINK, F_SEAL_GROW)");
        }
        let (id, size) = file_id(&file)?;
        if size != maxmem.0 {
            bail!("--pod: the guest's memory has {size} bytes, --maxmem says {}", maxmem.0);
        }
        Ok(Self { file, id, size })
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    /// Gives all of it back to the host.
    pub(super) fn give_back(&self) {
        leavings::punch(&self.file, 0, self.size);
    }
}

impl AsFd for GuestMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
