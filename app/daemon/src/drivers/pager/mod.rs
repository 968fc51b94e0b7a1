//! The pager of a VM whose memory is populated on demand.
//!
//! It is spoken to by a task of its own, beside the one that speaks QMP: a guest that waits for memory may make its VMM
//! wait too, and then what ends the wait must not depend on the VMM's answers.
//!
//! What a pager enforces follows the target. Upwards at once, and before the balloon is let go, so that the guest may
//! touch what it is given. Downwards with the balloon: a guest that has not yet given up what it was asked for would be
//! stopped at its next page, and could not give up any more. Without a driver there is no balloon to wait for.

mod drive;
mod empty;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use plimsoll_api::control::PagerStatus;
use plimsoll_units::{Bytes, MemTarget, MonoTime};
use tokio::sync::{Notify, watch};

pub(crate) use drive::{drive, listen};
pub(crate) use empty::{Emptied, empty};

use super::PeerId;
use super::slot::{Round, Ticket, harmless};

/// Where a VM's pager is spoken to, and what it may claim.
#[derive(Clone, Debug)]
pub(crate) struct Pager {
    pub(crate) control: PathBuf,
    pub(crate) owner: u32,
    pub(crate) maxmem: Bytes,
}

/// What a pager said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PagerSeen {
    /// When.
    pub(crate) at: MonoTime,
    /// Rises when its back end is started anew.
    pub(crate) epoch: u64,
    /// Its words, their sizes cut to the VM's maxmem.
    pub(crate) status: PagerStatus,
}

/// What the tick takes out of a slot.
#[derive(Clone, Debug)]
pub(crate) struct PagerReading {
    pub(crate) seen: Option<PagerSeen>,
    pub(crate) problem: Option<String>,
    /// Why the target could not be set, told once.
    pub(crate) failure: Option<(MemTarget, String)>,
    pub(crate) peer: Option<PeerId>,
}

/// What the tick, the task that speaks QMP and the one that speaks to the pager share. Nothing here waits under the lock.
#[derive(Debug)]
pub(crate) struct PagerSlot {
    /// Where it is spoken to.
    of: Pager,
    state: Mutex<State>,
    poke: Notify,
    /// What the pager has said it enforces.
    in_force: watch::Sender<Option<MemTarget>>,
}

#[derive(Debug)]
struct State {
    /// What was decided.
    target: MemTarget,
    /// What the guest holds, while its driver runs.
    holds: Option<MemTarget>,
    due: bool,
    connected: bool,
    ticket: Option<Ticket>,
    seen: Option<PagerSeen>,
    problem: Option<String>,
    failure: Option<(MemTarget, String)>,
    peer: Option<PeerId>,
    /// Nobody will ever answer again.
    lost: bool,
}

impl State {
    /// What the pager is to enforce now.
    fn wish(&self) -> MemTarget {
        enforced(self.target, self.seen.map(|seen| seen.status.target), self.holds)
    }

    /// Whether it does not.
    fn is_off(&self) -> bool {
        self.seen.is_some_and(|seen| seen.status.target != self.wish())
    }
}

/// What a pager is to enforce for a `target`, when it enforces `now` and the guest, whose driver runs, holds `holds`.
fn enforced(target: MemTarget, now: Option<MemTarget>, holds: Option<MemTarget>) -> MemTarget {
    match (now, holds) {
        (Some(now), Some(holds)) if target < now => target.max(holds.min(now)),
        _ => target,
    }
}

impl PagerSlot {
    pub(crate) fn new(of: Pager, target: MemTarget) -> Arc<Self> {
        let state = State {
            target,
            holds: None,
            due: true,
            connected: false,
            ticket: None,
            seen: None,
            problem: None,
            failure: None,
            peer: None,
            lost: false,
        };
        Arc::new(Self {
            of,
            state: Mutex::new(state),
            poke: Notify::new(),
            in_force: watch::Sender::new(None),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a fresh word; a pager that is not connected, or still busy, is not waited for.
    pub(crate) fn ask(&self, round: &Arc<Round>) {
        let mut state = self.state();
        if state.connected && !state.due && state.ticket.is_none() {
            state.ticket = Some(round.ticket());
        }
        state.due = true;
        drop(state);
        self.poke.notify_one();
    }

    /// Sets the target; it is enforced as the module says.
    pub(crate) fn set_target(&self, target: MemTarget) {
        self.change(|state| state.target = target);
    }

    /// What the guest holds by its balloon; `None` while its driver does not run.
    pub(crate) fn guest_holds(&self, holds: Option<MemTarget>) {
        self.change(|state| state.holds = holds.map(|holds| MemTarget(holds.0.pages_ceil().bytes())));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let before = state.wish();
        change(&mut state);
        if state.wish() != before {
            state.due = true;
            drop(state);
            self.poke.notify_one();
        }
    }

    /// Waits until the pager enforces no less than `target`, `within` at most: then the balloon may be let go.
    pub(crate) async fn reaches(&self, target: MemTarget, within: Duration) {
        if self.state().lost {
            return;
        }
        let mut in_force = self.in_force.subscribe();
        let there = in_force.wait_for(|now| now.is_some_and(|now| now >= target));
        // One that does not answer is shown as such; the guest is not kept waiting for it.
        let _ = tokio::time::timeout(within, there).await;
    }

    /// What is known now.
    pub(crate) fn read(&self) -> PagerReading {
        let mut state = self.state();
        PagerReading {
            seen: state.seen,
            problem: state.problem.clone(),
            failure: state.failure.take(),
            peer: state.peer,
        }
    }

    /// The pager is gone for good.
    pub(crate) fn lose(&self) {
        self.state().lost = true;
    }

    /// Where it is spoken to; `None` once it is gone for good.
    pub(crate) fn address(&self) -> Option<&Pager> {
        (!self.state().lost).then_some(&self.of)
    }

    // The task's side.

    /// Waits for something to do. Safe to cancel: nothing is taken before the last step.
    async fn work(&self) -> Option<Ticket> {
        loop {
            {
                let mut state = self.state();
                if std::mem::take(&mut state.due) {
                    return state.ticket.take();
                }
            }
            self.poke.notified().await;
        }
    }

    /// What is to be enforced, if the pager enforces something else or was not heard yet.
    fn wanted(&self) -> Option<MemTarget> {
        let state = self.state();
        (state.seen.is_none() || state.is_off()).then(|| state.wish())
    }

    fn connected(&self, peer: PeerId) {
        let mut state = self.state();
        state.connected = true;
        state.peer = Some(peer);
        state.due = true;
    }

    fn disconnected(&self, why: &str) {
        let mut state = self.state();
        state.connected = false;
        state.problem = Some(harmless(why));
        state.ticket = None;
        drop(state);
        self.in_force.send_replace(None);
    }

    fn observed(&self, seen: PagerSeen) {
        let mut state = self.state();
        state.seen = Some(seen);
        state.problem = None;
        drop(state);
        self.in_force.send_replace(Some(seen.status.target));
    }

    fn failed(&self, target: Option<MemTarget>, why: &str) {
        let mut state = self.state();
        state.problem = Some(harmless(why));
        state.failure = target.map(|target| (target, harmless(why))).or(state.failure.take());
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn slot(target: MemTarget) -> Arc<PagerSlot> {
        PagerSlot::new(Pager { control: "/p".into(), owner: 0, maxmem: Bytes::gib(1) }, target)
    }

    const fn m(mib: u64) -> MemTarget {
        MemTarget(Bytes::mib(mib))
    }

    #[test]
    fn upwards_at_once_and_downwards_with_the_balloon() {
        assert_eq!(enforced(m(256), None, None), m(256), "nothing is known yet");
        assert_eq!(enforced(m(512), Some(m(256)), Some(m(300))), m(512));
        assert_eq!(enforced(m(128), Some(m(256)), None), m(128), "no driver could give anything up");
        assert_eq!(enforced(m(128), Some(m(256)), Some(m(200))), m(200), "so much is still held");
        assert_eq!(enforced(m(128), Some(m(256)), Some(m(512))), m(256), "no more than it had");
        assert_eq!(enforced(m(128), Some(m(200)), Some(m(100))), m(128));
    }

    proptest! {
        /// Whatever a guest says it holds, it is never given more than the target or what it had.
        #[test]
        fn a_guests_word_raises_nothing(target: u64, now: u64, holds: Option<u64>) {
            let target_ = MemTarget(Bytes(target));
            let wish = enforced(target_, Some(MemTarget(Bytes(now))), holds.map(|h| MemTarget(Bytes(h))));
            prop_assert!(wish >= target_ && wish.0.0 <= target.max(now));
        }
    }

    fn says(slot: &PagerSlot, target: MemTarget) {
        let status = PagerStatus { target, ..PagerStatus::default() };
        slot.observed(PagerSeen { at: MonoTime(0), epoch: 1, status });
    }

    #[test]
    fn what_is_wanted_is_what_is_not_in_force() {
        let slot = slot(m(256));
        assert_eq!(slot.wanted(), Some(m(256)), "to begin with");
        says(&slot, m(256));
        assert_eq!(slot.wanted(), None);
        slot.guest_holds(Some(m(512)));
        slot.set_target(m(100));
        assert_eq!(slot.wanted(), None, "the guest has not moved yet");
        slot.guest_holds(Some(m(180)));
        assert_eq!(slot.wanted(), Some(m(180)));
        says(&slot, m(180));
        slot.guest_holds(None);
        assert_eq!(slot.wanted(), Some(m(100)), "its driver is gone");
    }

    #[test]
    fn the_balloon_waits_for_the_pager_but_not_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let slot = slot(m(256));
            slot.reaches(m(256), Duration::from_millis(10)).await;
            let theirs = Arc::clone(&slot);
            let waits = tokio::spawn(async move { theirs.reaches(m(300), Duration::from_secs(60)).await });
            tokio::task::yield_now().await;
            assert!(!waits.is_finished());
            says(&slot, m(300));
            tokio::time::timeout(Duration::from_secs(5), waits).await.unwrap().unwrap();
        });
    }
}
