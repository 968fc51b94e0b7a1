//! What runs inside guests, and the images.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Result, ensure};
use plimsoll_testbed::{images, paths};

use super::Done;
use crate::run;

/// The only machine guests are built for here.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds the workload, for size.
pub(super) fn build_workload() -> Result<Done> {
    let small = ["--config", "profile.release.opt-level=\"s\"", "--config", "profile.release.debug=false"];
    build("plimsoll-workload", "release", &small, &paths::guest_workload())
}

/// Builds the agent, as small as it gets.
pub(super) fn build_agent() -> Result<Done> {
    build("plimsoll-agent", "agent", &[], &paths::guest_agent())
}

/// Builds a program for guests, linked statically.
///
/// In a target directory of its own: other flags in the usual one would rebuild everything back and forth.
/// With an explicit target, so that the flags do not reach build scripts and procedural macros, which cannot be
/// static.
fn build(package: &str, profile: &str, settings: &[&str], program: &Path) -> Result<Done> {
    ensure!(cfg!(target_arch = "x86_64"), "guests are built for x86-64 only, and this machine is another");
    let built = || -> Option<SystemTime> { std::fs::metadata(program).ok()?.modified().ok() };
    let before = built();
    let mut cargo = run::cargo();
    cargo.args(["build", "--quiet", "--package", package, "--profile", profile, "--target", TRIPLE]);
    cargo.arg("--target-dir").arg(paths::guest_target_dir()).args(settings);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    run::quiet(&mut cargo)?;
    let shown = program.display().to_string();
    if built() == before { Ok(Done::Already(shown)) } else { Ok(Done::Now(format!("built {shown}"))) }
}

/// Builds both images; what is missing for one does not keep the other from being built.
pub(super) fn build_images() -> Result<Done> {
    let dir = paths::work_dir().join("images");
    let count = || std::fs::read_dir(&dir).map_or(0, Iterator::count);
    let before = count();
    let (uml, qemu) = (images::uml(), images::qemu());
    let (uml, qemu) = (uml?.initrd, qemu?.initrd);
    let shown = format!("{} and {}", uml.display(), qemu.display());
    if count() == before { Ok(Done::Already(shown)) } else { Ok(Done::Now(format!("built {shown}"))) }
}
