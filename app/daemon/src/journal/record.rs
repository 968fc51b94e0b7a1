//! The journal's lines, version 1.
//!
//! Each line is one JSON object with `v`, `t` (microseconds since 1970, for people) and `kind`:
//!
//! * `start`: the arbiter's configuration and memory before the next tick. It begins every file and follows
//!   every gap, so that what comes after it can be replayed: `decide` over the snapshots from there on gives
//!   the same plans bit for bit.
//! * `tick`: a snapshot and the plan made of it.
//! * `event`: as the API tells it.
//! * `outcome`: a target that could not be set, and why.
//! * `lost`: how many lines are missing here, because the disk was full or too slow.

use plimsoll_api::http::Event;
use plimsoll_model::{Plan, Snapshot, VmName};
use plimsoll_policy::{Config, History};
use plimsoll_units::MemTarget;
use serde::Serialize;

/// The version of the lines.
pub(crate) const VERSION: u32 = 1;

/// A line to be written.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    v: u32,
    t: u64,
    #[serde(flatten)]
    entry: Entry<'a>,
}

/// What a line says.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Entry<'a> {
    Start { config: &'a Config, history: &'a History },
    Tick { snapshot: &'a Snapshot, plan: &'a Plan },
    Event { event: &'a Event },
    Outcome { vm: &'a VmName, target: MemTarget, error: &'a str },
    Lost { lines: u64 },
}

/// The line's bytes with its end.
pub(crate) fn line(wall_us: u64, entry: Entry<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    let line = Line { v: VERSION, t: wall_us, entry };
    // Plain data with text keys into memory: there is nothing that could fail.
    if let Err(error) = serde_json::to_writer(&mut bytes, &line) {
        tracing::error!(%error, "a journal line cannot be written");
        bytes.clear();
    }
    bytes.push(b'\n');
    bytes
}
