//! Spaces: the backing files of a guest's memory.

use plimsoll_units::{Bytes, FRAME_SIZE, PAGE_SIZE, PAGES_PER_FRAME};

use crate::bits::PageMask;

/// What tells one backing file from another, in every process and over their restarts: `st_dev` and `st_ino` of stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceKey {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// A space's place in the ledger's table. Good until the space is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(pub(crate) u8);

impl SpaceId {
    /// The place in the table, below [`crate::MAX_SPACES`]: for whoever keeps something per space.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The smallest piece of a space that the host can take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB: tmpfs, memfd, anonymous memory.
    Page,
    /// 2 MiB: hugetlb. Nothing is discarded until a frame is given up as a whole.
    Frame,
    /// Larger than a frame (1 GiB hugetlb): nothing is ever discarded, only counted.
    Never,
}

impl Granule {
    /// The granule for a host page of this size; a size between a page and a frame is treated as a frame.
    #[must_use]
    pub const fn from_bytes(host_page: Bytes) -> Self {
        if host_page.0 <= PAGE_SIZE {
            Self::Page
        } else if host_page.0 <= FRAME_SIZE {
            Self::Frame
        } else {
            Self::Never
        }
    }

    const fn code(self) -> u64 {
        match self {
            Self::Page => 0,
            Self::Frame => 1,
            Self::Never => 2,
        }
    }

    const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Page),
            1 => Some(Self::Frame),
            2 => Some(Self::Never),
            _ => None,
        }
    }
}

/// Set in the last word of a table entry that is in force.
const VALID: u64 = 1 << 63;
/// Set there for a space that is populated on demand.
const ON_DEMAND: u64 = 1 << 62;

/// One space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) key: SpaceKey,
    /// Where its entries begin.
    pub(crate) first_frame: u32,
    /// Its length.
    pub(crate) pages: u64,
    pub(crate) granule: Granule,
    /// Whether its pages begin without memory, and its faults come to the ledger.
    pub(crate) on_demand: bool,
}

impl Space {
    /// How many entries it has; the last frame may be cut short.
    pub(crate) const fn frames(&self) -> u64 {
        self.pages.div_ceil(PAGES_PER_FRAME)
    }

    /// One past its last entry.
    pub(crate) fn end_frame(&self) -> u64 {
        u64::from(self.first_frame).saturating_add(self.frames())
    }

    /// The pages of its `frame`th frame that lie within its length.
    pub(crate) fn valid(&self, frame: u64) -> PageMask {
        PageMask::first(self.pages.saturating_sub(frame.saturating_mul(PAGES_PER_FRAME)))
    }

    /// Whether memory can be put behind its pages frame by frame or page by page, and be taken back from all of them.
    pub(crate) fn can_be_on_demand(&self) -> bool {
        match self.granule {
            Granule::Page => true,
            Granule::Frame => self.pages.is_multiple_of(PAGES_PER_FRAME),
            Granule::Never => false,
        }
    }

    /// The four words of its table entry. The last one puts it in force and is stored last.
    pub(crate) fn encode(&self) -> [u64; 4] {
        let on_demand = if self.on_demand { ON_DEMAND } else { 0 };
        let place = u64::from(self.first_frame) | (self.granule.code() << 32) | on_demand | VALID;
        [self.key.device, self.key.inode, self.pages, place]
    }

    /// Reads a table entry: `Some(None)` if it is not in force, `None` if it makes no sense.
    pub(crate) fn decode([device, inode, pages, place]: [u64; 4]) -> Option<Option<Self>> {
        if place == 0 {
            return Some(None);
        }
        let granule = Granule::from_code((place & !(VALID | ON_DEMAND)) >> 32)?;
        let on_demand = place & ON_DEMAND != 0;
        let first_frame = u32::try_from(place & 0xffff_ffff).ok()?;
        let in_force = place & VALID != 0 && pages != 0;
        let space = Self { key: SpaceKey { device, inode }, first_frame, pages, granule, on_demand };
        (in_force && (!on_demand || space.can_be_on_demand())).then_some(Some(space))
    }
}
