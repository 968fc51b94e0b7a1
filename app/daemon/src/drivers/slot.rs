//! What a VM's driver and the tick share: the latest observation one way, the target the other way.
//!
//! Nothing here waits. The lock is held for moments and never across an await, so that a VM that hangs hangs
//! its own driver and nothing else.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use plimsoll_api::control::AgentCounters;
use plimsoll_api::http::BackendView;
use plimsoll_model::{AgentSample, StatsSample};
use plimsoll_units::{Bytes, MemTarget, MonoTime};
use tokio::sync::{Notify, oneshot};

/// What a VM's driver saw last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// When.
    pub(crate) at: MonoTime,
    /// Whether the guest's balloon driver runs.
    pub(crate) driver_up: bool,
    /// What the guest holds: at most its maxmem.
    pub(crate) actual: MemTarget,
    /// Host memory behind it, where the driver can tell.
    pub(crate) resident: Option<Bytes>,
    /// The guest's word.
    pub(crate) stats: Option<StatsSample>,
    /// The word of the agent in the guest.
    pub(crate) agent: Option<AgentSample>,
    /// What came over its line; `None` where there is none.
    pub(crate) agent_line: Option<AgentCounters>,
    /// Rises when the guest is rebooted; 0 before a VMM was there at all.
    pub(crate) generation: u64,
    /// Rises when a back end is started; 0 where there is none.
    pub(crate) epoch: u64,
    /// What the back end tells of itself.
    pub(crate) backend: Option<BackendView>,
}

/// Who listens at a VM's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerId {
    /// The user.
    pub(crate) uid: u32,
    /// The process, where it can be seen from here.
    pub(crate) pid: Option<u32>,
}

/// One collection: done when every VM that was asked has answered or given up.
#[derive(Debug, Default)]
pub(crate) struct Round {
    left: AtomicUsize,
    done: Notify,
}

/// A VM's part in a [`Round`]; dropping it is the answer.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<Round>);

impl Round {
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        self.left.fetch_add(1, Ordering::Relaxed);
        Ticket(Arc::clone(self))
    }

    /// Waits until all tickets are back, `limit` at most.
    pub(crate) async fn finished(&self, limit: Duration) {
        let all_back = async {
            while self.left.load(Ordering::Relaxed) > 0 {
                self.done.notified().await;
            }
        };
        // Who is late is simply not fresh: the age of its observation tells.
        let _ = tokio::time::timeout(limit, all_back).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.done.notify_one();
        }
    }
}

/// Something an operator wants of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Ask the guest to power down.
    Powerdown,
    /// End the VMM.
    Quit,
}

/// An errand and where its outcome is awaited.
pub(crate) type ErrandSlip = (Errand, oneshot::Sender<Result<(), String>>);

/// What a driver is to do next.
#[derive(Debug)]
pub(crate) struct Work {
    /// The target that should be in force.
    pub(crate) target: MemTarget,
    /// What an operator wants.
    pub(crate) errand: Option<ErrandSlip>,
    /// Dropped when the VM has been asked.
    pub(crate) _ticket: Option<Ticket>,
}

/// The shared part.
#[derive(Debug)]
pub(crate) struct Slot {
    state: Mutex<State>,
    poke: Notify,
}

#[derive(Debug)]
struct State {
    target: MemTarget,
    /// The driver has something to do.
    due: bool,
    ticket: Option<Ticket>,
    /// At most one at a time: a second one is refused.
    errand: Option<ErrandSlip>,
    connected: bool,
    /// Its guest cannot wait, and was not asked since.
    alarmed: bool,
    seen: Option<Observation>,
    problem: Option<String>,
    /// Why the target could not be set the last time, not yet taken for the journal.
    failure: Option<(MemTarget, String)>,
    peer: Option<PeerId>,
}

/// What the tick takes out of a slot.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) seen: Option<Observation>,
    pub(crate) problem: Option<String>,
    pub(crate) failure: Option<(MemTarget, String)>,
    pub(crate) peer: Option<PeerId>,
}

impl Slot {
    pub(crate) fn new(target: MemTarget) -> Arc<Self> {
        let state = State {
            target,
            due: true,
            ticket: None,
            errand: None,
            connected: false,
            alarmed: false,
            seen: None,
            problem: None,
            failure: None,
            peer: None,
        };
        Arc::new(Self { state: Mutex::new(state), poke: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a fresh observation. A driver without a connection, or one that is still busy with the last
    /// question, is not waited for.
    pub(crate) fn ask(&self, round: &Arc<Round>) {
        let mut state = self.state();
        if state.connected && !state.due && state.ticket.is_none() {
            state.ticket = Some(round.ticket());
        }
        state.due = true;
        state.alarmed = false;
        drop(state);
        self.poke.notify_one();
    }

    /// Asks for a fresh observation, which nobody waits for.
    pub(crate) fn nudge(&self) {
        self.state().due = true;
        self.poke.notify_one();
    }

    /// Whether there is nothing new to be expected of it: it was seen within this time, holds what it should, and its
    /// guest has not called.
    pub(crate) fn rests(&self, now: MonoTime, within: Duration) -> bool {
        let state = self.state();
        let (recent, target) = (u64::try_from(within.as_micros()).unwrap_or(u64::MAX), state.target.0);
        state.seen.as_ref().is_some_and(|seen| {
            let off = seen.actual.0.minus(target).plus(target.minus(seen.actual.0));
            now.micros_since(seen.at) < recent && off < Bytes::mib(1)
        }) && !state.alarmed
    }

    /// The guest cannot wait.
    pub(crate) fn alarm(&self) {
        self.state().alarmed = true;
    }

    /// Sets the target; the driver applies it at once, and again whenever the guest has lost it.
    pub(crate) fn set_target(&self, target: MemTarget) {
        let mut state = self.state();
        if state.target != target {
            state.target = target;
            state.due = true;
            drop(state);
            self.poke.notify_one();
        }
    }

    /// Leaves an errand for the driver.
    pub(crate) fn send(&self, errand: Errand) -> Result<oneshot::Receiver<Result<(), String>>, String> {
        let mut state = self.state();
        if !state.connected {
            let why = state.problem.clone().unwrap_or_else(|| "there is no connection to it".into());
            return Err(why);
        }
        if state.errand.as_ref().is_some_and(|(_, waiting)| !waiting.is_closed()) {
            return Err("it is still busy with the last request".into());
        }
        let (sender, receiver) = oneshot::channel();
        state.errand = Some((errand, sender));
        state.due = true;
        drop(state);
        self.poke.notify_one();
        Ok(receiver)
    }

    /// What is known now.
    pub(crate) fn read(&self) -> Reading {
        let mut state = self.state();
        Reading {
            seen: state.seen.clone(),
            problem: state.problem.clone(),
            failure: state.failure.take(),
            peer: state.peer,
        }
    }

    // The driver's side.

    /// Waits for something to do. Safe to cancel: nothing is taken before the last step.
    pub(crate) async fn work(&self) -> Work {
        loop {
            {
                let mut state = self.state();
                if std::mem::take(&mut state.due) {
                    let (errand, ticket) = (state.errand.take(), state.ticket.take());
                    return Work { target: state.target, errand, _ticket: ticket };
                }
            }
            self.poke.notified().await;
        }
    }

    /// The target as it stands.
    pub(crate) fn target(&self) -> MemTarget {
        self.state().target
    }

    /// A connection was made; there is something to do at once.
    pub(crate) fn connected(&self, peer: PeerId) {
        let mut state = self.state();
        state.connected = true;
        state.peer = Some(peer);
        state.due = true;
    }

    /// The connection was lost, or could not be made.
    pub(crate) fn disconnected(&self, why: &str) {
        let mut state = self.state();
        state.connected = false;
        state.problem = Some(harmless(why));
        // Nobody will answer these now.
        state.ticket = None;
        state.errand = None;
    }

    /// An observation was made, so nothing is wrong any more.
    pub(crate) fn observed(&self, observation: Observation) {
        let mut state = self.state();
        state.seen = Some(observation);
        state.problem = None;
    }

    /// Something went wrong that leaves the connection usable.
    pub(crate) fn trouble(&self, why: &str) {
        self.state().problem = Some(harmless(why));
    }

    /// The target could not be set.
    pub(crate) fn failed(&self, target: MemTarget, why: &str) {
        let mut state = self.state();
        state.problem = Some(harmless(why));
        state.failure = Some((target, harmless(why)));
    }

    /// Who answered last.
    pub(crate) fn peer(&self) -> Option<PeerId> {
        self.state().peer
    }
}

/// A text that may be a peer's own words: cut, and without anything that a terminal would obey.
pub(super) fn harmless(text: &str) -> String {
    const LONGEST: usize = 300;
    text.chars().take(LONGEST).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    const PEER: PeerId = PeerId { uid: 0, pid: None };

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_round_waits_for_connected_drivers_only() {
        runtime().block_on(async {
            let (up, down) = (Slot::new(MemTarget::default()), Slot::new(MemTarget::default()));
            up.connected(PEER);
            drop(up.work().await);
            let round = Arc::new(Round::default());
            up.ask(&round);
            down.ask(&round);
            let mut waiting = tokio::spawn(async move { round.finished(Duration::from_secs(60)).await });
            tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.unwrap_err();
            drop(up.work().await);
            tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        });
    }

    #[test]
    fn only_who_has_something_to_say_is_asked_out_of_turn() {
        let target = MemTarget(Bytes::mib(64));
        let slot = Slot::new(target);
        let (now, second) = (MonoTime(10_000_000), Duration::from_secs(1));
        assert!(!slot.rests(now, second), "it was never seen");
        let seen = |at, actual| Observation {
            at,
            driver_up: true,
            actual: MemTarget(actual),
            resident: None,
            stats: None,
            agent: None,
            agent_line: None,
            generation: 1,
            epoch: 1,
            backend: None,
        };
        slot.observed(seen(MonoTime(9_500_000), target.0));
        assert!(slot.rests(now, second));
        assert!(!slot.rests(now, second / 2), "that was too long ago");
        slot.observed(seen(MonoTime(9_500_000), Bytes::mib(70)));
        assert!(!slot.rests(now, second), "it moves");
        slot.observed(seen(MonoTime(9_500_000), target.0));
        slot.alarm();
        assert!(!slot.rests(now, second), "its guest called");
        slot.ask(&Arc::new(Round::default()));
        assert!(slot.rests(now, second));
    }

    #[test]
    fn a_driver_that_hangs_delays_one_round_and_no_other() {
        runtime().block_on(async {
            let slot = Slot::new(MemTarget::default());
            slot.connected(PEER);
            drop(slot.work().await);
            let first = Arc::new(Round::default());
            slot.ask(&first);
            let second = Arc::new(Round::default());
            slot.ask(&second);
            tokio::time::timeout(Duration::from_secs(5), second.finished(Duration::from_secs(60)))
                .await
                .unwrap();
            slot.disconnected("gone");
            tokio::time::timeout(Duration::from_secs(5), first.finished(Duration::from_secs(60)))
                .await
                .unwrap();
        });
    }

    #[test]
    fn errands_need_a_connection_and_come_one_at_a_time() {
        runtime().block_on(async {
            let slot = Slot::new(MemTarget::default());
            assert!(slot.send(Errand::Quit).unwrap_err().contains("no connection"));
            slot.connected(PEER);
            let first = slot.send(Errand::Powerdown).unwrap();
            assert!(slot.send(Errand::Quit).unwrap_err().contains("busy"));
            drop(first);
            let second = slot.send(Errand::Quit).unwrap();
            let (errand, answer) = slot.work().await.errand.unwrap();
            assert_eq!(errand, Errand::Quit);
            answer.send(Ok(())).unwrap();
            assert_eq!(second.await.unwrap(), Ok(()));
        });
    }

    #[test]
    fn a_peers_words_are_cut_and_cannot_steer_a_terminal() {
        let slot = Slot::new(MemTarget::default());
        slot.trouble(&format!("\u{1b}[2J\n{}", "x".repeat(1000)));
        let problem = slot.read().problem.unwrap();
        assert_eq!(problem.chars().count(), 300);
        assert!(!problem.contains(char::is_control));
    }

    #[test]
    fn a_failure_is_told_once_and_a_problem_until_it_is_over() {
        let slot = Slot::new(MemTarget::default());
        slot.failed(MemTarget(Bytes(7)), "no");
        assert_eq!(slot.read().failure, Some((MemTarget(Bytes(7)), "no".into())));
        let again = slot.read();
        assert_eq!((again.failure, again.problem), (None, Some("no".into())));
    }
}
