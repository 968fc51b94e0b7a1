//! Memory statistics (virtio 1.3, 5.5.6.3 and 5.5.6.4).

/// Names of the tags 0 to 15, after `VIRTIO_BALLOON_S_NAMES` of Linux' `include/uapi/linux/virtio_balloon.h`.
/// Swap, free, total, available, caches and 12 to 15 are bytes, the others are counts.
pub const TAG_NAMES: [&str; 16] = [
    "swap-in",
    "swap-out",
    "major-faults",
    "minor-faults",
    "free-memory",
    "total-memory",
    "available-memory",
    "disk-caches",
    "hugetlb-allocations",
    "hugetlb-failures",
    "oom-kills",
    "alloc-stalls",
    "async-scans",
    "direct-scans",
    "async-reclaims",
    "direct-reclaims",
];

/// Bytes of an entry: le16 tag, le64 value, packed. (The text of virtio 1.3 speaks of six; its own structure has ten.)
pub(crate) const ENTRY: usize = 10;

/// Entries that are read of one buffer. Linux sends 16 at most; the rest of a longer buffer is ignored.
pub(crate) const MAX_ENTRIES: usize = 64;

/// The latest statistics: the guest's word, unchecked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// By tag; `None` is what the guest did not send.
    pub values: [Option<u64>; 16],
    /// Rises by one with every buffer, so that a reader can tell fresh ones. 0 before the first.
    pub sequence: u64,
}

impl Stats {
    /// Takes over the entries of a buffer in place of the last one's. Of a tag that comes twice the later value holds. Returns
    /// how many tags are not known.
    pub(crate) fn update(&mut self, bytes: &[u8]) -> u64 {
        let mut unknown = 0u64;
        self.values = [None; 16];
        for &[tag_low, tag_high, ref value @ ..] in bytes.as_chunks::<ENTRY>().0 {
            let tag = usize::from(u16::from_le_bytes([tag_low, tag_high]));
            match self.values.get_mut(tag) {
                Some(slot) => *slot = Some(u64::from_le_bytes(*value)),
                None => unknown = unknown.saturating_add(1),
            }
        }
        self.sequence = self.sequence.wrapping_add(1);
        unknown
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_known_entry_is_found(entries in prop::collection::vec((0u16..24, any::<u64>()), 0..40), extra in 0usize..10) {
            let mut bytes = Vec::new();
            let mut want = [None; 16];
            let mut unknown = 0;
            for (tag, value) in entries {
                bytes.extend(tag.to_le_bytes());
                bytes.extend(value.to_le_bytes());
                match want.get_mut(usize::from(tag)) {
                    Some(slot) => *slot = Some(value),
                    None => unknown += 1,
                }
            }
            bytes.resize(bytes.len() + extra, 0xff);
            let mut stats = Stats::default();
            stats.values[3] = Some(1);
            prop_assert_eq!(stats.update(&bytes), unknown);
            prop_assert_eq!(stats.values, want);
            prop_assert_eq!(stats.sequence, 1);
        }
    }
}
