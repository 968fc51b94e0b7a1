//! The lines of QMP (QEMU's `docs/interop/qmp-spec.rst`): what is sent, and what a received line is.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Event, error::shorten};

/// The longest text of a peer that is kept, in characters.
pub(crate) const KEPT_TEXT: usize = 300;

/// The version a QEMU greets with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuVersion {
    /// 7 of 7.2.22.
    pub major: u32,
    /// 2 of 7.2.22.
    pub minor: u32,
    /// 22 of 7.2.22.
    pub micro: u32,
    /// The distributor's words, such as `Debian 1:7.2+dfsg-7`; may be empty.
    pub package: String,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)?;
        if self.package.is_empty() { Ok(()) } else { write!(f, " ({})", self.package) }
    }
}

/// `{"qemu": {"major": 7, ..}, "package": ".."}`, as the greeting and `query-version` have it.
#[derive(Deserialize)]
pub(crate) struct RawVersion {
    qemu: RawTriple,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct RawTriple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl From<RawVersion> for QemuVersion {
    fn from(raw: RawVersion) -> Self {
        let RawTriple { major, minor, micro } = raw.qemu;
        Self { major, minor, micro, package: shorten(raw.package, KEPT_TEXT) }
    }
}

/// A command line.
#[derive(Serialize)]
struct Command<'a, A> {
    execute: &'a str,
    arguments: A,
    id: u64,
}

/// What a command without arguments has: QEMU wants an object.
pub(crate) const NO_ARGUMENTS: Empty = Empty {};

/// An object of which nothing is wanted: the result of commands that return nothing.
#[derive(Serialize, Deserialize)]
pub(crate) struct Empty {}

/// The bytes of a command, line end included.
pub(crate) fn command_line(
    execute: &str,
    arguments: impl Serialize,
    id: u64,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(&Command { execute, arguments, id })?;
    line.push(b'\n');
    Ok(line)
}

/// What a line turned out to be.
#[derive(Debug)]
pub(crate) enum Message {
    /// The first line of a connection.
    Greeting(QemuVersion),
    /// An answer, and the id it bears.
    Reply { id: u64, answer: Answer },
    /// Something happened.
    Event(Event),
}

/// What a command came to: its result as it was written, or why not.
#[derive(Debug)]
pub(crate) enum Answer {
    Return(Box<RawValue>),
    Refused { class: String, desc: String },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "QMP")]
    greeting: Option<RawGreeting>,
    #[serde(rename = "return", borrow)]
    result: Option<&'a RawValue>,
    error: Option<RawError>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawGreeting {
    version: RawVersion,
}

#[derive(Deserialize)]
struct RawError {
    class: String,
    desc: String,
}

/// Reads one line; `None` if it is no line of QMP.
pub(crate) fn parse(line: &[u8]) -> Option<Message> {
    let envelope: Envelope<'_> = serde_json::from_slice(line).ok()?;
    // Our ids are plain numbers; any other id was never given by us.
    let id = || envelope.id.and_then(|raw| raw.get().parse::<u64>().ok());
    match (envelope.greeting, envelope.result, envelope.error, envelope.event) {
        (Some(greeting), None, None, None) => Some(Message::Greeting(greeting.version.into())),
        (None, Some(result), None, None) => {
            Some(Message::Reply { id: id()?, answer: Answer::Return(result.to_owned()) })
        }
        (None, None, Some(RawError { class, desc }), None) => {
            let (class, desc) = (shorten(class, KEPT_TEXT), shorten(desc, KEPT_TEXT));
            Some(Message::Reply { id: id()?, answer: Answer::Refused { class, desc } })
        }
        (None, None, None, Some(name)) => {
            let (data, timestamp) = (envelope.data.map(RawValue::get), envelope.timestamp.map(RawValue::get));
            Some(Message::Event(Event::from_wire(&name, data, timestamp)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_greeting_of_debians_qemu() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}"#;
        let Some(Message::Greeting(version)) = parse(line) else { panic!("no greeting") };
        assert_eq!(version.to_string(), "7.2.22 (Debian 1:7.2)");
    }

    #[test]
    fn a_line_is_one_thing_only() {
        assert!(parse(br#"{"return": {}, "error": {"class": "x", "desc": "y"}, "id": 1}"#).is_none());
        assert!(parse(br#"{"id": 1}"#).is_none());
        assert!(parse(br#"{"return": {}}"#).is_none(), "a reply to nothing");
        assert!(parse(br#"{"return": {}, "id": "1"}"#).is_none(), "an id we never give");
        assert!(parse(br#"{"return": {}, "return": {}, "id": 1}"#).is_none());
        assert!(parse(b"[]").is_none());
        assert!(parse(b"").is_none());
        assert!(parse(&[b'['; 100_000]).is_none(), "nesting ends in an error, not in the stack");
    }

    #[test]
    fn a_refusal_is_kept_short() {
        let line =
            format!(r#"{{"error": {{"class": "GenericError", "desc": "{}"}}, "id": 3}}"#, "ä".repeat(9999));
        let Some(Message::Reply { id: 3, answer: Answer::Refused { class, desc } }) = parse(line.as_bytes())
        else {
            panic!("no refusal")
        };
        assert_eq!((class.as_str(), desc.chars().count()), ("GenericError", KEPT_TEXT));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn almost_qmp_never_panics(key in "(QMP|return|error|event|id|data)", value in "[\\[\\]{}\",:0-9a-z.e+-]{0,40}", id in any::<u64>()) {
            let _ = parse(format!(r#"{{"{key}": {value}, "id": {id}}}"#).as_bytes());
        }

        #[test]
        fn our_command_lines_are_one_line(name in "[a-z-]{1,20}", argument in ".{0,40}", id in any::<u64>()) {
            let line = command_line(&name, serde_json::json!({ "path": argument.clone() }), id).unwrap();
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            let back: serde_json::Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(&back["arguments"]["path"], &argument);
            prop_assert_eq!(&back["id"], id);
        }
    }
}
