//! The only place that prints: answers to stdout, everything else to stderr.
#![expect(clippy::print_stderr, reason = "this is the module that prints")]

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

/// The reader of stdout has gone away (`plimsoll list | head -1`): not an error, the program just ends.
#[derive(Debug, thiserror::Error)]
#[error("the reader of the output has gone away")]
pub(crate) struct Closed;

/// Prints an answer, with a newline at its end.
pub(crate) fn answer(text: &str) -> anyhow::Result<()> {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    raw(&[text.as_bytes(), newline.as_bytes()].concat())
}

/// Writes bytes to stdout as they are and flushes.
pub(crate) fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(e) => Err(anyhow::Error::new(e).context("cannot write to standard output")),
    }
}

/// Says something beside the answer, on stderr.
pub(crate) fn note(text: &str) {
    eprintln!("plimsoll: {text}");
}

/// Prints a failure on stderr. A failure to print it has nowhere to go.
pub(crate) fn failure(text: &str) {
    let _ = writeln!(io::stderr().lock(), "plimsoll: {}", text.trim_end());
}

/// An error and what is behind it, `what failed: why`. Many an error's text has its source's in it already; what was
/// said is not said again.
pub(crate) fn explained(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for part in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
    }
    text
}

/// Prints text on stderr as it is.
pub(crate) fn stderr(text: &str) {
    let _ = write!(io::stderr().lock(), "{text}");
}

/// Shows what is being waited for on the terminal's current line; nothing where stderr is no terminal.
pub(crate) fn progress(text: &str) {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr().lock(), "\r\x1b[K{text}");
    }
}

/// Wipes what [`progress`] showed.
pub(crate) fn progress_end() {
    progress("");
}

/// Columns and rows of the terminal on stdout, if it is one.
pub(crate) fn terminal() -> Option<(usize, usize)> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = tcgetwinsize(&stdout).ok()?;
    // A serial console says 0 x 0.
    let or = |n: u16, otherwise: usize| if n == 0 { otherwise } else { usize::from(n) };
    Some((or(size.ws_col, 80), or(size.ws_row, 24)))
}

/// Whether help and errors may carry terminal codes.
pub(crate) fn stream_is_terminal(stderr: bool) -> bool {
    if stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn no_cause_is_told_twice() {
        let error = anyhow::anyhow!("disk full")
            .context("cannot write x: disk full; make room")
            .context("cannot run web");
        assert_eq!(explained(&error), "cannot run web: cannot write x: disk full; make room");
        let error = anyhow::anyhow!("disk full").context("cannot write x");
        assert_eq!(explained(&error), "cannot write x: disk full");
    }
}
