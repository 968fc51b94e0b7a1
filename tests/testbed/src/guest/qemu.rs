//! QEMU: a guest with Debian's stock kernel, under software emulation or KVM.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use plimsoll_units::Bytes;

use super::ram::Ram;
use super::{Guest, command_in};
use crate::guard::{ShmDir, TestCgroup};
use crate::images::{self, Image};
use crate::{BedError, paths};

/// Debian's package of QEMU.
pub const QEMU_PACKAGE: &str = "qemu-system-x86";
/// The socket of the machine protocol, in the guest's directory.
pub(super) const QMP_SOCKET: &str = "qmp.sock";

/// Longer than a boot takes under emulation on a busy machine; on an idle one it is 4 s.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a boot under KVM may take before it counts as impossible; where KVM works it takes about a second.
const KVM_LIMIT: Duration = Duration::from_secs(15);

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Software emulation: works everywhere.
    Tcg,
    /// Hardware virtualization.
    Kvm,
}

/// QEMU's own balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QemuBalloon {
    /// None.
    None,
    /// A virtio-balloon-pci called `balloon0`.
    Plain,
    /// The same, which also gives pages back that the guest reports free.
    Reporting,
}

/// A QEMU guest to be started, without Plimsoll.
#[derive(Debug)]
pub struct QemuSpec<'a> {
    /// For error messages.
    pub name: &'a str,
    /// Its memory.
    pub mem: Bytes,
    /// What it boots.
    pub image: Image,
    /// What executes it.
    pub accel: Accel,
    /// Its balloon.
    pub balloon: QemuBalloon,
    /// Further words for the kernel's command line.
    pub append: String,
    /// Further arguments for QEMU.
    pub arguments: Vec<String>,
    /// What the workload does by itself, as `fill:96M,hold:5,poweroff`.
    pub script: Option<String>,
    /// The control group it starts in.
    pub cgroup: Option<&'a TestCgroup>,
}

impl<'a> QemuSpec<'a> {
    /// An emulated guest with a plain balloon.
    #[must_use]
    pub fn new(name: &'a str, mem: Bytes, image: Image) -> Self {
        Self {
            name,
            mem,
            image,
            accel: Accel::Tcg,
            balloon: QemuBalloon::Plain,
            append: String::new(),
            arguments: Vec::new(),
            script: None,
            cgroup: None,
        }
    }

    /// Starts it and waits until the workload is ready.
    ///
    /// # Errors
    /// As [`QemuSpec::launch`] and [`Guest::wait_boots`].
    pub fn boot(self) -> Result<Guest, BedError> {
        self.boot_within(BOOT_LIMIT)
    }

    fn boot_within(self, limit: Duration) -> Result<Guest, BedError> {
        let guest = self.launch()?;
        guest.wait_boots(1, limit)?;
        Ok(guest)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// [`BedError::Missing`] without QEMU, [`BedError::Io`] when it cannot be started.
    pub fn launch(self) -> Result<Guest, BedError> {
        let dir = ShmDir::create(self.name)?;
        let mut command = command_in(self.cgroup, &paths::program("qemu-system-x86_64", QEMU_PACKAGE)?);
        command.args(self.all_arguments(dir.path()));
        Guest::start(self.name, command, Ram::Memfd, dir)
    }

    fn all_arguments(&self, dir: &Path) -> Vec<String> {
        let (accel, cpu) = match self.accel {
            Accel::Tcg => ("tcg", "max"),
            Accel::Kvm => ("kvm", "host"),
        };
        let mem = self.mem.whole_mib();
        // The memory is a memfd, so that the host's count of it can be read, and pages given back are gone.
        let mut words = vec![
            format!("-name {}", self.name),
            "-nodefaults -no-user-config -display none".into(),
            format!("-machine pc,accel={accel},memory-backend=ram -cpu {cpu} -m {mem}M"),
            format!("-object memory-backend-memfd,id=ram,size={mem}M,share=on"),
            "-chardev stdio,id=console,signal=off -serial chardev:console".into(),
            format!("-qmp unix:{}/{QMP_SOCKET},server=on,wait=off", dir.display()),
        ];
        match self.balloon {
            QemuBalloon::None => {}
            QemuBalloon::Plain => words.push("-device virtio-balloon-pci,id=balloon0".into()),
            QemuBalloon::Reporting => {
                words.push("-device virtio-balloon-pci,id=balloon0,free-page-reporting=on".into());
            }
        }
        let mut arguments: Vec<_> =
            words.iter().flat_map(|words| words.split(' ').map(str::to_owned)).collect();
        let script =
            self.script.as_ref().map(|script| format!(" plimsoll.script={script}")).unwrap_or_default();
        let append = format!("console=ttyS0 loglevel=5{script} {}", self.append);
        let boot =
            ["-kernel", &path(&self.image.kernel), "-initrd", &path(&self.image.initrd), "-append", &append];
        arguments.extend(boot.map(str::to_owned));
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Whether QEMU can run a stock guest with KVM here. Found out by booting one, once per process.
///
/// The device node says nothing: some hosts have one that cannot run ordinary guests, which then hang.
#[must_use]
pub fn probe_kvm() -> bool {
    static PROBED: OnceLock<bool> = OnceLock::new();
    *PROBED.get_or_init(|| {
        let Ok(image) = images::qemu() else { return false };
        let usable =
            rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK);
        let spec = QemuSpec { accel: Accel::Kvm, ..QemuSpec::new("kvm-probe", Bytes::mib(192), image) };
        usable.is_ok() && spec.boot_within(KVM_LIMIT).is_ok()
    })
}

#[cfg(test)]
mod test {
    use std::path::Path;

    use plimsoll_units::Bytes;

    use super::{Accel, QemuBalloon, QemuSpec};
    use crate::images::Image;

    fn line(spec: &QemuSpec<'_>) -> String {
        spec.all_arguments(Path::new("/d")).join(" ")
    }

    #[test]
    fn the_command_line_follows_the_specification() {
        let image = Image { kernel: "/k".into(), initrd: "/i".into() };
        let mut spec = QemuSpec::new("x", Bytes::mib(256), image);
        spec.script = Some("hold:1".into());
        spec.arguments = vec!["-S".into()];
        let plain = line(&spec);
        for words in [
            "accel=tcg",
            "size=256M,share=on",
            "virtio-balloon-pci,id=balloon0 ",
            "plimsoll.script=hold:1",
            " -S",
        ] {
            assert!(plain.contains(words), "{words} is not in {plain}");
        }
        spec.balloon = QemuBalloon::Reporting;
        spec.accel = Accel::Kvm;
        assert!(line(&spec).contains("free-page-reporting=on") && line(&spec).contains("-cpu host"));
        spec.balloon = QemuBalloon::None;
        assert!(!line(&spec).contains("balloon0"));
    }
}
