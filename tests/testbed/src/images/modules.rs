//! Finds a kernel's modules and puts them in the order in which they must be inserted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{BedError, paths};

/// A module, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name with underscores, as lsmod(8) shows it.
    pub(super) name: String,
    /// The ELF file.
    pub(super) bytes: Vec<u8>,
}

/// Those of `wanted` that the kernel has as modules, each after all it depends on.
///
/// A wanted module that is not there is left out: the kernel may have it built in, or not at all, and then the
/// test that needs it says so. A dependency that is not there is an error.
pub(super) fn in_order(dir: &Path, wanted: &[&str]) -> Result<Vec<Module>, BedError> {
    let mut files = BTreeMap::new();
    find(dir, &mut files).map_err(BedError::io("read directory", dir))?;
    let mut ordered = Vec::new();
    for name in wanted {
        if files.contains_key(*name) {
            insert(name, dir, &files, &mut ordered, 0)?;
        }
    }
    Ok(ordered)
}

/// Deeper than any chain of modules; a circle is found by it.
const DEEPEST: usize = 16;

fn insert(
    name: &str,
    dir: &Path,
    files: &BTreeMap<String, PathBuf>,
    ordered: &mut Vec<Module>,
    depth: usize,
) -> Result<(), BedError> {
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let malformed = |why: String| BedError::Malformed { what: "the modules in", path: dir.to_owned(), why };
    if depth > DEEPEST {
        return Err(malformed(format!("{name} depends on itself")));
    }
    let path = files.get(name).ok_or_else(|| malformed(format!("{name} is needed and not there")))?;
    let bytes = load(path)?;
    for dependency in depends(&bytes) {
        insert(&dependency, dir, files, ordered, depth + 1)?;
    }
    ordered.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// All files `NAME.ko` and `NAME.ko.xz` below a directory, by module name.
fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
            continue;
        }
        let file_name = entry.file_name().to_string_lossy().into_owned();
        let stem = file_name.strip_suffix(".ko").or_else(|| file_name.strip_suffix(".ko.xz"));
        if let Some(stem) = stem {
            files.insert(stem.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn load(path: &Path) -> Result<Vec<u8>, BedError> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).map_err(BedError::io("read", path));
    }
    let xz = paths::program("xz", "xz-utils")?;
    let output =
        Command::new(&xz).args(["-dc", "--"]).arg(path).output().map_err(BedError::io("run", &xz))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(BedError::Program { program: format!("xz -dc {}", path.display()), said })
}

/// What a module depends on: the `depends=a,b` entry of its `.modinfo` section, whose entries end with NUL.
///
/// (modules.dep, which says the same, is made when a kernel is installed, and ours is only unpacked.)
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = module.get(at + KEY.len()..).unwrap_or_default();
    let list = list.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(list).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod test {
    use std::path::Path;

    use super::{depends, in_order};
    use crate::guard::ShmDir;

    fn module(dir: &Path, name: &str, needs: &str) {
        let contents = format!("\x7fELF..license=GPL\0depends={needs}\0intree=Y\0");
        std::fs::create_dir_all(dir.join("kernel/drivers")).expect("makes");
        std::fs::write(dir.join("kernel/drivers").join(format!("{name}.ko")), contents).expect("writes");
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = ShmDir::create("modules").expect("a directory");
        module(dir.path(), "virtio_pci", "virtio,virtio_ring,virtio_pci_modern_dev");
        module(dir.path(), "virtio_ring", "virtio");
        module(dir.path(), "virtio", "");
        module(dir.path(), "virtio_pci_modern_dev", "");
        module(dir.path(), "virtio-balloon", "virtio,virtio_ring");
        let found = in_order(dir.path(), &["virtio_pci", "virtio_balloon", "not_there"]).expect("resolves");
        let names: Vec<_> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci", "virtio_balloon"]);
    }

    #[test]
    fn a_missing_dependency_and_a_circle_are_errors() {
        let dir = ShmDir::create("modules").expect("a directory");
        module(dir.path(), "a", "b");
        let error = in_order(dir.path(), &["a"]).expect_err("b is missing").to_string();
        assert!(error.contains("b is needed and not there"), "{error}");
        module(dir.path(), "b", "a");
        let error = in_order(dir.path(), &["a"]).expect_err("a circle").to_string();
        assert!(error.contains("depends on itself"), "{error}");
    }

    #[test]
    fn a_module_without_an_entry_depends_on_nothing() {
        assert!(depends(b"").is_empty());
        assert!(depends(b"xdepends=a\0").is_empty());
        assert!(depends(b"\0depends=\0").is_empty());
        assert_eq!(depends(b"\0depends=a-b,c"), ["a_b", "c"]);
    }
}
