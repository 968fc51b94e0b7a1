//! I/O in flight, by page. Kept in this process only: I/O does not outlive the process that asked for it, or whoever
//! restarts it proves that it is over.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use crate::bits::PageMask;

/// Pins of one frame's pages.
struct FramePins {
    /// How often each page is pinned. A count that reached its maximum stays there: such a page is never discarded.
    pages: Box<[u32; 512]>,
}

impl FramePins {
    fn mask(&self) -> PageMask {
        PageMask::of_pages(self.pages.iter().map(|&count| count > 0))
    }
}

/// Pins of all pages, by frame of the ledger.
#[derive(Default)]
pub(crate) struct Pins {
    frames: BTreeMap<u64, FramePins>,
}

impl Pins {
    /// The pages of a frame that are pinned.
    pub(crate) fn mask(&self, frame: u64) -> PageMask {
        self.frames.get(&frame).map_or(PageMask::EMPTY, FramePins::mask)
    }

    /// Pins each page of `mask` once more.
    pub(crate) fn pin(&mut self, frame: u64, mask: PageMask) {
        if mask.is_empty() {
            return;
        }
        let pins = self.frames.entry(frame).or_insert_with(|| FramePins { pages: Box::new([0; 512]) });
        for count in in_mask(&mut pins.pages, mask) {
            *count = count.saturating_add(1);
        }
    }

    /// Takes one pin off each page of `mask`; returns those that have none left because of it.
    pub(crate) fn unpin(&mut self, frame: u64, mask: PageMask) -> PageMask {
        let Some(pins) = self.frames.get_mut(&frame) else { return PageMask::EMPTY };
        let before = pins.mask();
        for count in in_mask(&mut pins.pages, mask) {
            if *count != u32::MAX {
                *count = count.saturating_sub(1);
            }
        }
        let after = pins.mask();
        if after.is_empty() {
            self.frames.remove(&frame);
        }
        before.minus(after)
    }

    /// Forgets the pins of these frames.
    pub(crate) fn forget(&mut self, frames: core::ops::Range<u64>) {
        self.frames.retain(|frame, _| !frames.contains(frame));
    }
}

fn in_mask(pages: &mut [u32; 512], mask: PageMask) -> impl Iterator<Item = &mut u32> {
    pages.iter_mut().zip(mask.pages()).filter_map(|(count, named)| named.then_some(count))
}
