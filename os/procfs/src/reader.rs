//! Reading a file into a buffer that is kept.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use crate::ProcError;

/// Longer than any file read here; only a process' own command line could be longer, and is cut.
const LONGEST: usize = 256 << 10;

/// First size of the buffer: `/proc/vmstat` has some 6 KiB.
const FIRST: usize = 16 << 10;

/// A reader of `/proc` with a buffer of its own. Not shared: each user has one.
#[derive(Debug)]
pub struct Procfs {
    root: String,
    path: String,
    buffer: Vec<u8>,
}

impl Procfs {
    /// Reads the real `/proc`.
    #[must_use]
    pub fn new() -> Self {
        Self::at("/proc")
    }

    /// Reads a tree of the same shape elsewhere, for tests.
    #[must_use]
    pub fn at(root: &str) -> Self {
        Self { root: root.to_owned(), path: String::new(), buffer: vec![0; FIRST] }
    }

    /// The file of the host.
    pub(crate) fn host_file(&mut self, name: &str) -> Result<&[u8], ProcError> {
        self.path.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.path, "{}/{name}", self.root);
        match self.fill() {
            Ok(n) => Ok(self.buffer.get(..n).unwrap_or_default()),
            Err(source) => Err(ProcError::Read { path: self.last_path(), source }),
        }
    }

    /// The file of a process.
    pub(crate) fn process_file(&mut self, pid: u32, name: &str) -> Result<&[u8], ProcError> {
        const ESRCH: i32 = 3;
        self.path.clear();
        let _ = write!(self.path, "{}/{pid}/{name}", self.root);
        match self.fill() {
            Ok(n) => Ok(self.buffer.get(..n).unwrap_or_default()),
            Err(err) if err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(ESRCH) => {
                Err(ProcError::NoProcess { pid })
            }
            Err(source) => Err(ProcError::Read { path: self.last_path(), source }),
        }
    }

    /// What was read last, for error messages.
    pub(crate) fn last_path(&self) -> PathBuf {
        PathBuf::from(&self.path)
    }

    /// Reads the file at `path` into the buffer, at most [`LONGEST`] bytes, and returns how many.
    fn fill(&mut self) -> io::Result<usize> {
        let mut file = File::open(&self.path)?;
        let mut filled = 0usize;
        loop {
            if filled == self.buffer.len() {
                if filled >= LONGEST {
                    return Ok(filled);
                }
                self.buffer.resize(filled.saturating_mul(2).min(LONGEST), 0);
            }
            match file.read(self.buffer.get_mut(filled..).unwrap_or_default()) {
                Ok(0) => return Ok(filled),
                Ok(n) => filled = filled.saturating_add(n),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
    }
}

impl Default for Procfs {
    fn default() -> Self {
        Self::new()
    }
}
