//! The process's environment, in place: reading a variable, and forgetting that this library was preloaded.

use core::ffi::CStr;
use core::ptr::NonNull;

use libc::c_char;
use plimsoll_uffd_wire::agreement::LIBRARY;

const PRELOAD: &str = "LD_PRELOAD";

unsafe extern "C" {
    /// The C library's environment (environ(7)): pointers to `NAME=value`, a null at the end.
    static mut environ: *mut *mut c_char;
}

/// The entries, as pointers.
fn entries() -> impl Iterator<Item = NonNull<c_char>> {
    // SAFETY: the C library has set it before anything of ours runs.
    let mut next = unsafe { environ };
    core::iter::from_fn(move || {
        let here = NonNull::new(next)?;
        // SAFETY: an element of the array, which ends with a null, behind which nothing is read.
        let entry = NonNull::new(unsafe { here.read() })?;
        next = next.wrapping_add(1);
        Some(entry)
    })
}

/// A variable's value, if this is its entry.
fn value_in<'a>(entry: &'a [u8], name: &str) -> Option<&'a [u8]> {
    entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// A variable's value. Only for while the library is loaded: later a program may free it.
pub(crate) fn value(name: &str) -> Option<&'static [u8]> {
    entries().find_map(|entry| {
        // SAFETY: a string that ends, which nobody changes while the loader runs.
        let entry = unsafe { CStr::from_ptr(entry.as_ptr()) };
        value_in(entry.to_bytes(), name)
    })
}

/// Takes this library out of LD_PRELOAD, where it stands, so that programs the VMM starts are not bothered with it.
///
/// A thread that changes the environment at the same moment would be in the way; getenv(3) and setenv(3) have that
/// trouble with each other too. The VMM is just mapping its guest's memory and does not.
pub(crate) fn forget_preload() {
    for entry in entries() {
        // SAFETY: a string that ends.
        let length = unsafe { CStr::from_ptr(entry.as_ptr()) }.to_bytes().len();
        // SAFETY: the string's bytes, without the zero at its end. They are writable: the kernel put them on the stack,
        // or the program on its heap.
        let bytes = unsafe { core::slice::from_raw_parts_mut(entry.as_ptr().cast::<u8>(), length) };
        if value_in(bytes, PRELOAD).is_some() {
            forget(bytes.get_mut(PRELOAD.len().saturating_add(1)..).unwrap_or_default());
        }
    }
}

/// Takes this library out of a list (ld.so(8): separated by colons or blanks); what is left moves to the front, with
/// zeros behind it. A list without its name has it under another one, and is emptied.
fn forget(list: &mut [u8]) {
    let mut written: usize = 0;
    let mut from: usize = 0;
    let mut found = false;
    while from < list.len() {
        let rest = list.get(from..).unwrap_or_default();
        let length = rest.iter().position(|byte| matches!(byte, b':' | b' ')).unwrap_or(rest.len());
        if is_ours(rest.get(..length).unwrap_or_default()) {
            found = true;
        } else if length > 0 {
            if written > 0 {
                written = put(list, written, b':');
            }
            for step in 0..length {
                let byte = list.get(from.saturating_add(step)).copied().unwrap_or(0);
                written = put(list, written, byte);
            }
        }
        from = from.saturating_add(length).saturating_add(1);
    }
    let kept = if found { written } else { 0 };
    list.iter_mut().skip(kept).for_each(|byte| *byte = 0);
}

/// Writes a byte, never further than what was read already.
fn put(list: &mut [u8], at: usize, byte: u8) -> usize {
    if let Some(slot) = list.get_mut(at) {
        *slot = byte;
    }
    at.saturating_add(1)
}

fn is_ours(item: &[u8]) -> bool {
    item.rsplit(|byte| *byte == b'/').next() == Some(LIBRARY.as_bytes())
}

#[cfg(test)]
mod test {
    use super::*;

    fn left(list: &str) -> String {
        let mut bytes = list.as_bytes().to_vec();
        forget(&mut bytes);
        let text: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != 0).collect();
        assert!(bytes[text.len()..].iter().all(|byte| *byte == 0));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn this_library_goes_and_others_stay() {
        let ours = "/usr/lib/libplimsoll_pod_preload.so";
        assert_eq!(left(ours), "");
        assert_eq!(left(&format!("a.so:{ours}:/b/c.so")), "a.so:/b/c.so");
        assert_eq!(left(&format!("{ours} a.so")), "a.so");
        assert_eq!(left(&format!("a.so::{ours}:")), "a.so");
        assert_eq!(left(&format!("{ours}:{ours}")), "");
        assert_eq!(left(&format!("libplimsoll_pod_preload.so:x{ours}y.so")), format!("x{ours}y.so"));
    }

    #[test]
    fn a_list_without_its_name_is_emptied() {
        assert_eq!(left("a.so:b.so"), "");
        assert_eq!(left(""), "");
    }

    #[test]
    fn variables_are_told_apart_by_their_whole_name() {
        assert_eq!(value_in(b"ABC=x=y", "ABC"), Some(&b"x=y"[..]));
        assert_eq!(value_in(b"ABCD=x", "ABC"), None);
        assert_eq!(value_in(b"ABC", "ABC"), None);
        assert!(value("PATH").is_some() && value("PLIMSOLL_NO_SUCH_VARIABLE").is_none());
    }
}
