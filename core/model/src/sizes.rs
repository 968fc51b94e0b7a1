//! What a VM was promised.

use plimsoll_units::{Bytes, MemTarget};
use serde::{Deserialize, Serialize};

/// A VM's sizes: `floor <= memory <= maxmem`, fixed when the VM is made (`memory` may be set later).
///
/// `maxmem` is what the guest is told, `memory` the baseline the arbiter starts from and may leave,
/// `floor` the only guarantee. All are whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSizes", into = "RawSizes")]
pub struct Sizes {
    floor: Bytes,
    memory: Bytes,
    maxmem: Bytes,
    weight: u32,
}

/// Why sizes do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizesError {
    /// A size of nothing.
    #[error("{0} is 0; a VM needs at least 1M")]
    Zero(&'static str),
    /// Less than a guest can live in.
    #[error("{0}={1} is less than 1M, which no guest can live in")]
    TooSmall(&'static str, Bytes),
    /// More than a balloon can count.
    #[error("maxmem={0} is more than 16T, the most that a virtio balloon can count")]
    TooLarge(Bytes),
    /// Not a whole number of pages.
    #[error("{0}={1} is not a multiple of 4096 bytes")]
    NotPages(&'static str, Bytes),
    /// The first target above what the guest is told.
    #[error(
        "memory={memory} is more than maxmem={maxmem}; give the guest a larger maxmem or a smaller memory"
    )]
    MemoryAboveMaxmem {
        /// The baseline asked for.
        memory: Bytes,
        /// What the guest is told.
        maxmem: Bytes,
    },
    /// A guarantee above the first target.
    #[error("floor={floor} is more than memory={memory}; the floor is what is guaranteed, so at most memory")]
    FloorAboveMemory {
        /// The guarantee asked for.
        floor: Bytes,
        /// The baseline asked for.
        memory: Bytes,
    },
    /// A weight out of range.
    #[error("weight={0} is out of range; it is 1 to 10000, 100 by default")]
    Weight(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSizes {
    floor: Bytes,
    memory: Bytes,
    maxmem: Bytes,
    weight: u32,
}

impl Sizes {
    /// The weight of a VM that was given none.
    pub const DEFAULT_WEIGHT: u32 = 100;
    /// virtio-balloon counts 4 KiB pages in 32 bits (virtio 1.3, 5.5.4).
    pub const MAXMEM_LIMIT: Bytes = Bytes(16 << 40);
    /// Below this no Linux guest boots; it also keeps every share away from 0.
    pub const LEAST: Bytes = Bytes(1 << 20);

    /// Checks the sizes; `floor` defaults to half of `memory` (whole pages), `weight` to 100.
    pub fn new(
        memory: Bytes,
        maxmem: Bytes,
        floor: Option<Bytes>,
        weight: Option<u32>,
    ) -> Result<Self, SizesError> {
        let floor =
            floor.unwrap_or_else(|| Bytes(memory.0 / 2).pages_floor().bytes().max(Self::LEAST.min(memory)));
        let weight = weight.unwrap_or(Self::DEFAULT_WEIGHT);
        for (what, size) in [("memory", memory), ("maxmem", maxmem), ("floor", floor)] {
            if size == Bytes::ZERO {
                return Err(SizesError::Zero(what));
            }
            if !size.is_page_multiple() {
                return Err(SizesError::NotPages(what, size));
            }
            if size < Self::LEAST {
                return Err(SizesError::TooSmall(what, size));
            }
        }
        if maxmem > Self::MAXMEM_LIMIT {
            return Err(SizesError::TooLarge(maxmem));
        }
        if memory > maxmem {
            return Err(SizesError::MemoryAboveMaxmem { memory, maxmem });
        }
        if floor > memory {
            return Err(SizesError::FloorAboveMemory { floor, memory });
        }
        if weight == 0 || weight > 10_000 {
            return Err(SizesError::Weight(weight));
        }
        Ok(Self { floor, memory, maxmem, weight })
    }

    /// The same VM with another baseline. The floor was fixed when the VM was made and stays.
    pub fn with_memory(self, memory: Bytes) -> Result<Self, SizesError> {
        Self::new(memory, self.maxmem, Some(self.floor), Some(self.weight))
    }

    /// The same VM with another weight.
    pub fn with_weight(self, weight: u32) -> Result<Self, SizesError> {
        Self::new(self.memory, self.maxmem, Some(self.floor), Some(weight))
    }

    /// The guarantee: no target is ever below it.
    #[must_use]
    pub const fn floor(self) -> Bytes {
        self.floor
    }

    /// The baseline.
    #[must_use]
    pub const fn memory(self) -> Bytes {
        self.memory
    }

    /// What the guest is told it has: no target is ever above it.
    #[must_use]
    pub const fn maxmem(self) -> Bytes {
        self.maxmem
    }

    /// The VM's share beside the others', 1 to 10000.
    #[must_use]
    pub const fn weight(self) -> u32 {
        self.weight
    }

    /// `wanted`, moved into `floor..=maxmem` and rounded down to whole pages.
    #[must_use]
    pub fn clamp(self, wanted: Bytes) -> MemTarget {
        MemTarget(wanted.clamp(self.floor, self.maxmem).pages_floor().bytes())
    }
}

impl TryFrom<RawSizes> for Sizes {
    type Error = SizesError;

    fn try_from(raw: RawSizes) -> Result<Self, SizesError> {
        Self::new(raw.memory, raw.maxmem, Some(raw.floor), Some(raw.weight))
    }
}

impl From<Sizes> for RawSizes {
    fn from(s: Sizes) -> Self {
        Self { floor: s.floor, memory: s.memory, maxmem: s.maxmem, weight: s.weight }
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    const M: fn(u64) -> Bytes = Bytes::mib;

    #[test]
    fn floor_defaults_to_half_of_memory() {
        let sizes = Sizes::new(M(256), M(1024), None, None).unwrap();
        assert_eq!((sizes.floor(), sizes.weight()), (M(128), 100));
    }

    #[test]
    fn impossible_sizes_are_named() {
        use SizesError as E;
        assert_eq!(
            Sizes::new(M(2), M(1), None, None),
            Err(E::MemoryAboveMaxmem { memory: M(2), maxmem: M(1) })
        );
        assert_eq!(
            Sizes::new(M(2), M(4), Some(M(3)), None),
            Err(E::FloorAboveMemory { floor: M(3), memory: M(2) })
        );
        assert_eq!(Sizes::new(M(0), M(4), None, None), Err(E::Zero("memory")));
        // Where maxmem was not given it is what memory is, and memory is what was given.
        assert_eq!(Sizes::new(M(0), M(0), None, None), Err(E::Zero("memory")));
        assert_eq!(Sizes::new(M(4), M(0), None, None), Err(E::Zero("maxmem")));
        assert_eq!(Sizes::new(M(4), M(4), Some(M(0)), None), Err(E::Zero("floor")));
        assert_eq!(Sizes::new(Bytes(5), M(4), None, None), Err(E::NotPages("memory", Bytes(5))));
        assert_eq!(Sizes::new(M(4), Bytes(32 << 40), None, None), Err(E::TooLarge(Bytes(32 << 40))));
        assert_eq!(Sizes::new(M(4), M(4), None, Some(0)), Err(E::Weight(0)));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_in_order(memory in any::<u64>(), maxmem in any::<u64>(), floor: Option<u64>, weight: Option<u32>, wanted: u64) {
            // Both raw values and whole pages, so that the order of sizes is reached, not only the page test.
            for shift in [0, 12] {
                let size = |v: u64| Bytes(v >> shift << shift);
                if let Ok(s) = Sizes::new(size(memory), size(maxmem), floor.map(size), weight) {
                    prop_assert!(s.floor() <= s.memory() && s.memory() <= s.maxmem());
                    let target = s.clamp(Bytes(wanted)).0;
                    prop_assert!(s.floor() <= target && target <= s.maxmem() && target.is_page_multiple());
                }
            }
        }
    }
}
