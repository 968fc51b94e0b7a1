//! The command line. Written by hand: a library for it would be larger than the rest of the program.

use std::path::PathBuf;

use plimsoll_agent_proto::{LONGEST_PACE_MS, PORT_NAME, SHORTEST_PACE_MS};

const DEFAULT_INTERVAL_MS: u32 = 1000;

/// How to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// The port to speak through, else it is searched for.
    pub(crate) port: Option<PathBuf>,
    /// Milliseconds between two regular reports.
    pub(crate) interval_ms: u32,
    /// One report and no more.
    pub(crate) once: bool,
    /// Reports as text on standard output.
    pub(crate) print: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self { port: None, interval_ms: DEFAULT_INTERVAL_MS, once: false, print: false }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Report.
    Run(Args),
    /// Say this and end.
    Tell(String),
}

/// What is wrong with a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// No such option.
    #[error("`{0}` is no option of plimsoll-agent; there are --port, --interval, --once, --print")]
    Unknown(String),
    /// An option needs a value.
    #[error("{option} needs {what}")]
    Missing {
        /// The option.
        option: &'static str,
        /// What it needs.
        what: &'static str,
    },
    /// An option takes no value.
    #[error("{0} takes no value")]
    Value(&'static str),
    /// No interval.
    #[error(
        "`{0}` is no interval: a whole number of milliseconds from {SHORTEST_PACE_MS} to {LONGEST_PACE_MS}"
    )]
    Interval(String),
}

impl Args {
    /// Reads the words behind the program's name.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Command, ArgsError> {
        let mut args = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let (option, value) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let flag = |name| if value.is_some() { Err(ArgsError::Value(name)) } else { Ok(true) };
            match option {
                "--port" => {
                    args.port = Some(wanted("--port", "a path", value.or_else(|| words.next()))?.into())
                }
                "--interval" => {
                    let what = "a number of milliseconds";
                    args.interval_ms =
                        interval(&wanted("--interval", what, value.or_else(|| words.next()))?)?;
                }
                "--once" => args.once = flag("--once")?,
                "--print" => args.print = flag("--print")?,
                "--help" | "-h" => return Ok(Command::Tell(help())),
                "--version" | "-V" => {
                    return Ok(Command::Tell(format!("plimsoll-agent {}", env!("CARGO_PKG_VERSION"))));
                }
                _ => return Err(ArgsError::Unknown(word)),
            }
        }
        Ok(Command::Run(args))
    }
}

fn wanted(option: &'static str, what: &'static str, value: Option<String>) -> Result<String, ArgsError> {
    value.filter(|value| !value.is_empty()).ok_or(ArgsError::Missing { option, what })
}

fn interval(word: &str) -> Result<u32, ArgsError> {
    let number = word.parse().ok().filter(|ms| (SHORTEST_PACE_MS..=LONGEST_PACE_MS).contains(ms));
    number.ok_or_else(|| ArgsError::Interval(word.to_owned()))
}

fn help() -> String {
    format!(
        "Tells the host how this guest fares: a report in each interval, and at once when memory is short.

Usage: plimsoll-agent [OPTIONS]

Options:
  --port PATH    speak through this device, as /dev/ttyS0 on User Mode Linux
                 [default: the virtio-serial port {PORT_NAME}]
  --interval MS  time between two reports, {SHORTEST_PACE_MS} to {LONGEST_PACE_MS} ms \
         [default: {DEFAULT_INTERVAL_MS}]; the host may ask for another
  --once         send one report and end
  --print        print the reports as text; they are sent only if --port is given as well
  --help         this text
  --version      the version

Exit codes: 0, 1 failed, 2 wrong use"
    )
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(line: &str) -> Result<Command, ArgsError> {
        Args::parse(line.split_ascii_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read_with_blank_and_with_equals_sign() {
        let all = Args { port: Some("/dev/ttyS0".into()), interval_ms: 250, once: true, print: true };
        assert_eq!(parse("--port /dev/ttyS0 --interval 250 --once --print"), Ok(Command::Run(all.clone())));
        assert_eq!(parse("--port=/dev/ttyS0 --interval=250 --print --once"), Ok(Command::Run(all)));
        assert_eq!(parse(""), Ok(Command::Run(Args::default())));
    }

    #[test]
    fn mistakes_are_named() {
        let said = |line: &str| parse(line).expect_err("is wrong").to_string();
        assert!(said("--prot x").starts_with("`--prot` is no option of plimsoll-agent; there are --port"));
        assert!(said("start").starts_with("`start` is no option"));
        assert_eq!(said("--port"), "--port needs a path");
        assert_eq!(said("--port="), "--port needs a path");
        assert_eq!(said("--once=yes"), "--once takes no value");
        for interval in ["99", "60001", "1s", "-5", "99999999999999999999"] {
            assert!(said(&format!("--interval {interval}")).contains("from 100 to 60000"), "{interval}");
        }
    }

    #[test]
    fn help_and_version_win_over_what_follows() {
        assert!(
            matches!(parse("--help --nonsense"), Ok(Command::Tell(text)) if text.contains("--interval MS"))
        );
        assert!(matches!(parse("-V"), Ok(Command::Tell(text)) if text.starts_with("plimsoll-agent 0.")));
    }
}
