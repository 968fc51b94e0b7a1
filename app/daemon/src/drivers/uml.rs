//! A User Mode Linux behind a keeper: one request a tick on its back end's control socket.

use std::{path::PathBuf, sync::Arc, time::Duration};

use plimsoll_api::control::{AgentCounters, Op, Status};
use plimsoll_api::http::BackendView;
use plimsoll_model::{AgentSample, StatsSample};
use plimsoll_units::{BalloonSize, Bytes, MemTarget, MonoTime};

use super::backoff::Backoff;
use super::control::{Connection, Failure};
use super::{Observation, Slot, same_moment};
use crate::clock;

/// The back end asks its guest for statistics this often, in milliseconds.
const STATS_INTERVAL_MS: u32 = 1000;

/// A back end restarts within some 10 ms; one that does not come back is looked for every 5 s.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// Where a VM is spoken to, and what it may claim.
#[derive(Clone, Debug)]
pub(crate) struct Uml {
    pub(crate) control: PathBuf,
    pub(crate) owner: u32,
    pub(crate) maxmem: Bytes,
}

/// Speaks to a VM until it is dropped. `first` is a connection that was made already.
pub(crate) async fn drive(uml: Uml, slot: Arc<Slot>, mut first: Option<Connection>) {
    let mut backoff = RECONNECT;
    loop {
        let connection = match first.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(uml.control.clone(), uml.owner).await,
        };
        let failure = match connection {
            Ok(connection) => {
                slot.connected(connection.peer());
                serve(&uml, &slot, connection, &mut backoff).await
            }
            Err(failure) => failure,
        };
        slot.disconnected(&failure.to_string());
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// Answers questions and applies targets until the connection fails.
async fn serve(uml: &Uml, slot: &Slot, mut connection: Connection, backoff: &mut Backoff) -> Failure {
    let mut guest = Guest { uml, slot, seen: None, pages: None };
    let mut fresh = true;
    loop {
        let work = slot.work().await;
        if let Some((_, answer)) = work.errand {
            let no = "a User Mode Linux is stopped through its own console socket, not through the daemon";
            // The one who asked may have gone.
            let _ = answer.send(Err(no.into()));
        }
        let pages = work.target.balloon(uml.maxmem);
        let op = match guest.pages {
            _ if fresh => Op::StatsInterval { ms: STATS_INTERVAL_MS },
            Some(in_force) if in_force != pages => Op::SetBalloon { pages },
            _ => Op::Status,
        };
        if let Err(failure) = guest.ask(&mut connection, op).await {
            return failure;
        }
        // A target that turns out not to be in force (a new back end, a new guest) is set now, not at the next tick.
        let lost = guest.pages.is_some_and(|in_force| in_force != pages);
        if lost && !matches!(op, Op::SetBalloon { .. }) {
            let again = Op::SetBalloon { pages };
            if let Err(failure) = guest.ask(&mut connection, again).await {
                return failure;
            }
        }
        fresh = false;
        backoff.succeeded();
    }
}

/// What was last heard of a VM.
struct Guest<'a> {
    uml: &'a Uml,
    slot: &'a Slot,
    seen: Option<Observation>,
    /// The balloon its back end asks for.
    pages: Option<BalloonSize>,
}

impl Guest<'_> {
    /// One request; a refusal is noted, and the next tick tries again.
    async fn ask(&mut self, connection: &mut Connection, op: Op) -> Result<(), Failure> {
        match connection.exchange(op).await? {
            Ok(status) => self.take_in(&status),
            Err(refusal) => {
                let message = refusal.message;
                let target = match op {
                    Op::SetBalloon { pages } => MemTarget::from_balloon(self.uml.maxmem, pages),
                    Op::SetTarget { target } => target,
                    Op::Status
                    | Op::StatsInterval { .. }
                    | Op::AwaitAgent { .. }
                    | Op::AwaitPager { .. }
                    | Op::Sweep
                    | Op::Reset => self.slot.target(),
                };
                self.slot.failed(target, &format!("its back end refused a request: {message}"));
            }
        }
        Ok(())
    }

    fn take_in(&mut self, status: &Status) {
        let ours = self.uml.maxmem;
        let seen = observe(status, ours, clock::now(), self.seen.as_ref());
        self.pages = Some(status.num_pages);
        self.seen = Some(seen.clone());
        self.slot.observed(seen);
        if status.maxmem != Bytes::ZERO && status.maxmem != ours {
            let theirs = status.maxmem;
            self.slot.trouble(&format!(
                "its back end was started with maxmem {theirs}, it was registered with {ours}"
            ));
        }
    }
}

/// What a status says, bounded by what the VM was registered with.
fn observe(status: &Status, maxmem: Bytes, now: MonoTime, before: Option<&Observation>) -> Observation {
    let at = MonoTime(now.0.saturating_sub(status.stats_age_ms.saturating_mul(1000)));
    let known = before.and_then(|b| b.stats);
    let stats = status.stats.filter(|_| status.driver_ready).map(|stats| match known {
        // The age is in whole milliseconds, so the same statistics would seem to come at another moment.
        Some(known) if known.stats == stats && same_moment(known.at, at) => known,
        _ => StatsSample { at, stats },
    });
    let agent = status.agent.map(|stats| {
        let at = MonoTime(now.0.saturating_sub(status.agent_age_ms.saturating_mul(1000)));
        match before {
            // The age is in whole milliseconds, so the same report would seem to come at another moment.
            Some(known) if same_report(known, status) => known.agent.unwrap_or(AgentSample { at, stats }),
            _ => AgentSample { at, stats },
        }
    });
    Observation {
        at: now,
        driver_up: status.driver_ready,
        actual: MemTarget::from_balloon(maxmem, status.actual),
        resident: Some(status.resident.min(maxmem)),
        stats,
        agent,
        agent_line: status.agent_counters,
        generation: status.generation,
        epoch: status.epoch,
        backend: Some(BackendView {
            epoch: status.epoch,
            generation: status.generation,
            ledger: status.ledger,
            counters: status.counters,
        }),
    }
}

/// Whether the latest report of the agent is the one that was known before.
fn same_report(known: &Observation, status: &Status) -> bool {
    let frames = |line: Option<AgentCounters>| line.map(|line| line.frames);
    (known.generation, known.epoch, frames(known.agent_line))
        == (status.generation, status.epoch, frames(status.agent_counters))
}

#[cfg(test)]
mod test {
    use plimsoll_model::{AgentStats, GuestStats};
    use plimsoll_units::PageCount;
    use proptest::prelude::*;

    use super::*;

    fn status(actual: u64, resident: u64, age_ms: u64) -> Status {
        Status {
            driver_ready: true,
            actual: BalloonSize(PageCount(actual)),
            resident: Bytes(resident),
            stats: Some(GuestStats { free: Some(Bytes(1)), ..GuestStats::default() }),
            stats_age_ms: age_ms,
            ..Status::default()
        }
    }

    #[test]
    fn the_same_statistics_keep_their_moment() {
        let maxmem = Bytes::mib(64);
        let first = observe(&status(0, 0, 400), maxmem, MonoTime(5_000_000), None);
        assert_eq!(first.stats.unwrap().at, MonoTime(4_600_000));
        let again = observe(&status(0, 0, 501), maxmem, MonoTime(5_100_900), Some(&first));
        assert_eq!(again.stats, first.stats);
        let fresh = observe(&status(0, 0, 10), maxmem, MonoTime(6_000_000), Some(&again));
        assert_eq!(fresh.stats.unwrap().at, MonoTime(5_990_000));
    }

    #[test]
    fn a_report_keeps_its_moment_until_another_comes_and_dies_with_its_guest() {
        let maxmem = Bytes::mib(64);
        let said = |frames, age_ms, generation| Status {
            agent: Some(AgentStats { free: Some(Bytes(7)), ..AgentStats::default() }),
            agent_age_ms: age_ms,
            agent_counters: Some(AgentCounters { frames, ..AgentCounters::default() }),
            generation,
            ..status(0, 0, 0)
        };
        let first = observe(&said(5, 400, 1), maxmem, MonoTime(5_000_000), None);
        assert_eq!(first.agent.unwrap().at, MonoTime(4_600_000));
        let again = observe(&said(5, 500, 1), maxmem, MonoTime(5_100_900), Some(&first));
        assert_eq!(again.agent, first.agent);
        let next = observe(&said(6, 0, 1), maxmem, MonoTime(5_200_000), Some(&again));
        assert_eq!(next.agent.unwrap().at, MonoTime(5_200_000));
        let another = observe(&said(6, 0, 2), maxmem, MonoTime(5_300_000), Some(&next));
        assert_eq!(another.agent.unwrap().at, MonoTime(5_300_000));
        let silent = Status { agent: None, ..said(6, 0, 2) };
        assert_eq!(observe(&silent, maxmem, MonoTime(5_400_000), Some(&another)).agent, None);
    }

    #[test]
    fn statistics_of_a_driver_that_is_gone_are_dropped() {
        let gone = Status { driver_ready: false, ..status(0, 0, 0) };
        assert_eq!(observe(&gone, Bytes::mib(64), MonoTime(5), None).stats, None);
    }

    proptest! {
        #[test]
        fn whatever_a_back_end_says_stays_within_maxmem(actual: u64, resident: u64, age: u64, now: u64) {
            let maxmem = Bytes::mib(64);
            let status = Status {
                agent: Some(AgentStats::default()),
                agent_age_ms: age.rotate_left(7),
                ..status(actual, resident, age)
            };
            let seen = observe(&status, maxmem, MonoTime(now), None);
            prop_assert!(seen.agent.unwrap().at <= seen.at);
            prop_assert!(seen.actual.0 <= maxmem);
            prop_assert!(seen.resident.unwrap() <= maxmem);
            prop_assert!(seen.stats.unwrap().at <= seen.at);
        }
    }
}
