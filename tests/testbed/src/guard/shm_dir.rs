//! Temporary directories in memory.

use std::path::{Path, PathBuf};

use super::{Deed, Undo, unique_name};
use crate::BedError;

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

#[cfg(test)]
mod test {
    use super::ShmDir;

    #[test]
    fn it_goes_with_what_is_in_it() {
        let dir = ShmDir::create("some").expect("makes");
        std::fs::write(dir.path().join("file"), "x").expect("writes");
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}
