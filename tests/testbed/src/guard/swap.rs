//! A swap file for the time of a test.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use plimsoll_units::{Bytes, PAGE_SIZE};
use rustix::fs::{FallocateFlags, fallocate};

use super::{Deed, Undo, unique_name};
use crate::{BedError, paths};

/// A swap file on disk, in use until dropped.
#[derive(Debug)]
pub struct TempSwap {
    path: PathBuf,
    _undo: Undo,
}

/// Where swap files lie.
pub(super) fn dir() -> PathBuf {
    paths::work_dir().join("swap")
}

impl TempSwap {
    /// Makes a file of `size` (at least 1 MiB, whole pages) and swaps to it, before other swap there is.
    ///
    /// # Errors
    /// [`BedError`] when this is not root, the disk is full, or its file system does not take swap files.
    pub fn add(size: Bytes) -> Result<Self, BedError> {
        let dir = dir();
        std::fs::create_dir_all(&dir).map_err(BedError::io("make directory", &dir))?;
        let path = dir.join(unique_name("swap"));
        let undo = Undo::register(Deed::Swap(path.clone()))?;
        make_file(&path, size).map_err(BedError::io("make swap file", &path))?;
        let program = paths::program("swapon", "mount")?;
        let output = Command::new(&program).args(["--priority", "100"]).arg(&path).output();
        let output = output.map_err(BedError::io("run", &program))?;
        if output.status.success() {
            return Ok(Self { path, _undo: undo });
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(BedError::Program { program: format!("swapon {}", path.display()), said })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn make_file(path: &Path, size: Bytes) -> io::Result<()> {
    let pages = u32::try_from(size.pages_floor().0).map_err(io::Error::other)?;
    let header = header(pages).ok_or_else(|| io::Error::other("a swap file has at least 1 MiB"))?;
    let file = File::create_new(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    // Swap files must not have holes. Where the file system cannot reserve, zeros are written.
    if fallocate(&file, FallocateFlags::empty(), 0, u64::from(pages) * PAGE_SIZE).is_err() {
        let zeros = vec![0; 1 << 20];
        let mut left = u64::from(pages) * PAGE_SIZE;
        while left > 0 {
            let some = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
            (&file).write_all(zeros.get(..some).unwrap_or_default())?;
            left -= u64::try_from(some).unwrap_or(left);
        }
    }
    file.write_all_at(&header, 0)?;
    file.sync_all()
}

/// The first page of swap space: `union swap_header` of Linux's include/linux/swap.h.
/// At 1024: version 1, the number of the last page, no bad pages. The last ten bytes: the magic.
fn header(pages: u32) -> Option<Vec<u8>> {
    if pages < 256 {
        return None;
    }
    let mut page = vec![0; usize::try_from(PAGE_SIZE).ok()?];
    page.get_mut(1024..1028)?.copy_from_slice(&1_u32.to_ne_bytes());
    page.get_mut(1028..1032)?.copy_from_slice(&(pages - 1).to_ne_bytes());
    let magic = page.len().checked_sub(10)?;
    page.get_mut(magic..)?.copy_from_slice(b"SWAPSPACE2");
    Some(page)
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::{TempSwap, header};
    use crate::skip;

    #[test]
    fn a_header_has_its_magic_and_its_last_page() {
        let page = header(1024).expect("large enough");
        assert_eq!(&page[4086..], b"SWAPSPACE2");
        assert_eq!(&page[1028..1032], 1023_u32.to_ne_bytes());
        assert_eq!(header(255), None);
    }

    #[test]
    fn swap_comes_and_goes() {
        let Some(()) = skip::unless_root("guard::swap::swap_comes_and_goes") else { return };
        let in_use = |name: &str| std::fs::read_to_string("/proc/swaps").expect("reads").contains(name);
        let swap = TempSwap::add(Bytes::mib(4)).expect("this file system takes swap files");
        let name = swap.path().file_name().expect("has one").to_string_lossy().into_owned();
        let path = swap.path().to_owned();
        assert!(in_use(&name));
        drop(swap);
        assert!(!in_use(&name) && !path.exists());
    }
}
