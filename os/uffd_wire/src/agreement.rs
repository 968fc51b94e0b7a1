//! How the preloaded library is told what to do, and how it says why it ended its process.
//!
//! It is told by environment variables of the VMM:
//!
//! ```text
//! PLIMSOLL_POD_FILE=0:1:28559          the guest's memory: device (major, minor) and inode of the file
//! PLIMSOLL_POD_SOCKET=/run/.../pod     where its pager listens (Unix, SOCK_SEQPACKET)
//! PLIMSOLL_POD_ON_LOSS=stall           or `open`: what becomes of the guest when its pager is gone for good
//! PLIMSOLL_POD_DEADLINE_MS=10000       how long the pager may take to accept (may be left out)
//! ```

use core::fmt;

/// The variable that names the file, as [`FileId`] is written.
pub const FILE: &str = "PLIMSOLL_POD_FILE";
/// The variable that names the pager's socket.
pub const SOCKET: &str = "PLIMSOLL_POD_SOCKET";
/// The variable that says [`OnPagerLoss`]. Without it: stall.
pub const ON_LOSS: &str = "PLIMSOLL_POD_ON_LOSS";
/// The variable with the milliseconds that the pager has for its answer, 1 to 600000.
pub const DEADLINE_MS: &str = "PLIMSOLL_POD_DEADLINE_MS";
/// The deadline where none is given. A pager answers in well under a millisecond; one that is being restarted,
/// on a busy host, within a few seconds.
pub const DEFAULT_DEADLINE_MS: u32 = 10_000;
/// The longest deadline that is taken.
pub const LONGEST_DEADLINE_MS: u32 = 600_000;
/// The file name of the library, by which it finds itself in `LD_PRELOAD`.
pub const LIBRARY: &str = "libplimsoll_pod_preload.so";

/// Exit codes of a VMM that the library ended. What happened is on its standard error, after `plimsoll-pod: `.
pub mod exit {
    /// The variables are missing or make no sense.
    pub const ENVIRONMENT: i32 = 120;
    /// The VMM maps the file in a way that cannot be served: twice, privately, in part.
    pub const MAPPING: i32 = 121;
    /// The kernel gives no userfaultfd that would do.
    pub const KERNEL: i32 = 122;
    /// The pager is not there, refuses, or does not answer in time.
    pub const PAGER: i32 = 123;
}

/// What becomes of a guest when nobody holds its userfaultfd any more but the library in its VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPagerLoss {
    /// The library keeps the userfaultfd open: whoever touches a missing page then waits for ever.
    Stall,
    /// It keeps none: the kernel lets all go on, and the guest has no limit any more.
    Open,
}

impl OnPagerLoss {
    /// Its word in [`ON_LOSS`]; `None` for any other word.
    #[must_use]
    pub fn parse(word: &[u8]) -> Option<Self> {
        match word {
            b"stall" => Some(Self::Stall),
            b"open" => Some(Self::Open),
            _ => None,
        }
    }

    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stall => "stall",
            Self::Open => "open",
        }
    }
}

/// Which file of this machine: no path could say it, since a memfd has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// Major number of the device (statx(2) `stx_dev_major`).
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// The inode.
    pub inode: u64,
}

impl FileId {
    /// Reads `MAJOR:MINOR:INODE`, all decimal; `None` for anything else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.split(|byte| *byte == b':').map(decimal);
        let (major, minor, inode) = (parts.next()??, parts.next()??, parts.next()??);
        if parts.next().is_some() {
            return None;
        }
        Some(Self { major: u32::try_from(major).ok()?, minor: u32::try_from(minor).ok()?, inode })
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.major, self.minor, self.inode)
    }
}

/// A number of decimal digits, without sign or blanks.
#[must_use]
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod test {
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_file_is_read_as_it_is_written(major: u32, minor: u32, inode: u64) {
            let file = FileId { major, minor, inode };
            prop_assert_eq!(FileId::parse(file.to_string().as_bytes()), Some(file));
        }

        #[test]
        fn any_text_is_refused_or_written_alike(text in "[0-9:x ]{0,12}") {
            if let Some(file) = FileId::parse(text.as_bytes()) {
                let again = FileId::parse(file.to_string().as_bytes());
                prop_assert_eq!(again, Some(file));
                prop_assert_eq!(text.matches(':').count(), 2);
            }
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in
            ["", "1", "1:2", "1:2:", "1:2:3:4", "1:2:-3", " 1:2:3", "1:2:3\n", "4294967296:0:1", "+1:2:3"]
        {
            assert_eq!(FileId::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"18446744073709551616"), None);
    }

    #[test]
    fn words_of_loss() {
        for loss in [OnPagerLoss::Stall, OnPagerLoss::Open] {
            assert_eq!(OnPagerLoss::parse(loss.word().as_bytes()), Some(loss));
        }
        assert_eq!(OnPagerLoss::parse(b"Stall"), None);
    }
}
