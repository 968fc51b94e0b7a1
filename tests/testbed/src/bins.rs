//! Finds the programs under test.

use std::path::{Path, PathBuf};

use crate::{BedError, paths};

/// Names the directory to take the programs from, before all others.
pub const BIN_DIR: &str = "PLIMSOLL_BIN_DIR";

/// The programs of Plimsoll.
#[derive(Clone, Debug)]
pub struct Bins {
    /// The command line.
    pub plimsoll: PathBuf,
    /// The daemon.
    pub plimsolld: PathBuf,
    /// The keeper of one VM.
    pub keeper: PathBuf,
    /// The back end of one VM.
    pub backend: PathBuf,
}

/// Which build is wanted when there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// The build this program itself is of: for tests.
    Same,
    /// The optimized one: for measurements.
    Release,
}

/// The programs, from the directory [`BIN_DIR`] names, else from the build that is preferred, else from the other.
/// All come from one directory.
///
/// # Errors
/// [`BedError::Missing`] naming the first program that no build has; `cargo xtask` builds before it tests.
pub fn bins(prefer: Prefer) -> Result<Bins, BedError> {
    let mut last = None;
    for dir in dirs(prefer) {
        match all_in(&dir) {
            Ok(bins) => return Ok(bins),
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(last.unwrap_or_else(|| BedError::Missing { what: "a build of Plimsoll".into(), package: "" }))
}

fn dirs(prefer: Prefer) -> Vec<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR) {
        return vec![dir.into()];
    }
    let [debug, release] = ["debug", "release"].map(|profile| paths::target_dir().join(profile));
    let same_is_release = std::env::current_exe().is_ok_and(|program| program.starts_with(&release));
    if prefer == Prefer::Release || same_is_release { vec![release, debug] } else { vec![debug, release] }
}

fn all_in(dir: &Path) -> Result<Bins, BedError> {
    let find = |name: &str| {
        let path = dir.join(name);
        let missing = || BedError::Missing { what: format!("{}", path.display()), package: "" };
        if path.is_file() { Ok(path) } else { Err(missing()) }
    };
    Ok(Bins {
        plimsoll: find("plimsoll")?,
        plimsolld: find("plimsolld")?,
        keeper: find("plimsoll-keeper")?,
        backend: find("plimsoll-backend")?,
    })
}

#[cfg(test)]
mod test {
    use super::all_in;
    use crate::guard::ShmDir;

    #[test]
    fn all_programs_or_none() {
        let dir = ShmDir::create("bins").expect("a directory");
        for name in ["plimsoll", "plimsolld", "plimsoll-keeper"] {
            std::fs::write(dir.path().join(name), "").expect("writes");
        }
        let error = all_in(dir.path()).expect_err("one is missing").to_string();
        assert!(error.contains("plimsoll-backend is missing"), "{error}");
        std::fs::write(dir.path().join("plimsoll-backend"), "").expect("writes");
        assert!(all_in(dir.path()).is_ok_and(|bins| bins.keeper.ends_with("plimsoll-keeper")));
    }
}
