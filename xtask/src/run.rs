//! Runs programs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;

/// Cargo, as it called this program, in the root of the workspace.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(paths::root()).stdin(Stdio::null());
    command
}

/// How a command reads on a command line.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs it quietly; what it wrote is part of the error when it fails, and the result when it does not.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{shown}`"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    bail!("`{shown}` failed ({}):\n{}{}", output.status, text, said.trim_end())
}

/// Runs it with its output shown.
pub(crate) fn shown_output(command: &mut Command) -> Result<ExitStatus> {
    let shown = shown(command);
    command.stdin(Stdio::null()).status().with_context(|| format!("cannot run `{shown}`"))
}

/// Runs it with its output shown, and returns the lines that `keep` wants.
pub(crate) fn shown_and_kept(
    command: &mut Command,
    keep: fn(&str) -> bool,
) -> Result<(ExitStatus, Vec<String>)> {
    let shown = shown(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let kept = std::thread::scope(|scope| {
        let errors = scope.spawn(|| stderr.map(|from| copy(from, &mut std::io::stderr(), keep)));
        let mut kept = stdout.map(|from| copy(from, &mut std::io::stdout(), keep)).unwrap_or_default();
        kept.extend(errors.join().ok().flatten().unwrap_or_default());
        kept
    });
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    Ok((status, kept))
}

/// Copies line by line until the end. A reader who left does not stop the program that is read from.
fn copy(from: impl Read, to: &mut dyn Write, keep: fn(&str) -> bool) -> Vec<String> {
    let mut from = BufReader::new(from);
    let mut kept = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return kept,
            Ok(_) => {}
        }
        let _ = to.write_all(&line);
        let _ = to.flush();
        let text = without_colours(&String::from_utf8_lossy(&line));
        if keep(&text) {
            kept.push(text.trim().to_owned());
        }
    }
}

/// Leaves out the escape sequences that set colours: ESC, `[`, up to `m`.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod test {
    use std::process::Command;

    use super::{quiet, shown_and_kept, without_colours};

    #[test]
    fn colours_are_left_out() {
        assert_eq!(without_colours("a\u{1b}[1;32mb\u{1b}[0mc"), "abc");
        assert_eq!(without_colours("a\u{1b}[1"), "a");
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let mut command = Command::new("sh");
        let error =
            quiet(command.args(["-c", "echo out; echo why >&2; exit 3"])).expect_err("fails").to_string();
        assert!(error.contains("exit status: 3") && error.contains("out\nwhy"), "{error}");
    }

    #[test]
    fn wanted_lines_of_both_streams_are_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo x1; echo y; echo x2 >&2"]);
        let (status, kept) = shown_and_kept(&mut command, |line| line.starts_with('x')).expect("runs");
        assert!(status.success());
        assert_eq!(kept, ["x1", "x2"]);
    }
}
