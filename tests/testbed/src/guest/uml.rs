//! User Mode Linux: a guest that is an ordinary process.

use std::path::PathBuf;
use std::time::Duration;

use plimsoll_units::Bytes;

use super::ram::Ram;
use super::{Guest, command_in};
use crate::BedError;
use crate::guard::{ShmDir, TestCgroup};
use crate::images::Image;

/// Longer than a boot takes on a busy machine; on an idle one it is a second or two.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// A vhost-user device of the guest's: `virtio_uml.device=SOCKET:ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserDevice {
    /// Where its back end listens.
    pub socket: PathBuf,
    /// The virtio device id: 5 is a balloon, 2 a disk (virtio 1.2, section 5).
    pub virtio_id: u32,
}

/// A UML guest to be started, without Plimsoll.
#[derive(Debug)]
pub struct UmlSpec<'a> {
    /// For error messages.
    pub name: &'a str,
    /// Its memory.
    pub mem: Bytes,
    /// What it boots.
    pub image: Image,
    /// Further words for the kernel's command line.
    pub append: String,
    /// Its vhost-user devices.
    pub devices: Vec<VhostUserDevice>,
    /// Raw images or sparse files that the guest has as disks `ubda`, `ubdb` and so on.
    pub disks: Vec<PathBuf>,
    /// What the workload does by itself, as `fill:96M,hold:5,poweroff`.
    pub script: Option<String>,
    /// The control group it starts in.
    pub cgroup: Option<&'a TestCgroup>,
}

impl<'a> UmlSpec<'a> {
    /// A guest with nothing but memory.
    #[must_use]
    pub fn new(name: &'a str, mem: Bytes, image: Image) -> Self {
        let (append, devices, disks) = (String::new(), Vec::new(), Vec::new());
        Self { name, mem, image, append, devices, disks, script: None, cgroup: None }
    }

    /// Starts it and waits until the workload is ready.
    ///
    /// # Errors
    /// As [`UmlSpec::launch`] and [`Guest::wait_boots`].
    pub fn boot(self) -> Result<Guest, BedError> {
        let guest = self.launch()?;
        guest.wait_boots(1, BOOT_LIMIT)?;
        Ok(guest)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be started.
    pub fn launch(self) -> Result<Guest, BedError> {
        let dir = ShmDir::create(self.name)?;
        let mut command = command_in(self.cgroup, &self.image.kernel);
        // Its memory becomes a file without a name in TMPDIR; on a tmpfs, holes punched into it free memory.
        command
            .env("TMPDIR", dir.path())
            .args(self.arguments())
            .arg(format!("uml_dir={}", dir.path().display()));
        Guest::start(self.name, command, Ram::UnnamedIn(dir.path().to_owned()), dir)
    }

    fn arguments(&self) -> Vec<String> {
        let mut words = vec![
            format!("mem={}M", self.mem.whole_mib()),
            format!("initrd={}", self.image.initrd.display()),
            "umid=guest".into(),
            // One console, on standard input and output; no terminal windows.
            "con=null".into(),
            "con0=fd:0,fd:1".into(),
            // Warnings and errors only, so that little gets between the workload's lines.
            "loglevel=5".into(),
        ];
        let device = |device: &VhostUserDevice| {
            format!("virtio_uml.device={}:{}", device.socket.display(), device.virtio_id)
        };
        words.extend(self.devices.iter().map(device));
        let disk = |(n, path): (usize, &PathBuf)| format!("ubd{n}={}", path.display());
        words.extend(self.disks.iter().enumerate().map(disk));
        words.extend(self.script.as_ref().map(|script| format!("plimsoll.script={script}")));
        words.extend(self.append.split_ascii_whitespace().map(str::to_owned));
        words
    }
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::{UmlSpec, VhostUserDevice};
    use crate::images::Image;

    #[test]
    fn the_command_line_has_devices_script_and_more() {
        let image = Image { kernel: "/k".into(), initrd: "/i".into() };
        let mut spec = UmlSpec::new("x", Bytes::mib(96), image);
        spec.devices.push(VhostUserDevice { socket: "/s/b.sock".into(), virtio_id: 5 });
        spec.disks = vec!["/d/a.img".into(), "/d/b.img".into()];
        spec.script = Some("fill:1M,poweroff".into());
        spec.append = "a=1  b".into();
        let words = spec.arguments();
        for word in [
            "mem=96M",
            "initrd=/i",
            "virtio_uml.device=/s/b.sock:5",
            "ubd0=/d/a.img",
            "ubd1=/d/b.img",
            "plimsoll.script=fill:1M,poweroff",
            "a=1",
            "b",
        ] {
            assert!(words.iter().any(|have| have == word), "{word} is not in {words:?}");
        }
    }
}
