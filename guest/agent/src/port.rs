//! Finding and opening the way to the host.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use plimsoll_agent_proto::PORT_NAME;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};

/// What a real serial line is set to. Virtual ones take no notice.
const BAUD: u32 = 115_200;

/// The virtio-serial port of our name: as udev links it, or as the kernel itself names it.
pub(crate) fn find() -> Option<PathBuf> {
    find_in(Path::new("/dev"), Path::new("/sys/class/virtio-ports"))
}

fn find_in(dev: &Path, class: &Path) -> Option<PathBuf> {
    let linked = dev.join("virtio-ports").join(PORT_NAME);
    if linked.exists() {
        return Some(linked);
    }
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    };
    let port = fs::read_dir(class).ok()?.flatten().find(named)?;
    Some(dev.join(port.file_name()))
}

/// Opens a port so that nothing done with it waits. A terminal is made raw: no echo, no translation, no characters
/// with a meaning, and no waiting for a modem's carrier.
pub(crate) fn open_port(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let port = open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&port)?.st_mode) == FileType::RegularFile {
        return Err(io::Error::other("it is an ordinary file, which would grow without end"));
    }
    // Anything else than a terminal needs no settings.
    if let Ok(mut settings) = tcgetattr(&port) {
        settings.make_raw();
        settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        // A line that knows no such speed keeps its own.
        let _ = settings.set_speed(BAUD);
        tcsetattr(&port, OptionalActions::Now, &settings)?;
    }
    Ok(port.into())
}

#[cfg(test)]
mod test {
    use std::io::{Read, Write};

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    #[test]
    fn udevs_link_comes_before_the_kernels_own_name() {
        let root = tempfile::tempdir().expect("makes");
        let (dev, class) = (root.path().join("dev"), root.path().join("class"));
        assert_eq!(find_in(&dev, &class), None);
        for (port, name) in [("vport0p1", "com.redhat.spice.0\n"), ("vport1p2", "org.plimsoll.agent.0\n")] {
            fs::create_dir_all(class.join(port)).expect("makes");
            fs::write(class.join(port).join("name"), name).expect("writes");
        }
        fs::create_dir_all(class.join("vport2p1")).expect("makes");
        assert_eq!(find_in(&dev, &class), Some(dev.join("vport1p2")));
        fs::create_dir_all(dev.join("virtio-ports")).expect("makes");
        fs::write(dev.join("virtio-ports/org.plimsoll.agent.0"), "").expect("writes");
        assert_eq!(find_in(&dev, &class), Some(dev.join("virtio-ports/org.plimsoll.agent.0")));
    }

    #[test]
    fn every_byte_passes_a_terminal_unchanged_and_without_echo() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("opens");
        grantpt(&master).expect("grants");
        unlockpt(&master).expect("unlocks");
        let path = ptsname(&master, Vec::new()).expect("named");
        let mut port = open_port(Path::new(path.to_str().expect("text"))).expect("opens");
        let every: Vec<u8> = (0..=255).collect();
        let mut master = File::from(master);
        port.write_all(&every).expect("writes");
        let mut got = vec![0; 256];
        master.read_exact(&mut got).expect("reads");
        assert_eq!(got, every);
        master.write_all(&every).expect("writes");
        let mut got = vec![0; 300];
        assert_eq!(port.read(&mut got).expect("reads"), 256);
        assert_eq!(got[..256], every);
        assert_eq!(port.read(&mut got).expect_err("is empty").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_ordinary_file_is_refused_and_a_missing_one_named() {
        let file = tempfile::NamedTempFile::new().expect("makes");
        assert!(open_port(file.path()).expect_err("is a file").to_string().contains("ordinary file"));
        let missing = open_port(Path::new("/dev/no-such-port")).expect_err("is missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
