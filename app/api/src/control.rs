//! The control socket of a VM's back end: one JSON object a line, asked by the daemon, answered by the back end.
//!
//! Version 1. A line is at most [`MAX_LINE`] bytes. Unknown fields in a reply are ignored, so that a newer
//! back end may say more; an unknown `op` is answered with an error of kind [`ErrorKind::UnknownOp`].

pub use plimsoll_agent_proto::Counters as AgentCounters;
use plimsoll_model::{AgentStats, GuestStats};
use plimsoll_units::{BalloonSize, Bytes, MemTarget, PageCount};
use serde::{Deserialize, Serialize};

/// The protocol's version: the field `v` of every line.
pub const VERSION: u32 = 1;

/// The longest line either side may send, its newline included, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// The longest that [`Op::AwaitAgent`] goes unanswered, in milliseconds.
pub const AWAIT_AGENT_MS: u64 = 5000;

/// The longest that [`Op::AwaitPager`] goes unanswered, in milliseconds.
pub const AWAIT_PAGER_MS: u64 = AWAIT_AGENT_MS;

/// A line from the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// Repeated in the reply.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub op: Op,
}

/// What a back end can be asked. There are two kinds: one serves a VM's devices, the other its memory, which is populated on
/// demand. Each refuses what only the other can do ([`ErrorKind::Unsupported`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Everything about the VM; answered with a [`Status`].
    Status,
    /// Ask the guest for a balloon of this size; answered with a [`Status`].
    SetBalloon {
        /// Pages to be inside the balloon.
        pages: BalloonSize,
    },
    /// How often the guest is asked for statistics; answered with a [`Status`].
    StatsInterval {
        /// Milliseconds, 100 to 60000; 0 stops asking.
        ms: u32,
    },
    /// Wait for the agent in the guest to say that the guest is in distress; answered with a [`Status`] as soon as
    /// [`Status::agent_urgent`] is another number than `after`, and after [`AWAIT_AGENT_MS`] in any case. Until then
    /// nothing else is answered on this connection.
    AwaitAgent {
        /// The [`Status::agent_urgent`] that is known already.
        after: u64,
    },
    /// What the guest may have of its memory, populated on demand; answered with a [`Status`]. Raised, it is room at once;
    /// lowered, it takes nothing away, but no more is given until the guest has come below it.
    SetTarget {
        /// Bytes left to the guest: whole pages, at least one, at most [`Status::maxmem`].
        target: MemTarget,
    },
    /// Wait for the guest to stall in its pager, or to go on; answered with a [`Status`] as soon as [`PagerStatus::turns`]
    /// is another number than `after`, and after [`AWAIT_PAGER_MS`] in any case. Until then nothing else is answered on
    /// this connection.
    AwaitPager {
        /// The [`PagerStatus::turns`] that is known already.
        after: u64,
    },
    /// Look through the guest's memory for pages of zeros, and take their memory back. Begun now, unless one is under way;
    /// answered with a [`Status`] at once. [`PagerStatus::sweeps`] counts it when it is over.
    Sweep,
    /// The guest begins anew: everything becomes outstanding again and its memory goes back to the host, but for the first 2 MiB,
    /// in which its firmware begins. **The VM must be stopped**, from before this is asked until [`PagerStatus::resetting`]
    /// is false again: what its CPUs, or its VMM for the new start, write meanwhile is lost. Answered with a [`Status`] at
    /// once; [`PagerStatus::turns`] rises when it is over.
    Reset,
}

/// A line from the back end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`].
    pub v: u32,
    /// That of the request; 0 if it could not be read.
    pub id: u64,
    /// The answer.
    #[serde(flatten)]
    pub result: Outcome,
}

/// `{"ok": ...}` or `{"error": ...}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Ok(Box<Status>),
    /// It was not.
    Error(ControlError),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// For programs.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The line is not a request.
    BadRequest,
    /// Another version of the protocol.
    BadVersion,
    /// An `op` this back end does not know.
    UnknownOp,
    /// A value out of range.
    OutOfRange,
    /// An `op` for a VM of the other kind: see [`Op`].
    Unsupported,
    /// It cannot be done now; the message says why.
    Failed,
}

/// Everything a back end knows of its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How often a back end was started for this VM: 1 for the first.
    pub epoch: u64,
    /// How often a front end connected: a reboot of a User Mode Linux guest is a new one.
    pub generation: u64,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Whether the guest's driver runs its inflate queue.
    pub driver_ready: bool,
    /// What the guest was told it has.
    pub maxmem: Bytes,
    /// Pages asked to be in the balloon.
    pub num_pages: BalloonSize,
    /// Pages the guest says are in the balloon.
    pub actual: BalloonSize,
    /// The latest statistics.
    pub stats: Option<GuestStats>,
    /// How old they are in milliseconds.
    pub stats_age_ms: u64,
    /// Host memory behind the guest's, by the kernel's count of the backing files.
    pub resident: Bytes,
    /// The ledger's counts.
    pub ledger: LedgerCounts,
    /// What has happened since the first back end of this generation started.
    pub counters: Counters,
    /// The latest report of the agent in the guest, if one ever came to this back end from this guest.
    #[serde(default)]
    pub agent: Option<AgentStats>,
    /// How old that is in milliseconds.
    #[serde(default)]
    pub agent_age_ms: u64,
    /// Reports so far by which the agent said that its guest is in distress. Begins at 0 with each back end.
    #[serde(default)]
    pub agent_urgent: u64,
    /// What came over the agent's line since this back end started; `None` if the VM was started without one.
    #[serde(default)]
    pub agent_counters: Option<AgentCounters>,
    /// The memory that is populated on demand; `None` for a VM of the other kind. Where there is one, what is said of a balloon,
    /// its driver, an agent and their counters is nothing, and [`Status::connected`] and [`Status::generation`] are of
    /// the VMM that handed its guest's memory over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pager: Option<PagerStatus>,
}

/// A guest's memory that is populated on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PagerStatus {
    /// What the guest was promised, and is to come down to.
    pub target: MemTarget,
    /// What it may have now: the target, or what it had when the target was lowered, less what has come back since.
    pub limit: Bytes,
    /// Memory behind the guest's, by the kernel's count of the file.
    pub resident: Bytes,
    /// Pages that were never touched, or were taken back: without memory, and not given up by the guest.
    pub outstanding: PageCount,
    /// The guest waits for memory that there is no room for.
    pub stalled: Option<Stalled>,
    /// Rises whenever a stall begins or ends, and when a reset is over, and with each new back end.
    pub turns: u64,
    /// Stalls so far. One during which the back end was replaced counts twice.
    pub stalls: u64,
    /// Sweeps of this back end.
    pub sweeps: u64,
    /// Pages of zeros that sweeps took so far, those of whole frames among them.
    pub swept_pages: u64,
    /// Whole 2 MiB frames among those.
    pub swept_frames: u64,
    /// Whole 2 MiB frames populated so far.
    pub populated_frames: u64,
    /// Pages populated in smaller pieces.
    pub populated_pages: u64,
    /// Faults answered by this back end.
    pub faults: u64,
    /// Times that the host had no memory for a page that the guest may have, in this back end. It is tried again.
    pub refused: u64,
    /// Whether a VMM has handed its guest's memory over. Before, nothing can be touched.
    pub mapped: bool,
    /// Whether a reset is under way ([`Op::Reset`]).
    pub resetting: bool,
}

/// A guest that waits for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stalled {
    /// For how long, in milliseconds.
    pub since_ms: u64,
    /// Faults that wait: at least so many of the guest's CPUs, or of its VMM's threads, stand still.
    pub waiting: u64,
}

/// The ledger's counts, in pages; their sum is every page of the guest that the back end was shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerCounts {
    /// In use, as far as the host knows.
    pub present: PageCount,
    /// In the balloon.
    pub ballooned: PageCount,
    /// Reported free, and not named since.
    pub reported: PageCount,
}

/// What the device did, since this back end started. All only rise, until the back end is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Pages taken into the balloon.
    pub inflated_pages: u64,
    /// Pages given back from it.
    pub deflated_pages: u64,
    /// Pages reported free.
    pub reported_pages: u64,
    /// Discards asked of the kernel.
    pub discards: u64,
    /// Bytes they covered.
    pub discarded_bytes: u64,
    /// Whole 2 MiB frames among them.
    pub whole_frames: u64,
    /// Buffers the guest sent that were malformed in some way.
    pub bad_buffers: u64,
    /// Pages the guest named that it does not have.
    pub bad_pages: u64,
    /// Discards the kernel refused.
    pub discard_errors: u64,
}

impl Reply {
    /// A refusal.
    #[must_use]
    pub fn error(id: u64, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { v: VERSION, id, result: Outcome::Error(ControlError { kind, message: message.into() }) }
    }

    /// An answer.
    #[must_use]
    pub fn ok(id: u64, status: Status) -> Self {
        Self { v: VERSION, id, result: Outcome::Ok(Box::new(status)) }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn older_back_ends_say_nothing_of_agents() {
        let whole = serde_json::to_value(Status { epoch: 3, ..Status::default() }).unwrap();
        let older: serde_json::Map<_, _> = whole
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, _)| !key.starts_with("agent"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let status: Status = serde_json::from_value(older.into()).unwrap();
        assert_eq!((status.epoch, status.agent, status.agent_counters), (3, None, None));
    }

    #[test]
    fn older_back_ends_say_nothing_of_pagers_and_newer_ones_may_say_more() {
        let devices = serde_json::to_value(Status::default()).unwrap();
        assert!(devices.as_object().unwrap().get("pager").is_none(), "as before there were any");
        let said = r#"{"target":4096,"stalled":{"since_ms":7},"tomorrow":[1]}"#;
        let pager: PagerStatus = serde_json::from_str(said).unwrap();
        assert_eq!(pager.target, MemTarget(Bytes(4096)));
        assert_eq!(pager.stalled, Some(Stalled { since_ms: 7, waiting: 0 }));
        let status = Status { pager: Some(pager), ..Status::default() };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }

    #[test]
    fn requests_to_a_pager_look_as_documented() {
        let lines = [
            (Op::SetTarget { target: MemTarget(Bytes::mib(1)) }, r#""op":"set_target","target":1048576"#),
            (Op::AwaitPager { after: 3 }, r#""op":"await_pager","after":3"#),
            (Op::Sweep, r#""op":"sweep""#),
            (Op::Reset, r#""op":"reset""#),
        ];
        for (op, said) in lines {
            let request = Request { v: 1, id: 7, op };
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(line, format!("{{\"v\":1,\"id\":7,{said}}}"));
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
    }

    #[test]
    fn lines_look_as_documented() {
        let ask = Request { v: 1, id: 7, op: Op::SetBalloon { pages: BalloonSize(PageCount(256)) } };
        let line = serde_json::to_string(&ask).unwrap();
        assert_eq!(line, r#"{"v":1,"id":7,"op":"set_balloon","pages":256}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), ask);
        let status: Request = serde_json::from_str(r#"{"v":1,"id":7,"op":"status"}"#).unwrap();
        assert_eq!(status.op, Op::Status);
        let wait: Request = serde_json::from_str(r#"{"v":1,"id":7,"op":"await_agent","after":9}"#).unwrap();
        assert_eq!(wait.op, Op::AwaitAgent { after: 9 });
        let refusal = serde_json::to_string(&Reply::error(0, ErrorKind::BadRequest, "no")).unwrap();
        assert_eq!(refusal, r#"{"v":1,"id":0,"error":{"kind":"bad_request","message":"no"}}"#);
        let reply = Reply::ok(3, Status::default());
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
    }
}
