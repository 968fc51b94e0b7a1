//! Builds the library as it ships.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use plimsoll_testbed::paths;
use plimsoll_uffd::agreement::LIBRARY;

/// The library, built with the profile it ships with, in which it is without the standard library. Cargo builds no
/// dynamic library for an integration test by itself, and would build another one.
pub(crate) fn library() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let target = paths::work_dir().join("preload");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--offline", "--lib", "--profile", "agent"])
        .arg("--target-dir")
        .arg(&target)
        .output()
        .expect("cargo can be run");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("agent").join(LIBRARY)
}

#[test]
fn it_is_small_and_needs_nothing_but_the_c_library() {
    let bytes = std::fs::read(library()).unwrap();
    assert!(bytes.len() < 48 * 1024, "{} bytes", bytes.len());
    let has = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has("libc.so.6") && has("mremap"));
    // Where panics are told and stacks unwound, the standard library would be in it.
    assert!(!has("libgcc_s") && !has("RUST_BACKTRACE"));
}
