//! Where things are.

use std::path::{Path, PathBuf};

use crate::BedError;

/// Cargo puts this file at the root of every target directory.
const TARGET_MARK: &str = "CACHEDIR.TAG";

/// Cargo's target directory: the one this program was built into.
#[must_use]
pub fn target_dir() -> PathBuf {
    let from_program = std::env::current_exe().ok().and_then(|program| marked_ancestor(&program));
    from_program.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"))
}

/// The nearest directory above `path` that cargo marked as a target directory.
fn marked_ancestor(path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find(|dir| dir.join(TARGET_MARK).is_file()).map(Path::to_owned)
}

/// Where `cargo xtask setup` puts what it makes, and temporary swap files lie.
#[must_use]
pub fn work_dir() -> PathBuf {
    target_dir().join("plimsoll")
}

/// Where the Debian kernel package is unpacked.
#[must_use]
pub fn kernel_dir() -> PathBuf {
    work_dir().join("kernel")
}

/// Cargo's target directory for what runs inside guests: other flags, hence apart.
#[must_use]
pub fn guest_target_dir() -> PathBuf {
    work_dir().join("guest")
}

/// The workload, linked statically, where `cargo xtask setup` builds it.
#[must_use]
pub fn guest_workload() -> PathBuf {
    guest_target_dir().join("x86_64-unknown-linux-gnu/release/plimsoll-workload")
}

/// Plimsoll's agent, linked statically, where `cargo xtask setup` builds it with the profile `agent`.
#[must_use]
pub fn guest_agent() -> PathBuf {
    guest_target_dir().join("x86_64-unknown-linux-gnu/agent/plimsoll-agent")
}

/// Finds a program in `PATH` and where administrators' programs lie, which a user's `PATH` may leave out.
///
/// # Errors
/// [`BedError::Missing`] with `package`.
pub fn program(name: &str, package: &'static str) -> Result<PathBuf, BedError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    let mut candidates = dirs.map(|dir| dir.join(name));
    candidates
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| BedError::Missing { what: format!("the program `{name}`"), package })
}

#[cfg(test)]
mod test {
    use super::{marked_ancestor, program, target_dir};

    #[test]
    fn this_program_lies_in_the_target_directory() {
        let program = std::env::current_exe().expect("known");
        assert!(program.starts_with(target_dir()));
        assert_eq!(marked_ancestor(std::path::Path::new("/bin/sh")), None);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        assert!(program("sh", "dash").is_ok_and(|path| path.is_absolute()));
        let error = program("no-such-program", "some-package").expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "the program `no-such-program` is missing: run `cargo xtask setup` (Debian package some-package)"
        );
    }
}
