//! Debian packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use plimsoll_testbed::guest::QEMU_PACKAGE;
use plimsoll_testbed::images::{BUSYBOX_PACKAGE, UML_PACKAGE};
use plimsoll_testbed::paths;

use super::Done;
use crate::{out, run};

/// A package, and how to see that it is there: a machine may have the program from elsewhere.
struct Package {
    name: &'static str,
    is_there: fn() -> bool,
}

const PACKAGES: [Package; 3] = [
    Package { name: UML_PACKAGE, is_there: || paths::program("linux.uml", UML_PACKAGE).is_ok() },
    Package { name: QEMU_PACKAGE, is_there: || paths::program("qemu-system-x86_64", QEMU_PACKAGE).is_ok() },
    Package { name: BUSYBOX_PACKAGE, is_there: has_static_busybox },
];

/// Installs what is missing, as root, with apt-get.
pub(super) fn install() -> Result<Done> {
    let missing: Vec<_> = PACKAGES.iter().filter(|package| !(package.is_there)()).map(|p| p.name).collect();
    let all = PACKAGES.iter().map(|package| package.name).collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        return Ok(Done::Already(all));
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("this is not root; as root, run: apt-get install --no-install-recommends {names}");
    }
    if paths::program("apt-get", "apt").is_err() {
        bail!("there is no apt-get; install what Debian calls: {names}");
    }
    out::say(&format!("    installing {names} with apt-get"));
    run::quiet(apt_get().arg("update")).context("the list of packages")?;
    run::quiet(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&missing))?;
    let still: Vec<_> = PACKAGES.iter().filter(|package| !(package.is_there)()).map(|p| p.name).collect();
    if !still.is_empty() {
        bail!("apt-get installed {} and its programs are still not there", still.join(" "));
    }
    Ok(Done::Now(format!("installed {names}")))
}

/// apt-get, asking nothing.
pub(super) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--option", "Dpkg::Use-Pty=0"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Downloads a package without installing it; returns its file, which lies in `dir`.
pub(super) fn download(package: &str, dir: &Path) -> Result<PathBuf> {
    if paths::program("apt-get", "apt").is_err() || paths::program("dpkg", "dpkg").is_err() {
        bail!(
            "Debian's package {package} is needed, and there is no apt-get and dpkg to fetch and unpack it"
        );
    }
    let words = ["--option", "APT::Sandbox::User=root", "download", package];
    if let Err(error) = run::quiet(apt_get().args(words).current_dir(dir)) {
        // The list may be missing, or older than what the mirror still has.
        if !rustix::process::geteuid().is_root() {
            return Err(error.context("as root, run: apt-get update"));
        }
        run::quiet(apt_get().arg("update")).context("the list of packages")?;
        run::quiet(apt_get().args(words).current_dir(dir))?;
    }
    deb_in(dir)
}

fn deb_in(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.flatten();
    let mut files = entries.map(|entry| entry.path());
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    file.with_context(|| format!("apt-get left no package in {}", dir.display()))
}

/// Debian's package `busybox` has a program of the same name that needs libraries a guest does not have.
fn has_static_busybox() -> bool {
    let busybox = paths::program("busybox", BUSYBOX_PACKAGE);
    busybox.is_ok_and(|path| is_static(&path).unwrap_or(false))
}

fn is_static(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(!wants_interpreter(&bytes).unwrap_or(true))
}

/// Whether a 64-bit little-endian ELF program has a program header PT_INTERP (elf(5)). `None`: it is no such file.
fn wants_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(elf.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let (table, entry, n_entries) = (usize::try_from(long(32)?).ok()?, usize::from(half(54)?), half(56)?);
    for n in 0..usize::from(n_entries) {
        if word(table.checked_add(n * entry)?)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod test {
    use super::wants_interpreter;

    #[test]
    fn programs_that_need_libraries_are_told_from_others() {
        let shell = std::fs::read("/bin/sh").expect("reads");
        assert_eq!(wants_interpreter(&shell), Some(true));
        assert_eq!(wants_interpreter(b"#!/bin/sh"), None);
        // The first 64 bytes are the header; its tables are cut off.
        assert_eq!(wants_interpreter(&shell[..64]), None);
    }
}
