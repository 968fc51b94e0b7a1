//! The kernel's files: opened once, read from the beginning each time, cut into names and numbers.
//!
//! `plimsoll-procfs` cuts the lines. It reads them for the host and opens its files each time; here they stay open: a
//! look happens ten times a second, in a machine that may be out of memory.

pub(crate) mod meminfo;
pub(crate) mod pressure;
pub(crate) mod vmstat;
pub(crate) mod zoneinfo;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use plimsoll_procfs::{fields, number};

/// More than `/proc/vmstat` has; `/proc/zoneinfo` of a machine with many CPUs needs more.
const FIRST_BUFFER: usize = 16 << 10;
/// What lies beyond is not looked at: the zones of a machine with several hundred CPUs fit.
const LONGEST: usize = 1 << 20;

/// Where a file's text is put; shared by all files.
#[derive(Debug)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    pub(crate) fn new() -> Self {
        Self(vec![0; FIRST_BUFFER])
    }
}

/// A file of the kernel's that is kept open.
#[derive(Debug)]
pub(crate) struct ProcFile {
    file: File,
    path: PathBuf,
}

impl ProcFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it from its beginning. The kernel writes it anew for that.
    pub(crate) fn read<'b>(&self, buffer: &'b mut Buffer) -> io::Result<&'b [u8]> {
        self.read_until(buffer, |_, _| false)
    }

    /// The same for a file that the kernel gives as a whole (`single_open`): what does not fill the buffer is all of
    /// it, and need not be asked for its end.
    pub(crate) fn read_whole<'b>(&self, buffer: &'b mut Buffer) -> io::Result<&'b [u8]> {
        self.read_until(buffer, |n, room| n < room)
    }

    fn read_until<'b>(
        &self,
        buffer: &'b mut Buffer,
        is_last: impl Fn(usize, usize) -> bool,
    ) -> io::Result<&'b [u8]> {
        let text = &mut buffer.0;
        let mut filled = 0;
        loop {
            if filled == text.len() {
                if filled >= LONGEST {
                    break;
                }
                text.resize((filled * 2).min(LONGEST), 0);
            }
            let room = text.get_mut(filled..).unwrap_or_default();
            let length = room.len();
            match self.file.read_at(room, offset(filled)) {
                Ok(0) => break,
                Ok(n) => {
                    filled += n;
                    if is_last(n, length) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(text.get(..filled).unwrap_or_default())
    }
}

fn offset(filled: usize) -> u64 {
    u64::try_from(filled).unwrap_or(u64::MAX)
}

/// The lines that have a number. A negative one is 0: the kernel's Committed_AS may be that for a moment.
fn entries(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    fields(text).filter_map(|(name, word)| {
        let n = match word.split_first() {
            Some((b'-', digits)) => number(digits).map(|_| 0),
            _ => number(word),
        };
        Some((name, n?))
    })
}

#[cfg(test)]
mod test {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_numbers() {
        let text =
            b"MemTotal:  24684084 kB\npswpin 7\n\nCommitted_AS: -8 kB\nx y\nHuge: 18446744073709551616\n+ +1";
        let found: Vec<_> = entries(text).collect();
        assert_eq!(found, [(&b"MemTotal"[..], 24_684_084), (b"pswpin", 7), (b"Committed_AS", 0)]);
    }

    #[test]
    fn a_file_is_read_anew_each_time_whatever_its_length() {
        let mut file = tempfile::NamedTempFile::new().expect("makes");
        let kept = ProcFile::open(file.path()).expect("opens");
        let mut buffer = Buffer::new();
        assert_eq!(kept.read(&mut buffer).expect("reads"), b"");
        file.write_all(&[b'x'; 3 * FIRST_BUFFER]).expect("writes");
        assert_eq!(kept.read(&mut buffer).expect("reads").len(), 3 * FIRST_BUFFER);
        file.as_file().set_len(5).expect("shortens");
        assert_eq!(kept.read(&mut buffer).expect("reads"), b"xxxxx");
        assert_eq!(kept.read_whole(&mut buffer).expect("reads"), b"xxxxx");
        file.as_file().set_len(2 << 20).expect("lengthens");
        assert_eq!(kept.read(&mut buffer).expect("reads").len(), LONGEST);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = entries(&text).count();
        }
    }
}
