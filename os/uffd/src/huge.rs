//! Whether memory comes in huge pages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use plimsoll_units::FRAME_SIZE;

use crate::UffdError;

/// Where the kernel says so (Documentation/admin-guide/mm/transhuge.rst).
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Whether a memfd gets huge pages of 2 MiB, one for each aligned 2 MiB that are filled at once.
///
/// That is what the administrator allows. The kernel may still have none to give, and a mapping shows
/// them as such only where address and file offset are the same in their lowest 21 bits; /proc/PID/smaps
/// (`ShmemPmdMapped`) tells what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Wherever they fit, also when filled by fallocate(2).
    Always,
    /// In mappings that asked by madvise(MADV_HUGEPAGE), as QEMU does. Whether fallocate(2) gets them is up to the
    /// kernel's version.
    OnAdvice,
    /// No.
    Never,
}

/// Whether memfds get huge pages on this machine.
///
/// Two files say so: `shmem_enabled`, and, with Linux 6.11 and later, the file of the same name for the size of 2 MiB,
/// which goes before the first unless it says `inherit`.
///
/// # Errors
/// [`UffdError::Read`] when the files are there and cannot be read. A kernel without huge pages has no files:
/// [`HugePages::Never`].
pub fn memfd_huge_pages() -> Result<HugePages, UffdError> {
    read_settings(Path::new(SETTINGS))
}

fn read_settings(dir: &Path) -> Result<HugePages, UffdError> {
    let Some(all) = read(dir.join("shmem_enabled"))? else { return Ok(HugePages::Never) };
    let size = format!("hugepages-{}kB", FRAME_SIZE / 1024);
    let this_size = read(dir.join(size).join("shmem_enabled"))?;
    Ok(judge(chosen(&all), this_size.as_deref().map(chosen)))
}

fn read(path: PathBuf) -> Result<Option<String>, UffdError> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(UffdError::Read { path, source }),
    }
}

/// The word in brackets of `always within_size advise [never] deny force`; empty if there is none.
fn chosen(text: &str) -> &str {
    text.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix('[').and_then(|word| word.strip_suffix(']')))
        .unwrap_or_default()
}

fn judge(all: &str, this_size: Option<&str>) -> HugePages {
    let word = match (all, this_size) {
        // These two are for tests of the kernel and go before everything.
        ("deny" | "force", _) | (_, Some("inherit") | None) => all,
        (_, Some(own)) => own,
    };
    match word {
        // A guest's file has its size from the start, so all of it is within.
        "always" | "within_size" | "force" => HugePages::Always,
        "advise" => HugePages::OnAdvice,
        // A word of a later kernel promises nothing.
        _ => HugePages::Never,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn settings(all: Option<&str>, this_size: Option<&str>) -> HugePages {
        let dir = tempfile::tempdir().unwrap();
        let sized = dir.path().join("hugepages-2048kB");
        fs::create_dir(&sized).unwrap();
        for (dir, text) in [(dir.path(), all), (sized.as_path(), this_size)] {
            if let Some(text) = text {
                fs::write(dir.join("shmem_enabled"), text).unwrap();
            }
        }
        read_settings(dir.path()).unwrap()
    }

    #[test]
    fn the_setting_for_all_sizes_decides_where_there_is_no_other() {
        let all = |text| settings(Some(text), None);
        assert_eq!(all("[always] within_size advise never deny force\n"), HugePages::Always);
        assert_eq!(all("always [within_size] advise never deny force\n"), HugePages::Always);
        assert_eq!(all("always within_size [advise] never deny force\n"), HugePages::OnAdvice);
        assert_eq!(all("always within_size advise [never] deny force\n"), HugePages::Never);
        assert_eq!(all("always within_size advise never deny [force]\n"), HugePages::Always);
        assert_eq!(all("nonsense"), HugePages::Never);
        assert_eq!(settings(None, None), HugePages::Never);
    }

    #[test]
    fn the_setting_for_two_mebibytes_goes_before_it() {
        let sized = |all, own| settings(Some(all), Some(own));
        assert_eq!(sized("[never]", "[always] inherit within_size advise never"), HugePages::Always);
        assert_eq!(sized("[always]", "always [inherit] within_size advise never"), HugePages::Always);
        assert_eq!(sized("[always]", "always inherit within_size advise [never]"), HugePages::Never);
        assert_eq!(sized("[deny]", "[always] inherit within_size advise never"), HugePages::Never);
        assert_eq!(sized("[force]", "always inherit within_size advise [never]"), HugePages::Always);
        assert_eq!(sized("[advise]", "always [inherit] within_size advise never"), HugePages::OnAdvice);
    }

    #[test]
    fn a_directory_in_its_place_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shmem_enabled")).unwrap();
        let error = read_settings(dir.path()).unwrap_err().to_string();
        assert!(error.contains("shmem_enabled"), "{error}");
    }

    #[test]
    fn this_machine_says_something() {
        memfd_huge_pages().unwrap();
    }
}
