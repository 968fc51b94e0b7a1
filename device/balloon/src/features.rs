//! Feature bits, and which queue is which.

use core::ops::BitOr;

/// A set of feature bits (virtio 1.3, 5.5.3).
///
/// Bits that are contested and therefore never offered here: 6 (`HINT_WAIT_ON_ACK`, `DEVICE_INIT_REPORTED` and the 2023 text
/// of `WS_REPORTING` all claim it), 7 (`DEVICE_INIT_ON_INFLATE`) and 8 (`WS_REPORTING` as crosvm has it). Bit 3, `FREE_PAGE_HINT`, is
/// not implemented: a guest may take hinted pages back before the device has seen it. Ring features (24 to
/// 40 but for `VERSION_1`) and vhost-user's bit 30 belong to the transport; bit 33, `ACCESS_PLATFORM`, no balloon driver accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

impl Features {
    /// The guest deflates before it uses a page again, and waits for the answer. This is what lets pages of several
    /// buffers be joined to whole frames.
    pub const MUST_TELL_HOST: Self = Self(1);
    /// The statistics queue exists.
    pub const STATS_VQ: Self = Self(1 << 1);
    /// The guest may take pages from the balloon when it is out of memory, before it is asked to.
    pub const DEFLATE_ON_OOM: Self = Self(1 << 2);
    /// Free page hints; never offered, and known only to number the queues of a driver that says it has them.
    const FREE_PAGE_HINT: Self = Self(1 << 3);
    /// The guest says what it expects in free pages (`poison_val`). Without this offer Linux withholds reporting whenever it
    /// initialises or poisons free pages.
    pub const PAGE_POISON: Self = Self(1 << 4);
    /// The reporting queue exists.
    pub const PAGE_REPORTING: Self = Self(1 << 5);
    /// The device keeps to virtio 1.0 or later (virtio 1.3, 6.1).
    pub const VERSION_1: Self = Self(1 << 32);

    /// Everything this device implements.
    pub const DEFAULT: Self = Self(
        Self::MUST_TELL_HOST.0
            | Self::STATS_VQ.0
            | Self::DEFLATE_ON_OOM.0
            | Self::PAGE_POISON.0
            | Self::PAGE_REPORTING.0
            | Self::VERSION_1.0,
    );

    /// Whether every bit of `other` is in the set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits in both.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The set without the bits of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Pages for the balloon.
    Inflate,
    /// Pages taken back.
    Deflate,
    /// Statistics; the device holds one buffer and returns it to ask.
    Stats,
    /// Free page reports.
    Reporting,
}

/// The queues in order, with the feature that makes each exist.
const QUEUES: [(Features, Option<Role>); 5] = [
    (Features(0), Some(Role::Inflate)),
    (Features(0), Some(Role::Deflate)),
    (Features::STATS_VQ, Some(Role::Stats)),
    (Features::FREE_PAGE_HINT, None),
    (Features::PAGE_REPORTING, Some(Role::Reporting)),
];

fn queues(acked: u64) -> impl Iterator<Item = Option<Role>> {
    QUEUES.into_iter().filter(move |(feature, _)| Features(acked).contains(*feature)).map(|(_, role)| role)
}

/// What the queue with this index is for, by the features the driver *acknowledged*.
///
/// The specification gives fixed numbers (0 inflate, 1 deflate, 2 statistics, 3 hints, 4 reporting). Linux, on every transport
/// and so in User Mode Linux too, numbers densely over what was negotiated, and this follows Linux. QEMU, crosvm and Firecracker number
/// densely over what the device *offered*, which is the same as long as the driver takes every queue it is
/// offered; libkrun has the fixed numbers. A queue for hints is counted, but has no role.
#[must_use]
pub fn queue_role(index: u16, acked: u64) -> Option<Role> {
    queues(acked).nth(usize::from(index)).flatten()
}

/// How many queues a driver that acknowledged these features has.
#[must_use]
pub fn queue_count(acked: u64) -> u16 {
    u16::try_from(queues(acked).count()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn queues_are_numbered_densely_over_what_was_acknowledged() {
        let all = Features::DEFAULT.0;
        let roles: Vec<_> = (0..6).map(|index| queue_role(index, all)).collect();
        let (inflate, deflate) = (Some(Role::Inflate), Some(Role::Deflate));
        assert_eq!(roles, [inflate, deflate, Some(Role::Stats), Some(Role::Reporting), None, None]);
        let no_stats = Features::DEFAULT.without(Features::STATS_VQ).0;
        assert_eq!(queue_role(2, no_stats), Some(Role::Reporting));
        assert_eq!((queue_role(2, 0), queue_count(0), queue_count(no_stats)), (None, 2, 3));
        let hints = all | Features::FREE_PAGE_HINT.0;
        assert_eq!((queue_role(3, hints), queue_role(4, hints)), (None, Some(Role::Reporting)));
    }

    #[test]
    fn contested_bits_are_not_offered() {
        for bit in [3, 6, 7, 8, 30, 33] {
            assert_eq!(Features::DEFAULT.0 & (1 << bit), 0, "bit {bit}");
        }
    }
}
