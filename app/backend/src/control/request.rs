//! Lines and what they ask.

use plimsoll_api::control::{ErrorKind, Reply, Request, VERSION};
use serde_json::Value;

pub(super) fn text(reply: &Reply) -> Vec<u8> {
    // A reply is made of numbers and strings; there is nothing in it that JSON cannot say.
    let mut text = serde_json::to_vec(reply).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The operations of this version.
const OPS: [&str; 8] =
    ["status", "set_balloon", "stats_interval", "await_agent", "set_target", "await_pager", "sweep", "reset"];

pub(super) fn parse(line: &[u8]) -> Result<Request, Reply> {
    let bad = |id, message: String| Reply::error(id, ErrorKind::BadRequest, message);
    let value: Value =
        serde_json::from_slice(line).map_err(|error| bad(0, format!("the line is not JSON: {error}")))?;
    let id = value.get("id").and_then(Value::as_u64).unwrap_or(0);
    let version = value.get("v");
    if version.and_then(Value::as_u64) != Some(u64::from(VERSION)) {
        let message = format!("this back end speaks version {VERSION}: send \"v\":{VERSION}");
        return Err(Reply::error(id, ErrorKind::BadVersion, message));
    }
    match value.get("op").and_then(Value::as_str) {
        None => return Err(bad(id, "there is no \"op\"".to_owned())),
        Some(op) if !OPS.contains(&op) => {
            let message = format!("`{op}` is none of {}", OPS.join(", "));
            return Err(Reply::error(id, ErrorKind::UnknownOp, message));
        }
        Some(_) => {}
    }
    serde_json::from_value(value).map_err(|error| bad(id, format!("the request is incomplete: {error}")))
}

#[cfg(test)]
mod test {
    use plimsoll_api::control::Outcome;
    use proptest::prelude::*;

    use super::*;

    fn kind(line: &[u8]) -> Option<ErrorKind> {
        let Err(reply) = parse(line) else { return None };
        let Outcome::Error(error) = reply.result else { panic!("{reply:?} is no refusal") };
        Some(error.kind)
    }

    #[test]
    fn refusals_say_what_was_wrong() {
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"status"}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_balloon","pages":5}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"await_agent","after":5}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"await_agent"}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_target","target":4096}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_target"}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"await_pager","after":5}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"sweep"}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"reset"}"#), None);
        assert_eq!(kind(b"GET / HTTP/1.1"), Some(ErrorKind::BadRequest));
        assert_eq!(kind(b""), Some(ErrorKind::BadRequest));
        assert_eq!(kind(b"[1,2]"), Some(ErrorKind::BadVersion));
        assert_eq!(kind(br#"{"v":2,"id":7,"op":"status"}"#), Some(ErrorKind::BadVersion));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"explode"}"#), Some(ErrorKind::UnknownOp));
        assert_eq!(kind(br#"{"v":1,"id":7}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_balloon"}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_balloon","pages":-1}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":-7,"op":"status"}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind("[".repeat(50_000).as_bytes()), Some(ErrorKind::BadRequest));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            kind(&line);
        }
    }
}
