//! What can go wrong with a group.

use std::{io, path::PathBuf};

/// Why a group could not be read or changed. Every variant names the path.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No memory controller in any mounted hierarchy.
    #[error(
        "no memory controller is mounted: {} lists neither a version 1 memory hierarchy nor a version 2 one \
         with the memory controller", mountinfo.display()
    )]
    NoController {
        /// Where it was looked for.
        mountinfo: PathBuf,
    },
    /// Version 2 is not mounted, so there is no pressure of a group.
    #[error("no version 2 cgroup hierarchy is mounted, so groups have no memory.pressure")]
    NoUnified,
    /// A path that names no group.
    #[error("`{path}` names no control group: {why}")]
    BadPath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The group does not exist, or not any more.
    #[error("there is no control group {}", path.display())]
    NoGroup {
        /// Its directory.
        path: PathBuf,
    },
    /// There is no such process, or not any more.
    #[error("there is no process {pid}")]
    NoProcess {
        /// Its number.
        pid: u32,
    },
    /// The kernel has no such file for this group.
    #[error("this kernel or cgroup version has no {file} in {}", path.display())]
    Unsupported {
        /// The file's name.
        file: &'static str,
        /// The group's directory.
        path: PathBuf,
    },
    /// The group still has processes or groups in it.
    #[error("cannot remove the control group {}: processes or groups are still in it", path.display())]
    Busy {
        /// Its directory.
        path: PathBuf,
    },
    /// Version 2: the memory controller cannot be handed to the groups inside.
    #[error(
        "cannot enable the memory controller for the groups in {}: it has processes of its own; move them into \
         a group inside it first", path.display()
    )]
    HasProcesses {
        /// Its directory.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write `{text}` to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        text: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Making or removing a directory failed.
    #[error("cannot {what} the control group {}: {source}", path.display())]
    Directory {
        /// `make` or `remove`.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds `{seen}`, which is no {wanted}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The beginning of what was read.
        seen: String,
        /// What was wanted.
        wanted: &'static str,
    },
    /// The process is in a group that this mount does not show.
    #[error("process {pid} is in the group {group}, which lies outside of what is mounted at {}", mount.display())]
    Elsewhere {
        /// The process.
        pid: u32,
        /// The group, as the kernel names it.
        group: String,
        /// The mount.
        mount: PathBuf,
    },
}

impl CgroupError {
    /// The value, or nothing where the kernel does not have it.
    pub fn optional<T>(result: Result<T, Self>) -> Result<Option<T>, Self> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Self::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
