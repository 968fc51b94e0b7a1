//! Plimsoll's agent, as it goes into a guest: static, because the guest has no libraries, and small, because it goes
//! into every guest.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::BedError;

/// The promise: less than this.
const SIZE_LIMIT: usize = 2 << 20;
/// The segment that names a dynamic linker (elf(5)).
const PT_INTERP: u32 = 3;

/// The program; `None` when it is not built. A guest without it is as good for tests that are not about it, and
/// those that are find that it does not start.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, BedError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(BedError::io("read", path)(error)),
    };
    match judge(&bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(why) => Err(BedError::Malformed { what: "the agent", path: path.to_owned(), why }),
    }
}

fn judge(program: &[u8]) -> Result<(), String> {
    if program.len() >= SIZE_LIMIT {
        return Err(format!("it has {} bytes, and the limit is {SIZE_LIMIT}", program.len()));
    }
    match interpreter(program) {
        Some(false) => Ok(()),
        Some(true) => Err("it is not static: it wants a dynamic linker".into()),
        None => Err("it is no 64-bit little-endian ELF program".into()),
    }
}

/// Whether an ELF program asks for a dynamic linker; `None` when it is none.
fn interpreter(program: &[u8]) -> Option<bool> {
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = program.get(at..at.checked_add(length)?)?;
        bytes.iter().rev().try_fold(0usize, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))
    };
    // e_ident: magic, 64 bits, little endian; then e_phoff, e_phentsize, e_phnum.
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut found = false;
    for n in 0..count {
        let kind = number(offset.checked_add(n.checked_mul(size)?)?, 4)?;
        found |= u32::try_from(kind) == Ok(PT_INTERP);
    }
    Some(found)
}

#[cfg(test)]
mod test {
    use super::{SIZE_LIMIT, interpreter, judge, read};
    use crate::guard::ShmDir;

    #[test]
    fn a_program_with_a_dynamic_linker_is_told_from_others() {
        // This test itself is linked dynamically.
        let own = std::fs::read(std::env::current_exe().expect("known")).expect("reads");
        assert_eq!(interpreter(&own), Some(true));
        for text in [&b"#!/bin/sh\n"[..], b"", b"\x7fELF\x02\x01", &[0xff; 100]] {
            assert_eq!(interpreter(text), None);
        }
    }

    #[test]
    fn size_and_kind_are_judged() {
        // A header without segments.
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(64, 0);
        assert_eq!(judge(&program), Ok(()));
        program.resize(SIZE_LIMIT, 0);
        assert!(judge(&program).is_err_and(|why| why.contains("2097152")));
        assert!(judge(b"MZ").is_err_and(|why| why.contains("no 64-bit")));
    }

    #[test]
    fn an_agent_that_is_not_built_is_left_out() {
        let dir = ShmDir::create("agent").expect("a directory");
        assert_eq!(read(&dir.path().join("none")).expect("nothing wrong"), None);
        std::fs::write(dir.path().join("text"), "text").expect("writes");
        let error = read(&dir.path().join("text")).expect_err("no program").to_string();
        assert!(error.contains("no 64-bit"), "{error}");
    }
}
