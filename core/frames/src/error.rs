//! What can be wrong with a ledger.

use plimsoll_units::PageCount;

use crate::{Counts, SpaceKey};

/// Why words are not a ledger that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The caller's memory is too short.
    #[error("a ledger of this size needs {need} words of memory, there are {have}")]
    TooSmall {
        /// Words there are.
        have: usize,
        /// Words there must be.
        need: usize,
    },
    /// More frames or maps than the layout can number.
    #[error("a ledger of {frames} frames and {maps} maps is larger than the layout allows")]
    TooLarge {
        /// Frames asked for.
        frames: u64,
        /// Maps asked for.
        maps: u64,
    },
    /// Nothing was ever formatted here, or formatting was cut short.
    #[error("no ledger: the first word is {0:#x}; format the memory first")]
    Magic(u64),
    /// Written by another version.
    #[error("the ledger has layout version {found}, this program knows {known}")]
    Version {
        /// The version found.
        found: u64,
        /// The version of this crate.
        known: u64,
    },
    /// A table entry for a space makes no sense, or two collide.
    #[error("the ledger's entry for space {0} is damaged")]
    Space(u8),
    /// A frame's word is none of the known forms.
    #[error("the ledger's entry for frame {frame} is damaged: {word:#x}")]
    Entry {
        /// Which frame.
        frame: u32,
        /// What stands there.
        word: u64,
    },
    /// Two frames claim one map.
    #[error("frame {frame} of the ledger claims map {map}, which another frame has")]
    MapShared {
        /// The second frame.
        frame: u32,
        /// The map.
        map: u32,
    },
    /// A frame has pages in a state that pages of its space cannot have.
    #[error("frame {frame} of the ledger has outstanding pages in a space that is not populated on demand")]
    PageState {
        /// Which frame.
        frame: u32,
    },
}

/// Why a space cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// A space of no pages.
    #[error("backing file {}:{} has no whole page", .0.device, .0.inode)]
    Empty(SpaceKey),
    /// Every place in the table is taken.
    #[error("a guest can have at most {} backing files", crate::MAX_SPACES)]
    TooMany,
    /// No room for so many frames in one piece.
    #[error("the ledger has no {frames} free frames in a row for a backing file of {} pages", .pages.0)]
    NoRoom {
        /// Frames needed.
        frames: u64,
        /// The file's length.
        pages: PageCount,
    },
    /// A file that is to be populated on demand, in a ledger whose maps may run short: what it says would not be exact.
    #[error("populating on demand needs a map for each of the ledger's {frames} frames, it has {maps}")]
    FewMaps {
        /// Frames of the ledger.
        frames: u32,
        /// Its maps.
        maps: u32,
    },
    /// A file that is to be populated on demand, and of whose huge pages some can be neither populated nor taken back in
    /// frames of 2 MiB.
    #[error("backing file {}:{} has pages larger than 2 MiB, or ends within one, and cannot be populated on demand", .0.device, .0.inode)]
    HugePages(SpaceKey),
    /// The file is known with another length or granule, or is populated in another way: the front end changed it under
    /// the guest. Remove the space first if that is meant.
    #[error(
        "backing file {}:{} has {} pages now and had {} when it was first seen, or its page size changed, or whether it is populated on demand",
        .key.device, .key.inode, .now.0, .before.0
    )]
    Changed {
        /// Which file.
        key: SpaceKey,
        /// Length before.
        before: PageCount,
        /// Length now.
        now: PageCount,
    },
}

/// Where the counters kept differ from what the entries say. It means a fault of this crate or a second writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// An entry or the table cannot be read.
    #[error(transparent)]
    Damaged(#[from] LedgerError),
    /// The sums differ.
    #[error("the ledger's counters say {kept:?}, its entries {found:?}")]
    Counts {
        /// What was kept.
        kept: Counts,
        /// What the entries add up to.
        found: Counts,
    },
    /// The sums of pages with memory behind them differ.
    #[error("the ledger's counter says {} pages are resident, its entries {}", .kept.0, .found.0)]
    Resident {
        /// What was kept.
        kept: PageCount,
        /// What the entries add up to.
        found: PageCount,
    },
    /// What is kept of memory on its way contradicts the pages' states.
    #[error("frame {frame} of the ledger has memory on its way that its states exclude")]
    Moves {
        /// Which frame.
        frame: u64,
    },
    /// The kernel counts more memory than the ledger knows of: somebody populated unseen, and the limit was not kept.
    #[error("the guest's files have {} pages of memory, the ledger knows of {}", .kernel.0, .resident.0)]
    Unseen {
        /// What the ledger has.
        resident: PageCount,
        /// What the kernel counts.
        kernel: PageCount,
    },
    /// Maps are lost: neither free nor in use.
    #[error("of {maps} maps {free} are free and {used} in use")]
    Maps {
        /// All maps.
        maps: u32,
        /// Maps on the free list.
        free: u64,
        /// Maps that frames point to.
        used: u64,
    },
}
