//! Temporary directories, in memory and on disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use plimsoll_units::Bytes;

use super::{Deed, Undo, unique_name};
use crate::{BedError, paths};

/// Where they lie: a tmpfs, which UML wants for its memory, and whose pages are given back by punching holes.
pub(super) const PARENT: &str = "/dev/shm";

/// A directory under /dev/shm, removed with everything in it when dropped.
#[derive(Debug)]
pub struct ShmDir {
    path: PathBuf,
    _undo: Undo,
}

impl ShmDir {
    /// Makes a new one; `what` becomes part of its name.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be made.
    pub fn create(what: &str) -> Result<Self, BedError> {
        let path = Path::new(PARENT).join(unique_name(what));
        let undo = Undo::register(Deed::Dir(path.clone()))?;
        std::fs::create_dir(&path).map_err(BedError::io("make directory", &path))?;
        Ok(Self { path, _undo: undo })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A directory on disk, beside what `cargo xtask setup` makes, removed with everything in it when dropped.
#[derive(Debug)]
pub struct DiskDir {
    path: PathBuf,
    _undo: Undo,
}

/// Where directories on disk lie.
pub(super) fn on_disk() -> PathBuf {
    paths::work_dir().join("tmp")
}

impl DiskDir {
    /// Makes a new one; `what` becomes part of its name.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be made.
    pub fn create(what: &str) -> Result<Self, BedError> {
        let path = on_disk().join(unique_name(what));
        let undo = Undo::register(Deed::Dir(path.clone()))?;
        std::fs::create_dir_all(&path).map_err(BedError::io("make directory", &path))?;
        Ok(Self { path, _undo: undo })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a file in it that reads as zeros and takes no space until it is written.
    ///
    /// # Errors
    /// [`BedError::Io`] when there is one of that name.
    pub fn sparse_file(&self, name: &str, size: Bytes) -> Result<PathBuf, BedError> {
        let path = self.path.join(name);
        let file = File::create_new(&path).map_err(BedError::io("make", &path))?;
        file.set_len(size.0).map_err(BedError::io("size", &path))?;
        Ok(path)
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::MetadataExt;

    use plimsoll_units::Bytes;

    use super::{DiskDir, ShmDir};

    #[test]
    fn a_sparse_file_takes_no_space_and_goes_with_its_directory() {
        let dir = DiskDir::create("sparse").expect("makes");
        let path = dir.sparse_file("swap", Bytes::mib(64)).expect("makes");
        let found = std::fs::metadata(&path).expect("is there");
        assert_eq!((found.len(), found.blocks()), (64 << 20, 0));
        assert!(
            dir.sparse_file("swap", Bytes::mib(1)).is_err_and(|error| error.to_string().contains("swap"))
        );
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn it_goes_with_what_is_in_it() {
        let dir = ShmDir::create("some").expect("makes");
        std::fs::write(dir.path().join("file"), "x").expect("writes");
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}
