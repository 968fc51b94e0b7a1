//! Everything this process knows of its VM, in one answer.

use std::time::Instant;

use plimsoll_api::control::{Counters, LedgerCounts, Status};
use plimsoll_model::GuestStats;
use plimsoll_units::{Bytes, PageCount};
use plimsoll_vhost_user::Session;
use plimsoll_vhost_user::layout::Layout;

use super::device::BalloonDevice;
use super::line::Line;

/// The device this process serves.
pub(crate) const DEVICE: usize = 0;

/// The queue whose running means that the driver is up.
const INFLATE: u16 = 0;

pub(crate) fn status(
    session: &Session<BalloonDevice>,
    layout: &Layout,
    maxmem: Bytes,
    line: Option<&Line>,
) -> Status {
    let device = session.device();
    let balloon = device.balloon();
    let counts = balloon.ledger().counts();
    // The ledger counts all of a backing file, which may have more in it than the guest's memory.
    let given_up = counts.ballooned.0.saturating_add(counts.reported.0);
    let present = PageCount(balloon.memory().pages().saturating_sub(given_up));
    let age = device.stats_at().map_or(0, |at| at.elapsed().as_millis());
    let generation = layout.generation(DEVICE);
    let agent = line.and_then(|line| line.latest(generation, Instant::now()));
    Status {
        epoch: layout.epoch(),
        generation,
        connected: layout.is_connected(DEVICE),
        driver_ready: session.is_running(INFLATE),
        maxmem,
        num_pages: balloon.config().num_pages(),
        actual: balloon.config().actual(),
        stats: device.stats_at().map(|_| stats(&balloon.stats().values)),
        stats_age_ms: u64::try_from(age).unwrap_or(u64::MAX),
        resident: Bytes(session.memory().map_or(0, |memory| memory.resident())),
        ledger: LedgerCounts { present, ballooned: counts.ballooned, reported: counts.reported },
        counters: counters(balloon.counters(), session.breaks()),
        agent: agent.map(|(report, _)| report.stats),
        agent_age_ms: agent.map_or(0, |(_, age_ms)| age_ms),
        agent_urgent: line.map_or(0, Line::urgent),
        agent_counters: line.map(Line::counters),
        pager: None,
    }
}

fn stats(values: &[Option<u64>; 16]) -> GuestStats {
    let mut stats = GuestStats::default();
    for (tag, value) in (0u16..).zip(values) {
        if let Some(value) = value {
            stats.set_tag(tag, *value);
        }
    }
    stats
}

fn counters(counters: &plimsoll_balloon::Counters, breaks: u64) -> Counters {
    Counters {
        inflated_pages: counters.inflated_pages,
        deflated_pages: counters.deflated_pages,
        reported_pages: counters.reported_pages,
        discards: counters.discards,
        discarded_bytes: counters.discarded_bytes,
        whole_frames: counters.whole_frames,
        bad_buffers: counters.bad_buffers().saturating_add(breaks),
        bad_pages: counters.bad_pages(),
        discard_errors: counters.discard_errors,
    }
}
