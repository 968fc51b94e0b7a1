//! The file that is a User Mode Linux' memory, and who has it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plimsoll_e2e::Vm;
use plimsoll_units::Bytes;

/// A guest's memory, for longer than the guest lives.
pub(crate) struct Ram {
    /// As /proc shows it: `DIR/#7 (deleted)`. A number is not used again while the file is open here.
    shown: String,
    file: File,
}

impl Ram {
    #[track_caller]
    pub(crate) fn of(vm: &Vm<'_>) -> Self {
        let dir = PathBuf::from(format!("/proc/{}/fd", vm.pid.as_raw_nonzero()));
        let ours = |link: &Path| link.parent() == Some(vm.bed.ram().as_path());
        let found = links(&dir).into_iter().find(|(_, target)| ours(target));
        let (link, target) = found.unwrap_or_else(|| panic!("{} has no memory file", vm.name));
        let file = File::open(link).expect("root may open it");
        Self { shown: target.display().to_string(), file }
    }

    /// What the host still has there although its guest is gone: nothing, as soon as nobody uses the file any more.
    /// Asked by whoever holds it open, the kernel says how much it would be.
    pub(crate) fn kept(&self) -> Bytes {
        let blocks = self.file.metadata().expect("it is open").blocks();
        if self.users().is_empty() { Bytes::ZERO } else { Bytes(blocks * 512) }
    }

    /// Processes that have it open or mapped, this one left out.
    pub(crate) fn users(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").expect("there is a /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != std::process::id() && self.is_used_by(*pid)).collect()
    }

    /// A process that ends meanwhile uses nothing.
    fn is_used_by(&self, pid: u32) -> bool {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let dir = PathBuf::from(format!("/proc/{pid}/fd"));
        maps.lines().any(|line| line.ends_with(&self.shown))
            || links(&dir).iter().any(|(_, target)| target == Path::new(&self.shown))
    }
}

fn links(dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), fs::read_link(entry.path()).ok()?))).collect()
}
