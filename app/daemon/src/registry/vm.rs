//! One VM as the daemon knows it.
//!
//! ```text
//!         VMM answers            no answer for 3 s
//!  Starting ----------> Running <----------------> Unreachable
//!                         |  keeper ends, VMM lives
//!                         +-----------------------> Unprotected
//!  (One whose memory is populated on demand and whose VMM is silent while its guest waits for memory counts as Running.)
//!  any of them -- `stop` --> Stopping (for two minutes)
//!  any of them -- VMM ends --> Gone -- forget-after --> forgotten
//! ```

use std::collections::VecDeque;

use plimsoll_api::http::{Change, Endpoint, Life};
use plimsoll_model::{Link, OnPagerLoss, PagerSample, Reason, Verdict, VmSample, VmState};
use plimsoll_units::{Bytes, MemTarget, MonoTime};

use crate::{
    drivers::{Driver, Observation, PeerId, STALE_MS, pager::PagerSeen},
    process::Watch,
    state::SavedVm,
};

/// Changes of target that are remembered.
pub(crate) const CHANGES: usize = 16;

/// An announced stop that does not come within so long was called off.
const STOPPING_MS: u64 = 120_000;

/// A VM.
#[derive(Debug)]
pub(crate) struct Vm {
    /// What is written down.
    pub(crate) saved: SavedVm,
    /// Its VMM's memory beyond its guest's.
    pub(crate) overhead: Bytes,
    /// When it was registered with this daemon.
    pub(crate) since: MonoTime,
    /// It was registered with an earlier daemon: it held something before it was first seen by this one.
    pub(crate) restored: bool,
    /// Speaks to it; `None` once it is gone.
    pub(crate) driver: Option<Driver>,
    /// What was seen last.
    pub(crate) seen: Option<Observation>,
    /// What its pager said last, where its memory is populated on demand.
    pub(crate) pager: Option<PagerSeen>,
    /// What was seen last is of another guest than what was seen before: it was rebooted since the last tick.
    pub(crate) rebooted: bool,
    /// What is wrong.
    pub(crate) problem: Option<String>,
    /// Who answers.
    pub(crate) peer: Option<PeerId>,
    /// Host memory behind the guest by the kernel's count of the VMM's process.
    pub(crate) process_resident: Option<Bytes>,
    /// The arbiter's word at the last tick.
    pub(crate) verdict: Option<Verdict>,
    /// Newest first.
    pub(crate) changes: VecDeque<Change>,
    /// Who pinned it.
    pub(crate) held_by: Option<u32>,
    /// Who set its baseline, until that is reached.
    pub(crate) baseline_by: Option<u32>,
    /// Watches over its processes.
    pub(crate) vmm_watch: Option<Watch>,
    pub(crate) keeper_watch: Option<Watch>,
    /// The keeper has ended.
    pub(crate) keeper_gone: bool,
    pub(crate) stopping: Option<MonoTime>,
    pub(crate) gone: Option<MonoTime>,
    /// What was last told of it in an event.
    pub(crate) told: Told,
    /// What is written down is not what is on disk.
    pub(crate) dirty: bool,
}

/// What was last told of a VM in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) life: Option<Life>,
    pub(crate) state: Option<VmState>,
    /// Generation and epoch.
    pub(crate) start: Option<(u64, u64)>,
    /// Targets could not be set, and none could since.
    pub(crate) failing: bool,
    /// Its guest waits for memory.
    pub(crate) waits: bool,
    /// Which of its pager's back ends it was.
    pub(crate) pager_epoch: Option<u64>,
    /// It was stopped because its guest waits for memory.
    pub(crate) stopped: bool,
}

impl Vm {
    /// A VM that nobody has spoken to yet.
    pub(crate) fn new(saved: SavedVm, overhead: Bytes, since: MonoTime, restored: bool) -> Self {
        Self {
            saved,
            overhead,
            since,
            restored,
            driver: None,
            seen: None,
            pager: None,
            rebooted: false,
            problem: None,
            peer: None,
            process_resident: None,
            verdict: None,
            changes: VecDeque::new(),
            held_by: None,
            baseline_by: None,
            vmm_watch: None,
            keeper_watch: None,
            keeper_gone: false,
            stopping: None,
            gone: None,
            told: Told::default(),
            dirty: true,
        }
    }

    /// Where it is in its life.
    pub(crate) fn life(&self, now: MonoTime) -> Life {
        if self.gone.is_some() {
            Life::Gone
        } else if self.stopping.is_some_and(|at| now.millis_since(at) < STOPPING_MS) {
            Life::Stopping
        } else if self.keeper_gone {
            Life::Unprotected
        } else {
            match &self.seen {
                None => Life::Starting,
                // The keeper answers, and no VMM has connected to it yet.
                Some(seen) if seen.generation == 0 => Life::Starting,
                Some(seen) if now.millis_since(seen.at) > STALE_MS && !self.waits(now) => Life::Unreachable,
                Some(_) => Life::Running,
            }
        }
    }

    /// Whether and how its guest can be moved.
    pub(crate) fn link(&self, now: MonoTime) -> Link {
        match &self.seen {
            _ if self.is_lost() => Link::Unreachable,
            // It may hold anything up to what it had: not to be mistaken for a VM that has not begun.
            None if self.restored => Link::Unreachable,
            None => Link::NoDriver,
            // Its VMM waits with it, and its pager can be told all the same.
            Some(seen) if now.millis_since(seen.at) > STALE_MS && self.waits(now) => Link::NoDriver,
            Some(seen) if now.millis_since(seen.at) > STALE_MS => Link::Unreachable,
            // The arbiter is to see a guest begin, also one that was up again before the tick: what that holds is
            // no memory that it took back in distress.
            Some(_) if self.rebooted => Link::NoDriver,
            Some(seen) if seen.driver_up => Link::Up,
            Some(_) => Link::NoDriver,
        }
    }

    /// What the guest holds.
    pub(crate) fn actual(&self) -> MemTarget {
        let whole = MemTarget(self.saved.sizes.maxmem());
        match &self.seen {
            // Nobody enforces its target any more: it may come to hold all it was told of.
            _ if self.is_lost() => whole,
            None if self.restored => self.saved.target,
            None => whole,
            Some(seen) => seen.actual,
        }
    }

    /// Host memory behind the guest.
    pub(crate) fn resident(&self) -> Option<Bytes> {
        if let Some(pager) = self.pager.filter(|_| !self.keeper_gone) {
            return Some(pager.status.resident);
        }
        match &self.seen {
            Some(seen) => seen.resident.or(self.process_resident),
            None if self.restored => self.process_resident,
            // A VM that is registered before it is started has nothing yet.
            None => Some(self.process_resident.unwrap_or(Bytes::ZERO)),
        }
        .map(|bytes| bytes.min(self.saved.sizes.maxmem()))
    }

    /// What the arbiter may know of it.
    pub(crate) fn sample(&self, now: MonoTime) -> VmSample {
        VmSample {
            id: self.saved.id,
            name: self.saved.name.clone(),
            sizes: self.saved.sizes,
            overhead: self.overhead,
            link: self.link(now),
            target: self.saved.target,
            actual: self.actual(),
            resident: self.resident(),
            hold: self.saved.hold,
            stats: self.seen.as_ref().and_then(|seen| seen.stats),
            agent: self.seen.as_ref().and_then(|seen| seen.agent),
            tunables: self.saved.tunables,
            pager: self.pager_sample(now),
        }
    }

    /// What is guaranteed to it, and cannot be given to others.
    pub(crate) fn guaranteed(&self) -> Bytes {
        if self.gone.is_some() {
            Bytes::ZERO
        } else {
            let sizes = self.saved.sizes;
            let most = match self.frozen() {
                Some(limit) => limit,
                None if self.is_lost() => sizes.maxmem(),
                None => sizes.floor(),
            };
            most.plus(self.overhead)
        }
    }

    /// Whether its memory is populated on demand.
    pub(crate) fn is_pod(&self) -> bool {
        self.saved.endpoint.pager_socket().is_some()
    }

    /// Whether its guest waits in its pager for memory.
    pub(crate) fn waits(&self, now: MonoTime) -> bool {
        self.waiting_ms(now).is_some()
    }

    /// For how long it has, in milliseconds. What a pager said long ago says nothing.
    fn waiting_ms(&self, now: MonoTime) -> Option<u64> {
        let pager = self.pager.filter(|pager| !self.keeper_gone && now.millis_since(pager.at) <= STALE_MS)?;
        let stalled = pager.status.stalled?;
        Some(stalled.since_ms.saturating_add(now.millis_since(pager.at)))
    }

    /// Whether nobody enforces its target any more, or moves it. A VM that goes on without its pager has its balloon still.
    fn is_lost(&self) -> bool {
        self.keeper_gone && !(self.is_pod() && self.saved.on_pager_loss == OnPagerLoss::Open)
    }

    /// What it is left with for ever: no page more is populated, since its pager is gone for good.
    fn frozen(&self) -> Option<Bytes> {
        let frozen = self.keeper_gone && self.saved.on_pager_loss == OnPagerLoss::Stall;
        Some(self.pager.filter(|_| frozen)?.status.limit)
    }

    /// What the arbiter may know of its pager.
    fn pager_sample(&self, now: MonoTime) -> Option<PagerSample> {
        let gone_on = self.keeper_gone && self.saved.on_pager_loss == OnPagerLoss::Open;
        let status = self.pager.filter(|_| self.is_pod() && !gone_on)?.status;
        Some(PagerSample {
            limit: status.limit,
            resident: status.resident,
            stalled_ms: self.waiting_ms(now),
            on_exhausted: self.saved.on_exhausted,
        })
    }

    /// Sets a target that was decided, and remembers why.
    pub(crate) fn change(&mut self, change: Change) {
        self.saved.target = change.to;
        self.dirty = true;
        if let Some(driver) = &self.driver {
            driver.set_target(change.to);
        }
        self.changes.truncate(CHANGES - 1);
        self.changes.push_front(change);
    }

    /// Who is behind a change for this reason.
    pub(crate) fn by(&self, reason: &Reason) -> String {
        let user = if let Reason::Held { .. } = reason {
            self.held_by
        } else if let Reason::Baseline { .. } = reason {
            self.baseline_by
        } else {
            None
        };
        user.map_or_else(|| "arbiter".to_owned(), |uid| uid.to_string())
    }

    /// Its VMM has ended: it claims nothing any more.
    pub(crate) fn end(&mut self, now: MonoTime) {
        self.gone = Some(now);
        self.driver = None;
        self.pager = None;
        self.vmm_watch = None;
        self.keeper_watch = None;
        self.verdict = None;
    }

    /// Whether it is spoken to at the same place.
    pub(crate) fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.gone.is_none() && self.saved.endpoint.socket() == endpoint.socket()
    }
}

#[cfg(test)]
mod test {
    use plimsoll_model::{Sizes, VmId, VmName};

    use super::*;

    fn vm(restored: bool) -> Vm {
        let sizes = Sizes::new(Bytes::mib(256), Bytes::mib(512), None, None).unwrap();
        let endpoint = Endpoint::Uml { control: "/c".into() };
        let saved = SavedVm::new(VmId(1), VmName::new("web").unwrap(), endpoint, sizes, 0, None);
        Vm::new(saved, Bytes::mib(16), MonoTime(0), restored)
    }

    fn seen(at: u64, driver_up: bool) -> Observation {
        Observation {
            at: MonoTime(at),
            driver_up,
            actual: MemTarget(Bytes::mib(300)),
            resident: Some(Bytes::mib(200)),
            stats: None,
            agent: None,
            agent_line: None,
            generation: 1,
            epoch: 1,
            backend: None,
        }
    }

    fn at_second(s: u64) -> MonoTime {
        MonoTime(s * 1_000_000)
    }

    #[test]
    fn a_life_from_start_to_end() {
        let mut vm = vm(false);
        assert_eq!((vm.life(at_second(1)), vm.link(at_second(1))), (Life::Starting, Link::NoDriver));
        assert_eq!(vm.resident(), Some(Bytes::ZERO));
        vm.seen = Some(Observation { generation: 0, ..seen(1_000_000, false) });
        assert_eq!((vm.life(at_second(2)), vm.link(at_second(2))), (Life::Starting, Link::NoDriver));
        vm.seen = Some(seen(1_000_000, false));
        assert_eq!((vm.life(at_second(2)), vm.link(at_second(2))), (Life::Running, Link::NoDriver));
        vm.seen = Some(seen(2_000_000, true));
        assert_eq!((vm.life(at_second(3)), vm.link(at_second(3))), (Life::Running, Link::Up));
        assert_eq!((vm.life(at_second(9)), vm.link(at_second(9))), (Life::Unreachable, Link::Unreachable));
        assert_eq!(vm.actual(), MemTarget(Bytes::mib(300)));
        vm.stopping = Some(at_second(10));
        assert_eq!(vm.life(at_second(11)), Life::Stopping);
        assert_eq!(vm.life(at_second(200)), Life::Unreachable);
        vm.end(at_second(201));
        assert_eq!((vm.life(at_second(201)), vm.guaranteed()), (Life::Gone, Bytes::ZERO));
    }

    #[test]
    fn a_new_guest_is_shown_without_a_driver_first() {
        let mut vm = vm(false);
        vm.seen = Some(seen(1_000_000, true));
        vm.rebooted = true;
        assert_eq!((vm.life(at_second(1)), vm.link(at_second(1))), (Life::Running, Link::NoDriver));
        vm.rebooted = false;
        assert_eq!(vm.link(at_second(1)), Link::Up);
    }

    #[test]
    fn without_a_keeper_a_vm_counts_with_all_it_could_take() {
        let mut vm = vm(false);
        vm.seen = Some(seen(1_000_000, true));
        assert_eq!(vm.guaranteed(), Bytes::mib(128 + 16));
        vm.keeper_gone = true;
        assert_eq!(vm.life(at_second(1)), Life::Unprotected);
        let sample = vm.sample(at_second(1));
        assert_eq!((sample.link, sample.actual.0), (Link::Unreachable, Bytes::mib(512)));
        assert_eq!(vm.guaranteed(), Bytes::mib(512 + 16));
    }

    #[test]
    fn a_restored_vm_is_not_taken_for_an_empty_one() {
        let vm = vm(true);
        let sample = vm.sample(at_second(1));
        assert_eq!((sample.link, sample.actual, sample.resident), (Link::Unreachable, vm.saved.target, None));
    }

    #[test]
    fn the_last_changes_are_remembered_newest_first() {
        let mut vm = vm(false);
        for n in 0..20 {
            let (from, to) = (vm.saved.target, MemTarget(Bytes::mib(200 + n)));
            let reason = Reason::Steady;
            vm.change(Change {
                wall_us: n,
                from,
                to,
                reason,
                reason_text: String::new(),
                by: vm.by(&reason),
            });
        }
        assert_eq!((vm.changes.len(), vm.changes[0].wall_us), (CHANGES, 19));
        assert_eq!((vm.saved.target.0, vm.changes[0].by.as_str()), (Bytes::mib(219), "arbiter"));
    }
}
