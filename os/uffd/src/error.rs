//! What can go wrong.

use std::io;
use std::path::PathBuf;

use plimsoll_uffd_wire::abi::{DEVICE, Features};
use rustix::io::Errno;

/// Why a userfaultfd could not be had or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// Neither way to a full userfaultfd is open to this program.
    #[error(
        "the kernel gives this program no userfaultfd that also sees the kernel's own accesses (userfaultfd(2): \
         {syscall}; {DEVICE}: {device}): run with CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1 (sysctl), \
         or, with Linux 6.1 and later, let this user read and write {DEVICE}. One for faults of user mode only \
         (UFFD_USER_MODE_ONLY) would not do: KVM, vhost and the VMM's system calls touch guest memory from inside \
         the kernel, and would fail instead of waiting"
    )]
    NotAllowed {
        /// What the system call answered.
        syscall: Errno,
        /// What opening the device, or asking it, answered.
        device: Errno,
    },
    /// The kernel was built without.
    #[error("this kernel has no userfaultfd: it needs CONFIG_USERFAULTFD=y")]
    Absent,
    /// The kernel is too old.
    #[error(
        "userfaultfd of this kernel lacks {missing}; write protection of shared memory, for one, needs Linux 5.19 \
         and CONFIG_PTE_MARKER_UFFD_WP"
    )]
    Lacks {
        /// What is wanted and not there.
        missing: Features,
    },
    /// No range of addresses.
    #[error("{len} bytes from address {start:#x} are not whole pages of this process's or another's memory")]
    Range {
        /// The first address.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// A descriptor of something else.
    #[error("descriptor {fd} is {}, not a userfaultfd", found.display())]
    NotUserfaultfd {
        /// Its number.
        fd: i32,
        /// What the kernel calls it.
        found: PathBuf,
    },
    /// The watched process has ended, or has replaced itself by execve(2).
    #[error("the process whose memory is watched is gone")]
    Gone,
    /// The kernel hands out whole events only, so this is none of its own.
    #[error(
        "read {bytes} bytes of events, which are not whole events of {} bytes",
        plimsoll_uffd_wire::abi::EVENT_BYTES
    )]
    OddRead {
        /// How many came.
        bytes: usize,
    },
    /// The kernel refused.
    #[error("{action}: {errno}")]
    Kernel {
        /// What was tried, on what.
        action: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A file that says how the kernel is set could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl UffdError {
    /// The kernel's answer to a request about a watched range.
    pub(crate) fn kernel(action: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| if errno == Errno::SRCH { Self::Gone } else { Self::Kernel { action, errno } }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let refused = UffdError::NotAllowed { syscall: Errno::PERM, device: Errno::ACCESS }.to_string();
        for word in
            ["vm.unprivileged_userfaultfd=1", "CAP_SYS_PTRACE", "/dev/userfaultfd", "UFFD_USER_MODE_ONLY"]
        {
            assert!(refused.contains(word), "{word} is not in: {refused}");
        }
        let lacks = UffdError::Lacks { missing: Features::WP_HUGETLBFS_SHMEM }.to_string();
        assert!(lacks.contains("WP_HUGETLBFS_SHMEM") && lacks.contains("5.19"), "{lacks}");
        assert!(UffdError::Absent.to_string().contains("CONFIG_USERFAULTFD"));
    }

    #[test]
    fn a_dead_process_is_told_from_a_refusal() {
        assert!(matches!(UffdError::kernel("x")(Errno::SRCH), UffdError::Gone));
        assert!(matches!(UffdError::kernel("x")(Errno::INVAL), UffdError::Kernel { .. }));
    }
}
