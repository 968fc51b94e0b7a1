//! Addresses of guest memory.

use serde::{Deserialize, Serialize};

use crate::{Bytes, FRAME_SIZE, PAGE_SIZE};

/// A guest physical address in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gpa(pub u64);

/// A guest frame number: a guest physical address in units of 4 KiB, as in Xen and KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gfn(pub u64);

/// A page number as it stands on the balloon's queues: 32 bits, 4 KiB units (virtio 1.3, 5.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BalloonPfn(pub u32);

/// A 2 MiB frame's place in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameIndex(pub u32);

impl Gpa {
    /// The page this address lies in.
    #[must_use]
    pub const fn gfn_floor(self) -> Gfn {
        Gfn(self.0 / PAGE_SIZE)
    }

    /// The address `by` further on, unless that leaves 64 bits.
    #[must_use]
    pub const fn checked_add(self, by: Bytes) -> Option<Self> {
        match self.0.checked_add(by.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl Gfn {
    /// The first byte of the page; `None` above 2^64.
    #[must_use]
    pub const fn gpa(self) -> Option<Gpa> {
        match self.0.checked_mul(PAGE_SIZE) {
            Some(address) => Some(Gpa(address)),
            None => None,
        }
    }
}

impl BalloonPfn {
    /// The guest frame this number names.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 as u64)
    }
}

impl FrameIndex {
    /// The first byte of the frame, counted from where the ledger begins.
    #[must_use]
    pub const fn offset(self) -> Bytes {
        Bytes((self.0 as u64).saturating_mul(FRAME_SIZE))
    }
}
