//! What a test makes up for itself: a line for the guest's shell.

use std::io;
use std::process::{Command, Stdio};

/// The most of what it says that is answered, in characters: the answer is one line on a console.
const SAID: usize = 1500;

/// Runs a line in busybox' shell, to its end. What shall go on beyond that is put into the background there, with its
/// output elsewhere: `sh setsid PROGRAM </dev/null >/dev/null 2>&1 &`.
///
/// Refused to any but a guest's first process: a test's line is not meant for a host.
pub(crate) fn run(line: &str) -> io::Result<String> {
    if std::process::id() != 1 {
        return Err(io::Error::other("only the first process of a guest does that"));
    }
    let output = Command::new("/bin/busybox").args(["sh", "-c", line]).stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said: String = String::from_utf8_lossy(&said).trim().replace('\n', "; ").chars().take(SAID).collect();
    let word = if output.status.success() { "ok" } else { "error" };
    let code = output.status.code().map_or("none".to_owned(), |code| code.to_string());
    Ok(format!("{word} code={code} said={said:?}"))
}
