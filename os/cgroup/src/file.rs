//! Reading and writing a group's files.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    path::Path,
};

use crate::CgroupError;

/// The text of `file` in the group's directory.
pub(crate) fn read(dir: &Path, file: &'static str) -> Result<String, CgroupError> {
    let path = dir.join(file);
    let mut text = String::with_capacity(4096);
    let opened = OpenOptions::new().read(true).open(&path);
    match opened.and_then(|mut f| f.read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        Err(source) => Err(missing(dir, file, &source).unwrap_or(CgroupError::Read { path, source })),
    }
}

/// Writes `text` into `file` in the group's directory, in one write as the kernel wants it.
pub(crate) fn write(dir: &Path, file: &'static str, text: &str) -> Result<(), CgroupError> {
    let path = dir.join(file);
    // No O_CREAT: what is not there is to be told, not made.
    let opened = OpenOptions::new().write(true).open(&path);
    match opened.and_then(|mut f| f.write_all(text.as_bytes())) {
        Ok(()) => Ok(()),
        Err(source) => Err(missing(dir, file, &source).unwrap_or(CgroupError::Write {
            path,
            text: text.to_owned(),
            source,
        })),
    }
}

/// A file that holds one number.
pub(crate) fn number(dir: &Path, file: &'static str) -> Result<u64, CgroupError> {
    let text = read(dir, file)?;
    text.trim().parse().map_err(|_not_a_number| parse_error(dir, file, &text, "number"))
}

pub(crate) fn parse_error(dir: &Path, file: &'static str, text: &str, wanted: &'static str) -> CgroupError {
    CgroupError::Parse { path: dir.join(file), seen: text.trim().chars().take(60).collect(), wanted }
}

/// The error for a file that is not there, or no longer: the group may be gone, or the kernel may not have it.
fn missing(dir: &Path, file: &'static str, source: &io::Error) -> Option<CgroupError> {
    const ENODEV: i32 = 19;
    const EOPNOTSUPP: i32 = 95;
    let gone = source.raw_os_error() == Some(ENODEV);
    let absent = source.kind() == io::ErrorKind::NotFound;
    if gone || (absent && !dir.is_dir()) {
        return Some(CgroupError::NoGroup { path: dir.to_path_buf() });
    }
    let refused = source.raw_os_error() == Some(EOPNOTSUPP);
    (absent || refused).then(|| CgroupError::Unsupported { file, path: dir.to_path_buf() })
}
