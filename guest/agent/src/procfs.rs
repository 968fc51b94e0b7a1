//! The kernel's files: opened once, read from the beginning each time, cut into names and numbers.
//!
//! Apart from `plimsoll-procfs`, which reads other lines for the host and opens its files each time: here a look
//! happens twenty times a second, in a machine that may be out of memory.

pub(crate) mod meminfo;
pub(crate) mod pressure;
pub(crate) mod vmstat;
pub(crate) mod zoneinfo;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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

/// Lines of a name, a colon or a blank, and a number; others are passed over. A negative number is 0.
fn entries(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let end = line.iter().position(|byte| matches!(byte, b':' | b' '))?;
        let (name, rest) = line.split_at_checked(end)?;
        Some((name, words(rest.get(1..)?).next().and_then(number)?))
    })
}

/// The words between blanks.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// A whole number; what is below nothing is nothing.
fn number(word: &[u8]) -> Option<u64> {
    let (digits, negative) = match word.split_first() {
        Some((b'-', digits)) => (digits, true),
        _ => (word, false),
    };
    let plain = digits.first().is_some_and(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()?;
    Some(if negative { 0 } else { number })
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

        #[test]
        fn every_number_is_read_back(n: u64) {
            prop_assert_eq!(number(n.to_string().as_bytes()), Some(n));
        }
    }
}
