//! The guests' images: a kernel, and an initramfs with busybox, the workload, Plimsoll's agent and the kernel's
//! virtio modules.
//!
//! Built in memory, in a second or less, and kept under the name of their contents in `target/plimsoll/images`.
//! Two tests that build the same image at once write the same bytes and rename them to the same name.
//!
//! The image's `/init` mounts what a small system needs, inserts the modules in the order of their dependencies and
//! becomes the workload, on the console. It understands on the kernel's command line:
//! `plimsoll.skip=NAME,NAME` (modules to leave out; the workload's `load` can insert them later) and, through the
//! workload, `plimsoll.script=fill:96M,hold:5,poweroff`. `plimsoll.agent` starts the agent beside it, and
//! `plimsoll.agent=--port,/dev/ttyS0` starts it with these arguments.

mod agent;
mod archive;
mod modules;

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::path::{Path, PathBuf};

pub use archive::Archive;
use modules::Module;

use crate::{BedError, paths};

/// Debian's package of a static busybox.
pub const BUSYBOX_PACKAGE: &str = "busybox-static";
/// Debian's package of User Mode Linux.
pub const UML_PACKAGE: &str = "user-mode-linux";
/// Where that package has its modules, in a directory named for the kernel's release.
const UML_MODULES: &str = "/usr/lib/uml/modules";
/// How long an image that is no longer built is kept, so that nobody's running test loses its own.
const KEEP: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// Modules for UML, whose virtio core and transport are built in.
const UML_NAMES: [&str; 4] = ["virtio_balloon", "virtio_blk", "virtio_console", "zram"];
/// Modules for Debian's kernel under QEMU. `virtio_pci` brings its transports and the core along.
const QEMU_NAMES: [&str; 5] = ["virtio_pci", "virtio_balloon", "virtio_blk", "virtio_console", "zram"];

/// What a guest boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// For UML the program that is the kernel, for QEMU the kernel's image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

/// The image for User Mode Linux.
///
/// # Errors
/// [`BedError::Missing`] naming the package that is not installed or what `cargo xtask setup` has not built.
pub fn uml() -> Result<Image, BedError> {
    let kernel = paths::program("linux.uml", UML_PACKAGE)?;
    let missing =
        || BedError::Missing { what: format!("a kernel's modules in {UML_MODULES}"), package: UML_PACKAGE };
    let modules = newest_entry(Path::new(UML_MODULES), "").ok_or_else(missing)?;
    Ok(Image { kernel, initrd: build("uml", &modules, &UML_NAMES)? })
}

/// The image for QEMU: Debian's stock kernel.
///
/// # Errors
/// [`BedError::Missing`] naming what `cargo xtask setup` has not fetched or built.
pub fn qemu() -> Result<Image, BedError> {
    let dir = paths::kernel_dir();
    let missing = || BedError::Missing { what: format!("Debian's kernel in {}", dir.display()), package: "" };
    let kernel = newest_entry(&dir.join("boot"), "vmlinuz-").ok_or_else(missing)?;
    let modules = newest_entry(&dir.join("lib/modules"), "").ok_or_else(missing)?;
    Ok(Image { kernel, initrd: build("qemu", &modules, &QEMU_NAMES)? })
}

/// The entry of a directory that begins with `prefix` and comes last by name.
fn newest_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    ours.map(|entry| entry.path()).max()
}

fn build(name: &str, modules: &Path, wanted: &[&str]) -> Result<PathBuf, BedError> {
    let busybox = read(&paths::program("busybox", BUSYBOX_PACKAGE)?)?;
    let workload = paths::guest_workload();
    if !workload.is_file() {
        return Err(BedError::Missing { what: format!("the workload {}", workload.display()), package: "" });
    }
    let agent = agent::read(&paths::guest_agent())?;
    let modules = modules::in_order(modules, wanted)?;
    let bytes = assemble(&busybox, &read(&workload)?, agent.as_deref(), &modules);
    store(&paths::work_dir().join("images"), name, &bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, BedError> {
    fs::read(path).map_err(BedError::io("read", path))
}

fn assemble(busybox: &[u8], workload: &[u8], agent: Option<&[u8]>, modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::new();
    for dir in ["bin", "dev", "proc", "sys", "tmp", "lib", "lib/modules"] {
        archive.dir(dir);
    }
    // Before /init mounts devtmpfs the kernel opens this one for it.
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, init(modules).as_bytes());
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("bin/workload", 0o755, workload);
    if let Some(agent) = agent {
        archive.file("bin/plimsoll-agent", 0o755, agent);
    }
    for module in modules {
        archive.file(&format!("lib/modules/{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.finish()
}

/// The first program. A module that cannot be inserted is told of by busybox, on the console, and is no reason to
/// stop: a test that needs it sees that it is not there.
fn init(modules: &[Module]) -> String {
    let names = modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>().join(" ");
    format!(
        r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t tmpfs -o mode=1777 tmp /tmp
skip=
for word in $($b cat /proc/cmdline); do
    case $word in plimsoll.skip=*) skip=,${{word#*=}}, ;; esac
done
for module in {names}; do
    case $skip in *,$module,*) ;; *) $b insmod /lib/modules/$module.ko ;; esac
done
for word in $($b cat /proc/cmdline); do
    case $word in plimsoll.agent | plimsoll.agent=*)
        words=${{word#plimsoll.agent}}
        $b setsid /bin/plimsoll-agent $(echo "${{words#=}}" | $b tr , ' ') </dev/null >/dev/console 2>&1 & ;;
    esac
done
exec /bin/workload serve </dev/console >/dev/console 2>&1
"#
    )
}

/// Writes the image under the name of its contents, unless it is there.
fn store(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, BedError> {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    let path = dir.join(format!("{name}-{:016x}.cpio", hasher.finish()));
    if fs::metadata(&path).is_ok_and(|found| u64::try_from(bytes.len()) == Ok(found.len())) {
        return Ok(path);
    }
    fs::create_dir_all(dir).map_err(BedError::io("make directory", dir))?;
    let partial = dir.join(format!(".{name}-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::write(&partial, bytes).map_err(BedError::io("write", &partial))?;
    fs::rename(&partial, &path).map_err(BedError::io("rename", &partial))?;
    remove_old(dir, name, &path);
    Ok(path)
}

/// Removes images of that name that are old. What cannot be removed now is removed another day.
fn remove_old(dir: &Path, name: &str, newest: &Path) {
    let prefixes = [format!("{name}-"), format!(".{name}-")];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let ours = prefixes.iter().any(|prefix| entry.file_name().to_string_lossy().starts_with(prefix));
        let modified = entry.metadata().and_then(|found| found.modified());
        let old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEEP));
        if ours && old && entry.path() != newest {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod test {
    use super::{Module, init, newest_entry, store};
    use crate::guard::ShmDir;

    #[test]
    fn an_image_is_kept_under_the_name_of_its_contents() {
        let dir = ShmDir::create("images").expect("a directory");
        let one = store(dir.path(), "x", b"one").expect("writes");
        let two = store(dir.path(), "x", b"two").expect("writes");
        assert_ne!(one, two);
        assert_eq!(store(dir.path(), "x", b"one").expect("writes"), one);
        assert_eq!(std::fs::read(&one).expect("reads"), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).expect("reads").count(), 2);
    }

    #[test]
    fn an_image_cut_short_is_written_anew() {
        let dir = ShmDir::create("images").expect("a directory");
        let path = store(dir.path(), "x", b"whole").expect("writes");
        std::fs::write(&path, b"who").expect("writes");
        assert_eq!(
            std::fs::read(store(dir.path(), "x", b"whole").expect("writes")).expect("reads"),
            b"whole"
        );
    }

    #[test]
    fn init_inserts_modules_in_the_order_given() {
        let module = |name: &str| Module { name: name.into(), bytes: Vec::new() };
        assert!(
            init(&[module("virtio_ring"), module("virtio_blk")]).contains("in virtio_ring virtio_blk; do")
        );
    }

    #[test]
    fn the_newest_kernel_is_taken() {
        let dir = ShmDir::create("boot").expect("a directory");
        for name in ["vmlinuz-6.1.0-50-amd64", "vmlinuz-6.1.0-56-amd64", "zzz"] {
            std::fs::write(dir.path().join(name), "").expect("writes");
        }
        assert_eq!(newest_entry(dir.path(), "vmlinuz-"), Some(dir.path().join("vmlinuz-6.1.0-56-amd64")));
        assert_eq!(newest_entry(&dir.path().join("none"), ""), None);
    }
}
