//! Debian's stock kernel, unpacked and not installed: installing it would build an initramfs for this machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use plimsoll_testbed::paths;

use super::Done;
use super::packages::{apt_get, download};
use crate::{out, run};

/// The package that depends on the newest stock kernel.
const META: &str = "linux-image-amd64";
/// Which parts of the modules' tree are kept: virtio, what it needs, and compressed swap. The rest is 300 MB.
const KEPT: [&str; 5] = ["drivers/virtio", "drivers/block", "drivers/char", "mm", "lib"];

/// Downloads and unpacks it, unless it is there.
pub(super) fn fetch() -> Result<Done> {
    let dir = paths::kernel_dir();
    if let Some(kernel) = unpacked(&dir) {
        return Ok(Done::Already(kernel));
    }
    if paths::program("apt-get", "apt").is_err() || paths::program("dpkg", "dpkg").is_err() {
        bail!("without apt-get and dpkg, unpack a {META} package of Debian into {}", dir.display());
    }
    let package = match newest() {
        Ok(package) => package,
        Err(_) if rustix::process::geteuid().is_root() => {
            run::quiet(apt_get().arg("update")).context("the list of packages")?;
            newest()?
        }
        Err(error) => return Err(error.context("as root, run: apt-get update")),
    };
    let partial = dir.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let fetched = fetch_into(&partial, &package);
    let placed = fetched.and_then(|()| place(&partial, &dir));
    // After success there is nothing left of it.
    let _ = fs::remove_dir_all(&partial);
    placed.map(|()| Done::Now(format!("unpacked {package} into {}", dir.display())))
}

/// The kernel's file name.
fn unpacked(dir: &Path) -> Option<String> {
    let entries = fs::read_dir(dir.join("boot")).ok()?.flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| name.starts_with("vmlinuz-"))
}

/// The name of the package with the newest stock kernel apt knows of.
fn newest() -> Result<String> {
    let text = run::quiet(Command::new("apt-cache").args(["show", "--no-all-versions", META]))?;
    dependency(&text).with_context(|| format!("apt-cache says of no kernel that {META} depends on it"))
}

/// `linux-image-6.1.0-56-amd64` in `Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)`.
fn dependency(text: &str) -> Option<String> {
    let depends = text.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let mut names = depends.split([',', '|']).filter_map(|item| item.split_ascii_whitespace().next());
    names.find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn fetch_into(partial: &Path, package: &str) -> Result<()> {
    out::say(&format!("    downloading {package}, about 70 MB"));
    let file = download(package, partial)?;
    let tree = partial.join("tree");
    run::quiet(Command::new("dpkg").arg("--extract").arg(&file).arg(&tree))?;
    prune(&tree)
}

/// Removes what no guest needs.
fn prune(tree: &Path) -> Result<()> {
    let modules = tree.join("lib/modules");
    for release in fs::read_dir(&modules).with_context(|| format!("cannot read {}", modules.display()))? {
        let kernel = release?.path().join("kernel");
        prune_below(&kernel, Path::new(""))?;
    }
    Ok(())
}

fn prune_below(dir: &Path, relative: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let relative = relative.join(entry.file_name());
        if KEPT.iter().any(|kept| relative == Path::new(kept)) {
            continue;
        }
        let leads_to_kept = KEPT.iter().any(|kept| Path::new(kept).starts_with(&relative));
        match (entry.file_type()?.is_dir(), leads_to_kept) {
            (true, true) => prune_below(&entry.path(), &relative)?,
            (true, false) => fs::remove_dir_all(entry.path())?,
            (false, _) => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Renames the tree into its place at once: whoever sees it sees all of it.
fn place(partial: &Path, dir: &Path) -> Result<()> {
    let tree = partial.join("tree");
    match fs::rename(&tree, dir) {
        Ok(()) => Ok(()),
        // Another setup was faster.
        Err(_) if unpacked(dir).is_some() => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot rename {} to {}", tree.display(), dir.display()))
        }
    }
}

#[cfg(test)]
mod test {
    use std::fs;
    use std::path::Path;

    use plimsoll_testbed::guard::ShmDir;

    use super::{dependency, prune, unpacked};

    #[test]
    fn the_kernel_a_meta_package_stands_for_is_found() {
        let text = "Package: linux-image-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n";
        assert_eq!(dependency(text).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency("Depends: a, linux-image-x | b\n").as_deref(), Some("linux-image-x"));
        assert_eq!(dependency("Package: x\n"), None);
    }

    #[test]
    fn pruning_keeps_virtio_and_what_it_needs() {
        let dir = ShmDir::create("kernel").expect("a directory");
        let kernel = dir.path().join("lib/modules/6.1/kernel");
        let touch = |path: &Path| {
            fs::create_dir_all(path.parent().expect("has one")).expect("makes");
            fs::write(path, "").expect("writes");
        };
        for file in
            ["drivers/virtio/virtio.ko", "drivers/gpu/big.ko", "sound/core/snd.ko", "mm/zsmalloc.ko", "x.ko"]
        {
            touch(&kernel.join(file));
        }
        prune(dir.path()).expect("prunes");
        let there = |file: &str| kernel.join(file).exists();
        assert!(there("drivers/virtio/virtio.ko") && there("mm/zsmalloc.ko"));
        assert!(!there("drivers/gpu") && !there("sound") && !there("x.ko"));
    }

    #[test]
    fn a_kernel_that_is_there_is_seen() {
        let dir = ShmDir::create("kernel").expect("a directory");
        assert_eq!(unpacked(dir.path()), None);
        fs::create_dir(dir.path().join("boot")).expect("makes");
        fs::write(dir.path().join("boot/vmlinuz-6.1.0"), "").expect("writes");
        assert_eq!(unpacked(dir.path()).as_deref(), Some("vmlinuz-6.1.0"));
    }
}
