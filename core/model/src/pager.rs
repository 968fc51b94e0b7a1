//! A VM whose memory is populated on demand: what its pager says, and what was wished for it.

use core::fmt;

use plimsoll_units::Bytes;
use serde::{Deserialize, Serialize};

/// What becomes of a guest that touches memory beyond what it may have, where neither a balloon nor a sweep makes room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExhausted {
    /// It is given more, as far as memory is free or others can spare it, and waits for the rest.
    #[default]
    Grow,
    /// It waits until an operator gives it more.
    Wait,
    /// Its VM is stopped.
    Stop,
}

/// What becomes of a guest whose pager is gone for good; fixed when its VM is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPagerLoss {
    /// It stands still at the next page it has no memory for, and can only be stopped.
    #[default]
    Stall,
    /// It goes on, without any limit.
    Open,
}

impl OnExhausted {
    /// All of them, by the words that [`fmt::Display`] writes.
    pub const ALL: [Self; 3] = [Self::Grow, Self::Wait, Self::Stop];
}

impl OnPagerLoss {
    /// All of them, by the words that [`fmt::Display`] writes.
    pub const ALL: [Self; 2] = [Self::Stall, Self::Open];
}

/// The pager of a VM, at one tick. It is no more trusted than its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagerSample {
    /// What the guest's memory can grow to: the target, or what it had when the target was lowered less what has come
    /// back since. No page beyond it is populated.
    pub limit: Bytes,
    /// Host memory behind the guest, by the kernel's count of its file.
    pub resident: Bytes,
    /// For how long the guest has waited for memory that there is no room for, in milliseconds; `None` if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_ms: Option<u64>,
    /// What is to be done about that.
    #[serde(default)]
    pub on_exhausted: OnExhausted,
}

/// Why nothing is done at this tick about a guest that waits in its pager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standstill {
    /// An operator holds its target.
    Held,
    /// It is to wait ([`OnExhausted::Wait`]).
    Wait,
    /// It is to be stopped ([`OnExhausted::Stop`]).
    Stop,
    /// Nothing is free, and nothing is on its way from others.
    NothingFree,
    /// It may have all that it was told of; the kernel gives no memory.
    AtMaxmem,
}

impl fmt::Display for OnExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Grow => "grow",
            Self::Wait => "wait",
            Self::Stop => "stop",
        })
    }
}

impl fmt::Display for OnPagerLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stall => "stall",
            Self::Open => "open",
        })
    }
}

/// As the end of a sentence about the guest.
impl fmt::Display for Standstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "an operator holds its target",
            Self::Wait => "it was started with on-exhausted=wait",
            Self::Stop => "it was started with on-exhausted=stop and is stopped",
            Self::NothingFree => "nothing is free and nothing is on its way from others",
            Self::AtMaxmem => "it may have all it was told of, and the kernel gives no memory",
        })
    }
}
