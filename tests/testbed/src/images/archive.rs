//! Writes a cpio archive of the "newc" kind, the one Linux unpacks as its initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// File types as in `st_mode` (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Everything in it belongs to root and is of the year 1970, so that equal contents make
/// equal archives.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Parents come first.
    pub fn dir(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[], (0, 0));
    }

    /// Adds a file with the given permissions.
    ///
    /// # Panics
    /// When it has 4 GiB or more, which the format cannot say.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.entry(path, REGULAR | permissions, contents, (0, 0));
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE | 0o600, &[], (major, minor));
    }

    /// The archive with its end mark.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8], (major, minor): (u32, u32)) {
        self.inode += 1;
        let n_links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let name_length = field(path.len() + 1);
        // Magic, then 13 numbers of 8 hexadecimal digits: ino, mode, uid, gid, nlink, mtime, filesize, devmajor,
        // devminor, rdevmajor, rdevminor, namesize with its NUL, check.
        let fields =
            [self.inode, mode, 0, 0, n_links, 0, field(contents.len()), 0, 0, major, minor, name_length, 0];
        self.bytes.extend(b"070701");
        for number in fields {
            self.bytes.extend(format!("{number:08X}").into_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    /// Header with name, and contents, each end at a multiple of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn field(length: usize) -> u32 {
    u32::try_from(length).expect("a file of a guest's image is smaller than 4 GiB")
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::Archive;
    use crate::guard::ShmDir;
    use crate::{paths, skip};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.dir("etc");
        archive.file("etc/odd", 0o644, b"12345");
        archive.file("etc/empty", 0o600, b"");
        archive.finish()
    }

    #[test]
    fn headers_are_as_the_kernel_wants_them() {
        let bytes = sample();
        assert!(bytes.starts_with(b"070701000000010000"));
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.contains("TRAILER!!!"));
        assert_eq!(bytes, sample());
    }

    #[test]
    fn another_program_unpacks_it() {
        let Some(busybox) =
            skip::unless_available("images::archive", paths::program("busybox", "busybox-static"))
        else {
            return;
        };
        let dir = ShmDir::create("cpio").expect("a directory");
        let mut child = Command::new(busybox)
            .args(["cpio", "-idm"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        child.stdin.take().expect("piped").write_all(&sample()).expect("reads on");
        assert!(child.wait().expect("ends").success());
        assert_eq!(std::fs::read(dir.path().join("etc/odd")).expect("is there"), b"12345");
        assert_eq!(std::fs::read(dir.path().join("etc/empty")).expect("is there"), b"");
    }
}
