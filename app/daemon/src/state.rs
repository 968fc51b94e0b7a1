//! The VMs on disk, so that a daemon that comes back finds the same VMs with the same numbers and targets.
//!
//! One file for each VM, `RUN/vms/NAME.json`, mode 0600, written beside and renamed. The run folder lies on
//! a tmpfs, so nothing is synced: what a crash of the host loses is gone with the VMs anyway.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use plimsoll_api::http::{Endpoint, ProcessRef};
use plimsoll_model::{OnExhausted, OnPagerLoss, Sizes, Tunables, VmId, VmName};
use plimsoll_units::MemTarget;
use serde::{Deserialize, Serialize};

/// The version of the files.
const VERSION: u32 = 1;

/// What is written down of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedVm {
    v: u32,
    pub(crate) id: VmId,
    pub(crate) name: VmName,
    pub(crate) endpoint: Endpoint,
    pub(crate) sizes: Sizes,
    pub(crate) target: MemTarget,
    pub(crate) hold: Option<MemTarget>,
    #[serde(default)]
    pub(crate) tunables: Tunables,
    #[serde(default)]
    pub(crate) on_exhausted: OnExhausted,
    #[serde(default)]
    pub(crate) on_pager_loss: OnPagerLoss,
    pub(crate) owner_uid: u32,
    pub(crate) vmm: Option<ProcessRef>,
    pub(crate) keeper: Option<ProcessRef>,
    pub(crate) console: Option<String>,
}

impl SavedVm {
    /// What is to be written down of a VM that was just registered.
    pub(crate) fn new(
        id: VmId,
        name: VmName,
        endpoint: Endpoint,
        sizes: Sizes,
        owner_uid: u32,
        console: Option<String>,
    ) -> Self {
        let target = sizes.clamp(sizes.memory());
        Self {
            v: VERSION,
            id,
            name,
            endpoint,
            sizes,
            target,
            hold: None,
            tunables: Tunables::default(),
            on_exhausted: OnExhausted::default(),
            on_pager_loss: OnPagerLoss::default(),
            owner_uid,
            vmm: None,
            keeper: None,
            console,
        }
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    pub(crate) const fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    fn path(&self, name: &VmName) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// Writes a VM down. A failure is logged: the daemon goes on, only its return would not know.
    pub(crate) fn save(&self, vm: &SavedVm) {
        if let Err(error) = self.try_save(vm) {
            tracing::warn!(vm = %vm.name, %error, "cannot write the VM down; it would be lost if the daemon ended now");
        }
    }

    fn try_save(&self, vm: &SavedVm) -> io::Result<()> {
        // No VM's name has a `~`.
        let beside = self.0.join(format!("{}~", vm.name));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(vm)?)?;
        fs::rename(&beside, self.path(&vm.name))
    }

    /// Forgets a VM.
    pub(crate) fn remove(&self, name: &VmName) {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(vm = %name, %error, "cannot forget the VM; it would come back with the next daemon");
            }
            _ => {}
        }
    }

    /// Every VM that was written down, by rising number. A file that is none is put aside and told of.
    pub(crate) fn load(&self) -> io::Result<Vec<SavedVm>> {
        let mut vms: Vec<SavedVm> = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read(&path) {
                Ok(vm) if vms.iter().all(|known| known.id != vm.id) => vms.push(vm),
                Ok(_) => set_aside(&path, "its number is another VM's"),
                Err(why) => set_aside(&path, &why),
            }
        }
        vms.sort_by_key(|vm| vm.id);
        Ok(vms)
    }
}

fn read(path: &Path) -> Result<SavedVm, String> {
    let text = fs::read(path).map_err(|e| e.to_string())?;
    let vm: SavedVm = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if vm.v != VERSION {
        return Err(format!("its version is {}, this daemon knows {VERSION}", vm.v));
    }
    if path.file_stem().is_none_or(|stem| stem != vm.name.as_str()) {
        return Err(format!("it is {}'s", vm.name));
    }
    let target = vm.sizes.clamp(vm.target.0);
    Ok(SavedVm { target, ..vm })
}

fn set_aside(path: &Path, why: &str) {
    let aside = path.with_extension("json.bad");
    let moved = fs::rename(path, &aside).is_ok();
    tracing::warn!(file = %path.display(), %why, moved, "this is no VM's file; its VM, if there is one, is not known any more");
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::PermissionsExt;

    use plimsoll_units::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn vm(id: u64, name: &str) -> SavedVm {
        let sizes = Sizes::new(Bytes::mib(256), Bytes::gib(1), None, Some(7)).unwrap();
        let endpoint = Endpoint::Uml { control: "/run/x/control.sock".into() };
        let name = VmName::new(name).unwrap();
        let mut vm = SavedVm::new(VmId(id), name, endpoint, sizes, 1000, Some("/log".into()));
        vm.vmm = Some(ProcessRef { pid: 5, start_time: 77 });
        vm.hold = Some(MemTarget(Bytes::mib(300)));
        vm
    }

    #[test]
    fn what_is_saved_comes_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().into());
        state.save(&vm(9, "a"));
        state.save(&vm(2, "b"));
        state.save(&SavedVm { target: MemTarget(Bytes::mib(512)), ..vm(2, "b") });
        let back = state.load().unwrap();
        assert_eq!(back, [SavedVm { target: MemTarget(Bytes::mib(512)), ..vm(2, "b") }, vm(9, "a")]);
        let mode = fs::metadata(dir.path().join("a.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        state.remove(&back[0].name);
        state.remove(&back[0].name);
        assert_eq!(state.load().unwrap(), [vm(9, "a")]);
    }

    #[test]
    fn what_is_no_vm_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().into());
        state.save(&vm(1, "good"));
        let good = fs::read_to_string(dir.path().join("good.json")).unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("half.json", &good[..good.len() / 2]);
        write("other.json", &good);
        write("newer.json", &good.replace("\"v\":1", "\"v\":2").replace("good", "newer"));
        write("half~", "a daemon was killed while it wrote this");
        assert_eq!(state.load().unwrap(), [vm(1, "good")]);
        for name in ["half", "other", "newer"] {
            assert!(dir.path().join(format!("{name}.json.bad")).exists(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic_or_believe_an_impossible_target(cut in 0usize..500, byte: u8, target: u64) {
            let dir = tempfile::tempdir().unwrap();
            let state = StateDir::new(dir.path().into());
            let mut text = serde_json::to_vec(&SavedVm { target: MemTarget(Bytes(target)), ..vm(1, "x") }).unwrap();
            if let Some(b) = text.get_mut(cut) { *b = byte; }
            fs::write(dir.path().join("x.json"), text).unwrap();
            for vm in state.load().unwrap() {
                prop_assert!(vm.sizes.floor() <= vm.target.0 && vm.target.0 <= vm.sizes.maxmem());
            }
        }
    }
}
