//! A QEMU with its own balloon, over QMP.
//!
//! QEMU remembers a target for a driver that comes later, but does not tell it, and does not tell whether a
//! driver is there: that is concluded from statistics that arrive and from a balloon that moves.

use std::{path::PathBuf, sync::Arc, time::Duration};

use plimsoll_model::StatsSample;
use plimsoll_qmp::{BalloonDevice, BalloonStats, Event, QmpClient, QmpError, QmpSocket};
use plimsoll_units::{Bytes, MemTarget, MonoTime};

use super::agent::Ear;
use super::anew::Anew;
use super::backoff::Backoff;
use super::pager::PagerSlot;
use super::slot::{Errand, ErrandSlip};
use super::{Observation, PeerId, Slot};
use crate::clock;

/// How long connecting, and then greeting, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

const RECONNECT: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// QEMU asks the guest for statistics this often, in seconds.
const STATS_INTERVAL_S: u32 = 1;

/// Statistics are fetched at most this often: QEMU has none more often than [`STATS_INTERVAL_S`] says.
const STATS_PACE_MS: u64 = 900;

/// A target that is not reached is said again after so long: another program may have set its own meanwhile.
const REMIND_MS: u64 = 5_000;

/// How long a balloon is not let go because its pager does not answer. A back end that was killed is back sooner.
const PAGER_TIMEOUT: Duration = Duration::from_millis(500);

/// Resets that follow each other sooner than this are one new start of the guest.
const SAME_START_MS: u64 = 1_000;

/// Statistics that are older than this when a connection is made do not show that a driver runs.
const STALE_S: u64 = 10;

/// Where a VM is spoken to, and what it may claim.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    pub(crate) qmp: PathBuf,
    pub(crate) owner: u32,
    pub(crate) maxmem: Bytes,
}

/// Why a QEMU cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// What the QMP client says.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The listener belongs to somebody else; nothing was sent and nothing read.
    #[error("whoever listens at {} is user {found}, the VM belongs to user {owner}", path.display())]
    NotOwner {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        found: u32,
        /// Who should.
        owner: u32,
    },
}

/// A QEMU in command mode, its balloon found and its statistics switched on.
#[derive(Debug)]
pub(crate) struct Connection {
    client: QmpClient,
    balloon: BalloonDevice,
    peer: PeerId,
}

/// What a running QEMU says of its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What the guest was told it has.
    pub(crate) maxmem: Bytes,
    /// What it holds.
    pub(crate) actual: MemTarget,
}

impl Connection {
    /// Connects; hangs up without a byte sent or read unless `owner` listens there or is root.
    pub(crate) async fn open(qmp: PathBuf, owner: u32) -> Result<Self, OpenError> {
        let socket = QmpSocket::connect(&qmp, CONNECT_TIMEOUT).await?;
        let peer = socket.peer()?;
        if owner != 0 && peer.uid != owner {
            return Err(OpenError::NotOwner { path: qmp, found: peer.uid, owner });
        }
        let mut client = socket.handshake(CONNECT_TIMEOUT).await?;
        client.set_timeout(COMMAND_TIMEOUT);
        let balloon = client.find_balloon().await?;
        client.set_stats_interval(&balloon, STATS_INTERVAL_S).await?;
        Ok(Self { client, balloon, peer: PeerId { uid: peer.uid, pid: peer.pid } })
    }

    /// Who listens.
    pub(crate) const fn peer(&self) -> PeerId {
        self.peer
    }

    /// The guest as it is.
    pub(crate) async fn look(&mut self) -> Result<Found, QmpError> {
        let maxmem = self.client.query_memory_size().await?.total();
        let actual = self.client.query_balloon().await?;
        Ok(Found { maxmem, actual: MemTarget(actual.0.min(maxmem)) })
    }
}

/// What else knows of a guest: what hears the agent in it, and its pager, where there are such.
pub(crate) type Beside = (Option<Arc<Ear>>, Option<Arc<PagerSlot>>);

/// Speaks to a VM until it is dropped. `first` is a connection that was made already.
pub(crate) async fn drive(qemu: Qemu, slot: Arc<Slot>, mut first: Option<Connection>, beside: Beside) {
    let mut backoff = RECONNECT;
    let mut guest = Guest::new(qemu.maxmem, beside);
    loop {
        let connection = match first.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(qemu.qmp.clone(), qemu.owner).await,
        };
        let why = match connection {
            Ok(connection) => {
                slot.connected(connection.peer());
                guest.sent = None;
                serve(&slot, connection, &mut guest, &mut backoff).await
            }
            Err(error) => error.to_string(),
        };
        slot.disconnected(&why);
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// Answers questions and applies targets until the connection fails; says how it did.
async fn serve(slot: &Slot, mut connection: Connection, guest: &mut Guest, backoff: &mut Backoff) -> String {
    loop {
        let work = tokio::select! {
            work = slot.work() => work,
            event = connection.client.next_event() => match event {
                Ok(event) => {
                    guest.hear(&event);
                    match guest.begin_anew(&mut connection).await {
                        Err(error) if error.is_fatal() => return error.to_string(),
                        Ok(()) | Err(_) => continue,
                    }
                }
                Err(error) => return error.to_string(),
            },
        };
        if let Some(slip) = work.errand {
            connection = match run_errand(connection, slip).await {
                Some(connection) => connection,
                None => return "its QEMU was told to quit".into(),
            };
        }
        match guest.poll(&mut connection, slot, work.target).await {
            Ok(()) => backoff.succeeded(),
            Err(error) if error.is_fatal() => return error.to_string(),
            Err(error) => slot.trouble(&error.to_string()),
        }
    }
}

/// Does what an operator wants; the connection is used up by ending the VMM.
async fn run_errand(mut connection: Connection, (errand, answer): ErrandSlip) -> Option<Connection> {
    let (outcome, rest) = match errand {
        Errand::Powerdown => (connection.client.system_powerdown().await, Some(connection)),
        Errand::Quit => (connection.client.quit().await, None),
    };
    // The one who asked may have gone.
    let _ = answer.send(outcome.map_err(|e| e.to_string()));
    rest
}

/// What is known of the guest beyond what QEMU tells at once.
#[derive(Debug)]
struct Guest {
    maxmem: Bytes,
    generation: u64,
    /// A driver has shown itself since the last reset.
    driver_up: bool,
    /// The balloon before any driver of this generation could move it.
    at_rest: MemTarget,
    actual: MemTarget,
    /// QEMU's time of the last statistics, in seconds since 1970.
    update_s: Option<u64>,
    stats: Option<StatsSample>,
    fetched: Option<MonoTime>,
    sent: Option<(MemTarget, MonoTime)>,
    /// When the machine was last reset.
    reset_at: Option<MonoTime>,
    /// Hears its agent.
    ear: Option<Arc<Ear>>,
    /// Where its memory is populated on demand.
    pager: Option<Arc<PagerSlot>>,
    /// A new start of such a guest.
    anew: Anew,
}

impl Guest {
    fn new(maxmem: Bytes, (ear, pager): Beside) -> Self {
        let whole = MemTarget(maxmem);
        Self {
            maxmem,
            generation: 1,
            driver_up: false,
            at_rest: whole,
            actual: whole,
            update_s: None,
            stats: None,
            fetched: None,
            sent: None,
            reset_at: None,
            ear,
            pager,
            anew: Anew::default(),
        }
    }

    fn hear(&mut self, event: &Event) {
        if let Event::Reset { at_us, .. } = event {
            if self.pager.is_some() {
                self.anew.begin(*at_us, clock::now());
            }
            // Firmware that finds itself started before resets the machine once more: that is no other new start.
            let now = clock::now();
            let again = self.reset_at.replace(now).is_some_and(|last| now.millis_since(last) < SAME_START_MS);
            if !again {
                self.generation = self.generation.saturating_add(1);
            }
            self.driver_up = false;
            // QEMU goes on telling the old guest's balloon until a new driver writes its own.
            self.at_rest = self.actual;
            self.stats = None;
            self.sent = None;
            if let Some(ear) = &self.ear {
                ear.forget();
            }
        }
    }

    /// Sets the target if need be, and looks.
    async fn poll(&mut self, on: &mut Connection, slot: &Slot, target: MemTarget) -> Result<(), QmpError> {
        while let Some(event) = on.client.pop_event() {
            self.hear(&event);
        }
        self.begin_anew(on).await?;
        let now = clock::now();
        if self.must_send(target, now) {
            // The guest may touch what the balloon gives back: its pager must know before.
            if let Some(pager) =
                self.pager.as_ref().filter(|_| self.sent.is_some_and(|(sent, _)| sent < target))
            {
                pager.reaches(target, PAGER_TIMEOUT).await;
            }
            match on.client.set_target(target).await {
                Ok(()) => self.sent = Some((target, now)),
                Err(error) => {
                    slot.failed(target, &error.to_string());
                    return Err(error);
                }
            }
        }
        let actual = on.client.query_balloon().await?;
        let fetch = self.fetched.is_none_or(|at| now.millis_since(at) >= STATS_PACE_MS);
        let stats = if fetch { Some(on.client.guest_stats(&on.balloon).await?) } else { None };
        self.note(actual, stats, clock::now(), clock::wall_us() / 1_000_000);
        if let Some(pager) = &self.pager {
            pager.guest_holds(self.driver_up.then_some(self.actual));
        }
        slot.observed(self.observation(clock::now()));
        if actual.0 > self.maxmem {
            let ours = self.maxmem;
            slot.trouble(&format!(
                "its QEMU says the guest holds {actual}, it was registered with maxmem {ours}"
            ));
        }
        Ok(())
    }

    /// Empties the memory of a guest that was just reset, where it is populated on demand.
    async fn begin_anew(&mut self, on: &mut Connection) -> Result<(), QmpError> {
        match &self.pager {
            Some(pager) if self.anew.is_due() => self.anew.go_on(&mut on.client, pager).await,
            Some(_) | None => Ok(()),
        }
    }

    fn must_send(&self, target: MemTarget, now: MonoTime) -> bool {
        self.sent.is_none_or(|(sent, at)| {
            sent != target || (self.driver_up && self.actual != target && now.millis_since(at) >= REMIND_MS)
        })
    }

    fn note(&mut self, actual: MemTarget, stats: Option<BalloonStats>, now: MonoTime, wall_s: u64) {
        self.actual = MemTarget(actual.0.min(self.maxmem));
        self.driver_up |= self.actual != self.at_rest;
        let Some(fetched) = stats else { return };
        let first = self.fetched.replace(now).is_none();
        let Some(update_s) = fetched.last_update_s else { return };
        if self.update_s == Some(update_s) {
            return;
        }
        self.update_s = Some(update_s);
        let age_s = if first { wall_s.saturating_sub(update_s) } else { 0 };
        if age_s <= STALE_S {
            self.driver_up = true;
            let at = MonoTime(now.0.saturating_sub(age_s.saturating_mul(1_000_000)));
            self.stats = Some(StatsSample { at, stats: fetched.stats });
        }
    }

    fn observation(&self, at: MonoTime) -> Observation {
        let actual = if self.driver_up { self.actual } else { MemTarget(self.maxmem) };
        Observation {
            at,
            driver_up: self.driver_up,
            actual,
            resident: None,
            stats: self.stats,
            agent: self.ear.as_ref().and_then(|ear| ear.sample()),
            agent_line: self.ear.as_ref().map(|ear| ear.counters()),
            generation: self.generation,
            epoch: 0,
            backend: None,
        }
    }
}

#[cfg(test)]
mod test {
    use plimsoll_model::GuestStats;

    use super::*;

    const WALL: u64 = 1_800_000_000;
    const MAXMEM: Bytes = Bytes::mib(256);

    fn stats(update_s: u64) -> Option<BalloonStats> {
        let stats = GuestStats { free: Some(Bytes::mib(9)), ..GuestStats::default() };
        Some(BalloonStats { last_update_s: Some(update_s).filter(|s| *s > 0), stats })
    }

    fn whole() -> MemTarget {
        MemTarget(MAXMEM)
    }

    #[test]
    fn a_driver_shows_itself_by_statistics_or_by_moving() {
        let mut guest = Guest::new(MAXMEM, (None, None));
        guest.note(whole(), stats(0), MonoTime(1), WALL);
        assert!(!guest.driver_up);
        guest.note(whole(), stats(WALL), MonoTime(2), WALL);
        assert!(guest.driver_up && guest.stats.is_some());

        let mut guest = Guest::new(MAXMEM, (None, None));
        guest.note(MemTarget(Bytes::mib(200)), None, MonoTime(1), WALL);
        assert!(guest.driver_up);
    }

    #[test]
    fn statistics_of_long_ago_show_no_driver() {
        let mut guest = Guest::new(MAXMEM, (None, None));
        guest.note(whole(), stats(WALL - 60), MonoTime(1), WALL);
        assert!(!guest.driver_up && guest.stats.is_none());
        guest.note(whole(), stats(WALL - 60), MonoTime(2), WALL);
        assert!(!guest.driver_up);
        guest.note(whole(), stats(WALL), MonoTime(3), WALL);
        assert!(guest.driver_up);
    }

    #[test]
    fn a_reset_forgets_the_guest_and_sends_the_target_again() {
        let mut guest = Guest::new(MAXMEM, (None, None));
        let low = MemTarget(Bytes::mib(100));
        guest.note(low, stats(WALL), MonoTime(1), WALL);
        guest.sent = Some((low, MonoTime(1)));
        assert!(!guest.must_send(low, MonoTime(2)));
        guest.hear(&Event::Reset { guest: true, at_us: None });
        assert!(guest.must_send(low, MonoTime(2)));
        // The old guest's balloon is still told, and means nothing.
        guest.note(low, stats(WALL), MonoTime(3), WALL);
        let seen = guest.observation(MonoTime(3));
        assert_eq!((seen.driver_up, seen.actual, seen.stats, seen.generation), (false, whole(), None, 2));
        guest.note(MemTarget(Bytes::mib(250)), None, MonoTime(4), WALL);
        assert!(guest.observation(MonoTime(4)).driver_up);
        guest.hear(&Event::Reset { guest: true, at_us: None });
        assert_eq!(guest.observation(MonoTime(5)).generation, 2, "SeaBIOS resets once more by itself");
    }

    #[test]
    fn a_target_that_somebody_else_changed_is_said_again() {
        let mut guest = Guest::new(MAXMEM, (None, None));
        let low = MemTarget(Bytes::mib(100));
        guest.note(MemTarget(Bytes::mib(180)), None, MonoTime(1), WALL);
        guest.sent = Some((low, MonoTime(0)));
        assert!(!guest.must_send(low, MonoTime(1_000_000)));
        assert!(guest.must_send(low, MonoTime(5_000_000)));
        assert!(guest.must_send(MemTarget(Bytes::mib(99)), MonoTime(1)));
    }

    #[test]
    fn a_guest_that_claims_more_than_it_was_told_is_cut() {
        let mut guest = Guest::new(MAXMEM, (None, None));
        guest.note(MemTarget(Bytes(u64::MAX)), None, MonoTime(1), WALL);
        assert_eq!(guest.observation(MonoTime(1)).actual, whole());
    }
}
