//! What the kernel and a program say to each other through a userfaultfd (`include/uapi/linux/userfaultfd.h`).

use core::fmt;
use core::ops::BitOr;

/// The only version of the interface there is (`UFFD_API`).
pub const API: u64 = 0xAA;
/// Where the kernel offers userfaultfds to those who may open it, since Linux 6.1.
pub const DEVICE: &str = "/dev/userfaultfd";
/// The request to [`DEVICE`] that makes one (`USERFAULTFD_IOC_NEW`); its argument is what userfaultfd(2) takes as flags.
pub const DEVICE_NEW: u32 = request_code(0, 0x00, 0);
/// Bytes of one event (`struct uffd_msg`).
pub const EVENT_BYTES: usize = 32;

/// A fault on a page that is not there (`UFFDIO_REGISTER_MODE_MISSING`).
pub const REGISTER_MISSING: u64 = 1 << 0;
/// A write to a page that was protected (`UFFDIO_REGISTER_MODE_WP`).
pub const REGISTER_WP: u64 = 1 << 1;
/// Protect, in [`WriteProtect::mode`]; without it protection is lifted (`UFFDIO_WRITEPROTECT_MODE_WP`).
pub const PROTECT: u64 = 1 << 0;
/// Lift protection and leave those who wait asleep, in [`WriteProtect::mode`] (`UFFDIO_WRITEPROTECT_MODE_DONTWAKE`).
pub const LIFT_DONTWAKE: u64 = 1 << 1;
/// Leave those who wait asleep, in [`Zeropage::mode`] (`UFFDIO_ZEROPAGE_MODE_DONTWAKE`).
pub const ZEROPAGE_DONTWAKE: u64 = 1 << 0;

const NR_REGISTER: u8 = 0x00;
const NR_UNREGISTER: u8 = 0x01;
const NR_WAKE: u8 = 0x02;
const NR_ZEROPAGE: u8 = 0x04;
const NR_WRITEPROTECT: u8 = 0x06;
const NR_API: u8 = 0x3F;

/// Program to kernel, kernel to program, or both (asm-generic/ioctl.h).
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

/// `_IOC` of asm-generic/ioctl.h with userfaultfd's letter, 0xAA.
const fn request_code(direction: u32, number: u8, bytes: u32) -> u32 {
    let number = u32::from_le_bytes([number, 0xAA, 0, 0]);
    (direction << 30) | (bytes << 16) | number
}

/// An argument of ioctl(2) that belongs to one request.
pub trait Request {
    /// The request's number.
    const CODE: u32;
}

/// The handshake (`struct uffdio_api`): what is wanted, answered by what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Api {
    /// [`API`].
    pub api: u64,
    /// Wanted; the kernel answers with all it has.
    pub features: u64,
    /// Which requests there are, by the kernel.
    pub ioctls: u64,
}

impl Request for Api {
    const CODE: u32 = request_code(READ_WRITE, NR_API, 24);
}

/// Addresses in the watched process (`struct uffdio_range`), whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Watch a range (`struct uffdio_register`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Register {
    /// What to watch.
    pub range: Range,
    /// [`REGISTER_MISSING`], [`REGISTER_WP`] or both.
    pub mode: u64,
    /// Which requests there are for this range, by the kernel: bit n for request number n.
    pub ioctls: u64,
}

impl Register {
    /// Whether the kernel offers for this range what serving it takes: waking, zero pages, write protection.
    #[must_use]
    pub const fn can_be_served(&self) -> bool {
        let needed = (1_u64 << NR_WAKE) | (1_u64 << NR_ZEROPAGE) | (1_u64 << NR_WRITEPROTECT);
        self.ioctls & needed == needed
    }
}

impl Request for Register {
    const CODE: u32 = request_code(READ_WRITE, NR_REGISTER, 32);
}

/// Watch a range no longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Unregister(pub Range);

impl Request for Unregister {
    const CODE: u32 = request_code(READ, NR_UNREGISTER, 16);
}

/// Let those who wait on a range try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Wake(pub Range);

impl Request for Wake {
    const CODE: u32 = request_code(READ, NR_WAKE, 16);
}

/// Put zero pages where there are none (`struct uffdio_zeropage`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Zeropage {
    /// Where.
    pub range: Range,
    /// 0 or [`ZEROPAGE_DONTWAKE`].
    pub mode: u64,
    /// Bytes done, or an error number below zero, by the kernel, also when the request fails.
    pub done: i64,
}

impl Request for Zeropage {
    const CODE: u32 = request_code(READ_WRITE, NR_ZEROPAGE, 32);
}

/// Raise or lift write protection (`struct uffdio_writeprotect`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WriteProtect {
    /// Where.
    pub range: Range,
    /// [`PROTECT`], 0 or [`LIFT_DONTWAKE`].
    pub mode: u64,
}

impl Request for WriteProtect {
    const CODE: u32 = request_code(READ_WRITE, NR_WRITEPROTECT, 24);
}

/// What a kernel can do with userfaultfds (`UFFD_FEATURE_*`), as a set. Bits this crate does not name are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);
    /// Write faults on protected pages are told (Linux 5.7).
    pub const PAGEFAULT_FLAG_WP: Self = Self(1 << 0);
    /// A moved mapping stays watched and is told of.
    pub const EVENT_REMAP: Self = Self(1 << 2);
    /// Memory given back by madvise(2) (MADV_REMOVE, MADV_DONTNEED) is told of; the caller waits until it was read.
    pub const EVENT_REMOVE: Self = Self(1 << 3);
    /// Shared memory can be watched (Linux 4.11).
    pub const MISSING_SHMEM: Self = Self(1 << 5);
    /// Unmapping is told of.
    pub const EVENT_UNMAP: Self = Self(1 << 6);
    /// Faults tell the thread that waits.
    pub const THREAD_ID: Self = Self(1 << 8);
    /// Shared memory can be write-protected (Linux 5.19).
    pub const WP_HUGETLBFS_SHMEM: Self = Self(1 << 12);
    /// What serving a guest's shared memory takes: faults on missing pages, and write protection for sweeps.
    pub const SHARED_GUEST: Self =
        Self(Self::PAGEFAULT_FLAG_WP.0 | Self::MISSING_SHMEM.0 | Self::WP_HUGETLBFS_SHMEM.0);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"),
        (Self::EVENT_REMAP, "EVENT_REMAP"),
        (Self::EVENT_REMOVE, "EVENT_REMOVE"),
        (Self::MISSING_SHMEM, "MISSING_SHMEM"),
        (Self::EVENT_UNMAP, "EVENT_UNMAP"),
        (Self::THREAD_ID, "THREAD_ID"),
        (Self::WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"),
    ];

    /// Whether all of `others` are in it.
    #[must_use]
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// What is in it and not in `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The kernel's names, and in hexadecimal what has none here.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut between = "";
        for (feature, name) in Self::NAMES {
            if self.contains(feature) {
                write!(f, "{between}{name}")?;
                between = ", ";
                rest = rest.without(feature);
            }
        }
        if rest != Self::NONE {
            write!(f, "{between}{:#x}", rest.0)?;
        } else if between.is_empty() {
            f.write_str("none")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use std::string::ToString;

    use super::*;

    // The numbers that a C compiler makes of linux/userfaultfd.h.
    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(Api::CODE, 0xc018_aa3f);
        assert_eq!(Register::CODE, 0xc020_aa00);
        assert_eq!(Unregister::CODE, 0x8010_aa01);
        assert_eq!(Wake::CODE, 0x8010_aa02);
        assert_eq!(Zeropage::CODE, 0xc020_aa04);
        assert_eq!(WriteProtect::CODE, 0xc018_aa06);
        assert_eq!(DEVICE_NEW, 0xaa00);
    }

    #[test]
    fn arguments_have_the_size_their_request_says() {
        let said = |code: u32| usize::try_from((code >> 16) & 0x3fff).unwrap();
        assert_eq!(size_of::<Api>(), said(Api::CODE));
        assert_eq!(size_of::<Register>(), said(Register::CODE));
        assert_eq!(size_of::<Unregister>(), said(Unregister::CODE));
        assert_eq!(size_of::<Wake>(), said(Wake::CODE));
        assert_eq!(size_of::<Zeropage>(), said(Zeropage::CODE));
        assert_eq!(size_of::<WriteProtect>(), said(WriteProtect::CODE));
    }

    #[test]
    fn features_are_named() {
        let some = Features::PAGEFAULT_FLAG_WP | Features::EVENT_REMOVE | Features(1 << 40);
        assert_eq!(some.to_string(), "PAGEFAULT_FLAG_WP, EVENT_REMOVE, 0x10000000000");
        assert_eq!(Features::NONE.to_string(), "none");
        assert_eq!(Features::SHARED_GUEST.without(some).to_string(), "MISSING_SHMEM, WP_HUGETLBFS_SHMEM");
        assert!(!some.contains(Features::SHARED_GUEST));
    }

    #[test]
    fn a_range_that_lacks_a_request_cannot_be_served() {
        let mut register = Register { ioctls: 0b101_0100, ..Register::default() };
        assert!(register.can_be_served());
        register.ioctls &= !(1 << NR_ZEROPAGE);
        assert!(!register.can_be_served());
    }
}
