//! What an embedding program decides.

use std::sync::Arc;

use plimsoll_frames::{RemovedBy, Reuse};
use plimsoll_uffd::agreement::OnPagerLoss;
use plimsoll_uffd::{HugePages, UffdError, memfd_huge_pages};
use plimsoll_units::PageCount;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use crate::StartError;

/// More than this many threads wait for each other at the kernel's lock of the file.
pub(crate) const MOST_FAULT_THREADS: usize = 16;
/// Enough that one can be busy with a frame while another answers for the next.
const FAULT_THREADS: usize = 2;

/// Something that is run around a discard, so that nobody writes to the guest's memory unseen.
///
/// It is called with a piece of work and is to call that once, or not at all: then nothing is discarded this time. It
/// may take its time before and after (stop and cont of QMP); it must not call the pager.
pub type AroundDiscard = Arc<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// How a pager works.
#[derive(Clone)]
pub struct Config {
    /// Threads that answer faults, 1 to 16.
    pub fault_threads: usize,
    /// What pages are filled with that a sweep may take.
    pub scrub: Scrub,
    /// Whether the guest's memory comes in huge pages when it is written to 2 MiB at a time. `Never` saves a try now and then.
    pub huge_pages: HugePages,
    /// What a sweep for a guest that waits is to find before it ends. `None`: a sixteenth of the target, 2 MiB at least, 64 MiB at
    /// most.
    pub sweep_goal: Option<PageCount>,
    /// What pages count as in which the VMM made holes ([`Pager::hint`](crate::Pager::hint)).
    pub holes_are: RemovedBy,
    /// Frames of 2 MiB at the beginning of the memory that [`Pager::reset`](crate::Pager::reset) leaves as they are, because firmware
    /// begins in what it left there ([`plimsoll_frames::Ledger::keep_at_reboot`]); 0 by default.
    pub kept_frames: u64,
    /// What the guest promised about pages in the balloon, until [`Pager::set_reuse`](crate::Pager::set_reuse).
    pub reuse: Reuse,
    /// What becomes of the guest when nobody serves it any more: as agreed with the VMM.
    pub on_pager_loss: OnPagerLoss,
    /// For VMMs that let devices write to guest memory past the page tables (O_DIRECT, registered buffers of io_uring): write
    /// protection does not see those writes, so they are to be stopped while pages are looked at for the last time and discarded.
    pub around_discard: Option<AroundDiscard>,
}

impl Config {
    /// Settings for a guest whose memory comes in huge pages or not; the rest as is right for QEMU with its own balloon.
    #[must_use]
    pub fn new(huge_pages: HugePages) -> Self {
        Self {
            fault_threads: FAULT_THREADS,
            scrub: Scrub::ZERO,
            huge_pages,
            sweep_goal: None,
            // Pages of which nobody hears when the guest takes them back; the ledger leaves them alone until it does.
            holes_are: RemovedBy::Balloon,
            kept_frames: 0,
            reuse: Reuse::AtOnce,
            on_pager_loss: OnPagerLoss::Stall,
            around_discard: None,
        }
    }

    /// Settings for a guest whose memory is a memfd on this machine.
    ///
    /// # Errors
    /// [`UffdError::Read`] when the kernel does not say whether it has huge pages.
    pub fn for_memfd() -> Result<Self, UffdError> {
        memfd_huge_pages().map(Self::new)
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        if self.fault_threads == 0 || self.fault_threads > MOST_FAULT_THREADS {
            return Err(StartError::FaultThreads { wanted: self.fault_threads });
        }
        if self.scrub == Scrub::ZERO {
            return Ok(());
        }
        if self.on_pager_loss == OnPagerLoss::Open {
            let why = "would be lost with the pager: the kernel then gives zeros; use it with on-pager-loss = stall";
            return Err(StartError::Pattern { why });
        }
        let single = memory_comes_page_by_page()
            .map_err(|errno| StartError::File { what: "page size, of a trial file", errno })?;
        if self.huge_pages == HugePages::Always || !single {
            let why = "needs memory that comes in single pages: set shmem_enabled to never (/sys/kernel/mm/transparent_hugepage)";
            return Err(StartError::Pattern { why });
        }
        Ok(())
    }
}

/// What a guest fills memory with that it does not use, for instance when it boots: such pages are found by a sweep.
///
/// **Zero** is what memory is filled with when it comes from the kernel, so nothing has to be done to give a page back
/// as it was taken.
///
/// **Another pattern** has to be written into every page again that is given to the guest, before it sees it, and the guest finds
/// it in pages too that it never touched (as real memory is filled with anything when it is switched on). It is written with
/// pwrite(2) into the hole: the kernel holds a page locked until it is written, so that nobody sees it empty,
/// but only that page. Hence a pattern is refused where memory comes in larger pieces, for there the guest could write to a part
/// that is only then overwritten; and where the guest goes on without its pager. Nothing is populated by 2 MiB with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scrub(u64);

impl Scrub {
    /// Zeros.
    pub const ZERO: Self = Self(0);

    /// Eight bytes, as they stand in memory, over and over.
    #[must_use]
    pub const fn pattern(bytes: [u8; 8]) -> Self {
        Self(u64::from_ne_bytes(bytes))
    }

    /// The pattern as a number of this machine.
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }
}

/// Whether a write of one page to a memfd brings one page.
fn memory_comes_page_by_page() -> Result<bool, Errno> {
    let pages = 512;
    let trial = rustix::fs::memfd_create("plimsoll-trial", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&trial, PageCount(pages).bytes().0)?;
    rustix::io::pwrite(&trial, &[0], 0)?;
    let blocks = rustix::fs::fstat(&trial)?.st_blocks;
    Ok(u64::try_from(blocks).unwrap_or(u64::MAX) <= crate::file::BLOCKS_PER_PAGE)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let config = Config::new(HugePages::Never);
        config.check().unwrap();
        for wanted in [0, 17] {
            let error = Config { fault_threads: wanted, ..config.clone() }.check().unwrap_err();
            assert_eq!(error.to_string(), format!("a pager has 1 to 16 fault threads, not {wanted}"));
        }
        let pattern = Config { scrub: Scrub::pattern([0xaa; 8]), ..config };
        let open = Config { on_pager_loss: OnPagerLoss::Open, ..pattern.clone() }.check().unwrap_err();
        assert!(open.to_string().contains("on-pager-loss = stall"), "{open}");
        let huge = Config { huge_pages: HugePages::Always, ..pattern }.check().unwrap_err();
        assert!(huge.to_string().contains("shmem_enabled"), "{huge}");
    }
}
