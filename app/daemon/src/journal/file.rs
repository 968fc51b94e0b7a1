//! The journal's files: `journal.jsonl` is written, `journal.jsonl.1` was put aside last.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The file that is written.
pub(crate) const FILE_NAME: &str = "journal.jsonl";

/// The current file, with everything before `len` whole lines.
#[derive(Debug)]
pub(crate) struct JournalFile {
    dir: PathBuf,
    /// Held by being open.
    _lock: File,
    keep: u32,
    file: File,
    len: u64,
}

impl JournalFile {
    /// Puts aside what an earlier daemon wrote and begins a new file.
    pub(crate) fn create(dir: &Path, keep: u32) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another daemon writes its journal there"),
            TryLockError::Error(error) => error,
        })?;
        shift(dir, keep)?;
        let file = open(dir)?;
        Ok(Self { dir: dir.to_owned(), _lock: lock, keep, file, len: 0 })
    }

    /// Puts the current file aside, drops the oldest, begins a new one.
    pub(crate) fn rotate(&mut self) -> io::Result<()> {
        shift(&self.dir, self.keep)?;
        self.file = open(&self.dir)?;
        self.len = 0;
        Ok(())
    }

    /// Appends whole lines. After an error nothing of them is left, as far as the file can be cut.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(lines);
        match written {
            Ok(()) => {
                self.len = self.len.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.len)?;
                self.file.seek(SeekFrom::Start(self.len))?;
                Err(error)
            }
        }
    }
}

fn open(dir: &Path) -> io::Result<File> {
    // Snapshots tell what every tenant's guest does: nobody else's business.
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(dir.join(FILE_NAME))
}

/// `journal.jsonl` becomes `.1`, `.1` becomes `.2`, and what would be the `keep`th falls out.
fn shift(dir: &Path, keep: u32) -> io::Result<()> {
    let name = |n: u32| match n {
        0 => dir.join(FILE_NAME),
        n => dir.join(format!("{FILE_NAME}.{n}")),
    };
    let missing_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let last = keep.saturating_sub(1);
    missing_is_fine(fs::remove_file(name(last)))?;
    for n in (0..last).rev() {
        missing_is_fine(fs::rename(name(n), name(n.saturating_add(1))))?;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn old_files_move_on_and_fall_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::create(dir.path(), 3).unwrap();
        for n in 0..5 {
            journal.append(format!("{n}\n").as_bytes()).unwrap();
            journal.rotate().unwrap();
        }
        journal.append(b"5\n").unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("journal.jsonl"), "5\n");
        assert_eq!(read("journal.jsonl.1"), "4\n");
        assert_eq!(read("journal.jsonl.2"), "3\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "three files and the lock");
        assert!(JournalFile::create(dir.path(), 1).unwrap_err().to_string().contains("another daemon"));
        drop(journal);
        let _next = JournalFile::create(dir.path(), 1).unwrap();
        assert_eq!(read("journal.jsonl"), "");
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        // A file-size limit would end the process by SIGXFSZ; /dev/full says ENOSPC to every write.
        let dir = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::create(dir.path(), 2).unwrap();
        journal.append(b"whole\n").unwrap();
        let good =
            std::mem::replace(&mut journal.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        journal.append(b"lost\n").unwrap_err();
        journal.file = good;
        journal.append(b"again\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(FILE_NAME)).unwrap(), "whole\nagain\n");
    }
}
