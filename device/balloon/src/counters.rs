//! What happened, and what was wrong with what a guest sent.

/// Counts since this device was made. None ever falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages named by inflations, each once a buffer (a very large buffer counts as several).
    pub inflated_pages: u64,
    /// Pages named by deflations.
    pub deflated_pages: u64,
    /// Pages named by free page reports.
    pub reported_pages: u64,
    /// Pages named that were in that state already: inflated twice, or deflated without having been in the balloon.
    pub repeated_pages: u64,
    /// Statistics buffers.
    pub stats_buffers: u64,
    /// Discards carried out.
    pub discards: u64,
    /// Bytes they covered. A frame that is completed is discarded as a whole, what was discarded of it before included.
    pub discarded_bytes: u64,
    /// Whole 2 MiB frames they covered.
    pub whole_frames: u64,
    /// Discards the kernel refused; [`crate::Balloon::take_discard_error`] has the latest.
    pub discard_errors: u64,
    /// Pages whose discard was put off, or dropped, because I/O on them was in flight.
    pub pinned_pages: u64,
    /// Pages whose state the ledger had no room to record.
    pub unmapped_pages: u64,
    /// Reports left alone because the guest expects its poison in free pages.
    pub poisoned_reports: u64,

    /// Chains without a byte that could be read, or a page that could be taken.
    pub empty_chains: u64,
    /// Descriptors that point the wrong way for their queue: the device may not read what it is to write, and the other way round.
    pub wrong_direction: u64,
    /// Descriptors whose length is no multiple of the entry's.
    pub ragged: u64,
    /// Descriptors that do not lie in the guest's memory from end to end. After such a deflation the ledger is reset, since
    /// the guest uses pages that nobody could read the numbers of.
    pub unreadable: u64,
    /// Chains cut short because they name more than twice the pages the guest has, or more than 2^20.
    /// After such a deflation the ledger is reset, too.
    pub over_limit: u64,
    /// Statistics buffers with more entries than are read.
    pub stats_overlong: u64,
    /// Statistics with tags that are not known.
    pub unknown_tags: u64,
    /// Statistics buffers that came while one was held.
    pub extra_stats_buffers: u64,

    /// Page numbers 0. Drivers exist that send 64-bit numbers (Windows'), which read as 32-bit ones are every second
    /// time 0. No guest gives away its page 0 (Linux reserves it on x86, other machines have no memory there), so
    /// it is never taken as named, and nothing has to be guessed about the rest.
    pub zero_pfns: u64,
    /// Page numbers outside the guest's memory.
    pub outside_pages: u64,
    /// Page numbers of pages that lie only partly in one region, or in a file at no multiple of 4 KiB.
    pub straddling_pages: u64,
    /// Reports of ranges that are not wholly whole pages of the guest's memory; what lies inside was taken.
    pub clipped_reports: u64,
}

impl Counters {
    /// Buffers that were malformed in some way.
    #[must_use]
    pub const fn bad_buffers(&self) -> u64 {
        self.empty_chains
            .saturating_add(self.wrong_direction)
            .saturating_add(self.ragged)
            .saturating_add(self.unreadable)
            .saturating_add(self.over_limit)
            .saturating_add(self.stats_overlong)
            .saturating_add(self.extra_stats_buffers)
            .saturating_add(self.clipped_reports)
    }

    /// Pages named that the guest cannot give.
    #[must_use]
    pub const fn bad_pages(&self) -> u64 {
        self.zero_pfns.saturating_add(self.outside_pages).saturating_add(self.straddling_pages)
    }
}

/// Adds to a count.
pub(crate) fn add(count: &mut u64, by: u64) {
    *count = count.saturating_add(by);
}
