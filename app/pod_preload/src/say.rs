//! One line on standard error, for what a person must know.

use libc::c_int;

use crate::calls::{self, Errno};

/// The longest line; what is longer is cut off.
const LONGEST: usize = 600;

/// A line that is being put together, without allocation.
pub(crate) struct Line {
    bytes: [u8; LONGEST],
    used: usize,
}

impl Line {
    /// `plimsoll-pod: ` and these words.
    pub(crate) fn new(words: &str) -> Self {
        Self { bytes: [0; LONGEST], used: 0 }.and("plimsoll-pod: ").and(words)
    }

    /// More words.
    pub(crate) fn and(self, words: &str) -> Self {
        self.bytes(words.as_bytes())
    }

    /// More bytes, as they are but for control characters.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        // One byte is kept for the end of the line.
        let free = self.bytes.iter_mut().take(LONGEST.saturating_sub(1)).skip(self.used);
        let mut put: usize = 0;
        for (slot, byte) in free.zip(bytes) {
            *slot = if byte.is_ascii_control() { b'?' } else { *byte };
            put = put.saturating_add(1);
        }
        self.used = self.used.saturating_add(put);
        self
    }

    /// A number.
    pub(crate) fn number(self, mut number: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        for (place, digit) in digits.iter_mut().enumerate().rev() {
            *digit = u8::try_from(number % 10).unwrap_or(0).saturating_add(b'0');
            first = place;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.bytes(digits.get(first..).unwrap_or_default())
    }

    /// `: ` and what an error number means.
    pub(crate) fn errno(self, errno: Errno) -> Self {
        let line = self.and(": ");
        match meaning(errno) {
            Some(words) => line.and(words),
            None => line.and("error ").number(u64::try_from(errno).unwrap_or(0)),
        }
    }

    /// The bytes, with the line's end.
    fn finish(&mut self) -> &[u8] {
        if let Some(slot) = self.bytes.get_mut(self.used) {
            *slot = b'\n';
        }
        self.bytes.get(..self.used.saturating_add(1)).unwrap_or_default()
    }

    /// Prints it, in one write.
    pub(crate) fn print(mut self) {
        calls::write_error(self.finish());
    }

    /// Prints it and ends the process.
    pub(crate) fn end(self, code: c_int) -> ! {
        self.print();
        calls::exit(code)
    }
}

/// What is likely here; the rest is told by its number (errno(3)).
fn meaning(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "operation not permitted",
        libc::ENOENT => "no such file",
        libc::EACCES => "permission denied",
        libc::EINVAL => "invalid argument",
        libc::ENOSYS => "the kernel does not have it",
        libc::ENOMEM => "not enough memory",
        libc::EMFILE | libc::ENFILE => "too many open files",
        libc::EBUSY => "somebody watches it already",
        libc::ECONNREFUSED => "nobody listens there",
        libc::EPROTOTYPE => "a socket of another type",
        libc::EPIPE | libc::ECONNRESET => "the other side has closed",
        libc::ETIMEDOUT => "no time left",
        _ => return None,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn text(mut line: Line) -> String {
        String::from_utf8(line.finish().to_vec()).unwrap()
    }

    #[test]
    fn a_line_is_put_together() {
        let line = Line::new("at ").number(0).and(" of ").number(u64::MAX).errno(libc::EPERM);
        assert_eq!(text(line), "plimsoll-pod: at 0 of 18446744073709551615: operation not permitted\n");
        assert_eq!(text(Line::new("x").errno(9999)), "plimsoll-pod: x: error 9999\n");
        assert_eq!(text(Line::new("").number(1090)), "plimsoll-pod: 1090\n");
    }

    #[test]
    fn what_is_too_long_is_cut_and_still_ends() {
        let line = (0..100).fold(Line::new("x"), |line, _| line.and("0123456789"));
        let text = text(line);
        assert_eq!(text.len(), LONGEST);
        assert!(text.ends_with('\n') && text.starts_with("plimsoll-pod: x0123456789"));
    }

    #[test]
    fn a_name_cannot_make_a_line_of_its_own() {
        assert_eq!(text(Line::new("a ").bytes(b"b\nc\x1b[m")), "plimsoll-pod: a b?c?[m\n");
    }
}
