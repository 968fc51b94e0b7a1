//! What the agent says.

use alloc::vec::Vec;

use plimsoll_model::AgentStats;
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, MAX_PAYLOAD};
use crate::tags;

/// The kind of a frame that is a report.
pub(crate) const KIND: u8 = 1;

/// One report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// A number that the agent drew when it started: tells a restarted agent from one whose frames come twice.
    pub session: u32,
    /// Rises by at least one with each report of a session.
    pub seq: u64,
    /// Sent out of turn, because the guest is short of memory or soon will be.
    pub urgent: bool,
    /// The content.
    pub stats: AgentStats,
}

/// Appends the frame of a report, at most [`crate::MAX_FRAME`] bytes.
pub fn encode(report: &Report, out: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(MAX_PAYLOAD);
    tags::write(&report.stats, &mut payload);
    let Report { session, seq, urgent, .. } = *report;
    Frame { kind: KIND, urgent, session, seq, payload: &payload }.write(out);
}
