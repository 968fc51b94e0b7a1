//! Which file is a guest's memory, and how much of it is there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plimsoll_units::Bytes;
use rustix::process::Pid;

use crate::BedError;

/// How to know the file among a process's descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ram {
    /// A memfd: QEMU's own (memory-backend-memfd), which /proc/PID/fd shows as `/memfd:memory-backend-memfd (deleted)`, or the
    /// one that `plimsoll run` makes where memory is populated on demand, `/memfd:plimsoll-ram (deleted)`.
    Memfd,
    /// A file without a name in this directory (UML's physical memory): `DIR/#7 (deleted)`.
    UnnamedIn(PathBuf),
}

impl Ram {
    fn is(&self, link: &Path) -> bool {
        let link = link.to_string_lossy();
        let Some(file) = link.strip_suffix(" (deleted)") else { return false };
        match self {
            Self::Memfd => file.starts_with("/memfd:memory-backend-memfd") || file == "/memfd:plimsoll-ram",
            Self::UnnamedIn(dir) => Path::new(file).parent() == Some(dir),
        }
    }

    /// Bytes of the file that exist: `st_blocks` in units of 512 (stat(2)). A file open twice counts once.
    pub(super) fn resident(&self, pid: Pid) -> Result<Bytes, BedError> {
        let dir = PathBuf::from(format!("/proc/{}/fd", pid.as_raw_nonzero()));
        let entries = fs::read_dir(&dir).map_err(BedError::io("read directory", &dir))?;
        let mut files: Vec<_> = entries
            .flatten()
            .filter(|entry| fs::read_link(entry.path()).is_ok_and(|link| self.is(&link)))
            .filter_map(|entry| fs::metadata(entry.path()).ok())
            .map(|found| (found.dev(), found.ino(), found.blocks()))
            .collect();
        files.sort_unstable();
        // Its count may have changed between two looks at the same file.
        files.dedup_by_key(|(dev, ino, _)| (*dev, *ino));
        if files.is_empty() {
            return Err(BedError::Unsupported(format!(
                "no file of {} is known as a guest's memory",
                dir.display()
            )));
        }
        Ok(Bytes(files.iter().map(|(_, _, blocks)| blocks * 512).sum()))
    }
}

#[cfg(test)]
mod test {
    use std::path::Path;

    use super::Ram;

    #[test]
    fn files_are_told_apart() {
        assert!(Ram::Memfd.is(Path::new("/memfd:memory-backend-memfd (deleted)")));
        assert!(Ram::Memfd.is(Path::new("/memfd:plimsoll-ram (deleted)")));
        assert!(!Ram::Memfd.is(Path::new("/memfd:other (deleted)")));
        let uml = Ram::UnnamedIn("/dev/shm/x".into());
        assert!(uml.is(Path::new("/dev/shm/x/#8 (deleted)")));
        assert!(!uml.is(Path::new("/dev/shm/x/console.log")));
        assert!(!uml.is(Path::new("/dev/shm/x/y/#8 (deleted)")));
    }
}
