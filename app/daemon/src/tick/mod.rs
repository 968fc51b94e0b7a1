//! The tick: collect, decide, apply, write down, publish.
//!
//! Collecting asks every VM at once and waits for the slowest a fifth of a second at most; what a VM said last
//! counts until it is three seconds old. Deciding is a pure function. Applying hands targets to the drivers,
//! shrinking ones first, and waits for nobody: whether a guest moves is seen at the next tick.

mod absorb;
mod exhausted;
mod pace;

use std::{sync::Arc, time::Duration};

use plimsoll_api::http::{Change, Endpoint};
use plimsoll_model::{Action, HostSample, HostState, Plan, Snapshot, VmId, VmSample};
use plimsoll_policy::decide;
use plimsoll_procfs::Procfs;
use plimsoll_units::{Bytes, MonoTime};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    clock,
    daemon::{Daemon, Inner, LastTick},
    drivers::Round,
    events::Kind,
    host::{HostReader, Pressure},
    process::Death,
    registry::Vm,
};
use pace::{LEAST_GAP, Pace};

/// How long a tick waits for answers at most.
const COLLECT: Duration = Duration::from_millis(200);

/// Who was seen within this share of the time from tick to tick, and rests, is not asked again.
const RECENT: f32 = 0.9;

/// How long a daemon that has come back waits for its VMs before it decides anything.
const SETTLE: Duration = Duration::from_secs(2);

/// Targets that are this far from what the guest holds are still being approached.
const ARRIVED: Bytes = Bytes::mib(1);

/// What makes the ticks.
#[derive(Debug)]
pub(crate) struct Ticker {
    daemon: Arc<Daemon>,
    host: HostReader,
    pressure: Pressure,
    deaths: mpsc::Receiver<Death>,
    proc: Procfs,
    pace: Pace,
    /// Sum of what the guests held at the last tick: whether something moves.
    held: Bytes,
}

/// What a tick leaves for the pace.
struct Outcome {
    hurried: bool,
    held: Bytes,
}

impl Ticker {
    pub(crate) fn new(daemon: Arc<Daemon>, host: HostReader, deaths: mpsc::Receiver<Death>) -> Self {
        let pace = Pace::new(daemon.config.tick);
        let pressure = Pressure::default();
        Self { daemon, host, pressure, deaths, proc: Procfs::new(), pace, held: Bytes::ZERO }
    }

    /// Gives the VMs of an earlier daemon a moment to answer: what they hold is not known before.
    pub(crate) async fn settle(&self) {
        let until = Instant::now() + SETTLE;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while Instant::now() < until && !self.all_seen() {
            look.tick().await;
        }
    }

    fn all_seen(&self) -> bool {
        let inner = self.daemon.lock();
        let mut drivers = inner.registry.iter().filter_map(|vm| vm.driver.as_ref());
        drivers.all(|driver| {
            let pager = driver.pager().is_none_or(|pager| pager.read().seen.is_some());
            pager && driver.slot().read().seen.is_some()
        })
    }

    /// Asks every VM that may have something new to say: its VMM if it does not rest, its pager always.
    fn ask(&self, round: &Arc<Round>, now: MonoTime, recent: Duration) {
        let inner = self.daemon.lock();
        for vm in inner.registry.iter() {
            let Some(driver) = &vm.driver else { continue };
            if let Some(pager) = driver.pager() {
                pager.ask(round);
            }
            let slot = driver.slot();
            if vm.waits(now) {
                // Its VMM may wait with its guest; what ends that shall not wait for its answer.
                slot.nudge();
            } else if !slot.rests(now, recent) {
                slot.ask(round);
            }
        }
    }

    /// Ticks until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut due = Instant::now();
        loop {
            let begun = Instant::now();
            if begun > due + self.daemon.config.tick / 2 {
                self.daemon.lock().metrics.missed.inc();
            }
            let outcome = self.tick().await;
            let moved = outcome.held != self.held;
            self.held = outcome.held;
            due = begun + self.pace.next(outcome.hurried, moved);
            self.wait(begun, due).await;
        }
    }

    /// Waits until the next tick is due, or something calls for one now.
    async fn wait(&mut self, begun: Instant, due: Instant) {
        let mut stalled = false;
        let mut death = None;
        tokio::select! {
            () = sleep_until(due) => {}
            () = self.daemon.poke.notified() => {}
            () = self.pressure.event() => stalled = true,
            first = self.deaths.recv() => death = first,
        }
        if stalled {
            self.daemon.lock().metrics.pressure_ticks.inc();
        }
        sleep_until(due.min(begun + LEAST_GAP)).await;
        let deaths: Vec<Death> =
            death.into_iter().chain(std::iter::from_fn(|| self.deaths.try_recv().ok())).collect();
        if !deaths.is_empty() {
            let now = clock::now();
            self.daemon.change(|inner| {
                deaths.into_iter().for_each(|death| self.daemon.note_death(inner, death, now));
            });
        }
    }

    /// One tick.
    async fn tick(&mut self) -> Outcome {
        let round = Arc::new(Round::default());
        // Out of turn, only those are asked from whom there is something new to hear.
        let (now, recent) = (clock::now(), self.daemon.config.tick.mul_f32(RECENT));
        self.ask(&round, now, recent);
        round.finished(COLLECT).await;
        let begun = Instant::now();
        let host = self.host.read();
        self.pressure.arm(self.host.pressure_path().as_deref());
        let resident = self.resident();
        let now = clock::now();
        let daemon = Arc::clone(&self.daemon);
        let (outcome, ticks) = daemon.change(|inner| {
            let outcome = daemon.decide_and_apply(inner, host, now, &resident);
            inner.last.micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            inner.metrics.tick_seconds.observe(begun.elapsed().as_secs_f64());
            (outcome, inner.last.ticks)
        });
        daemon.ticks.send_replace(ticks);
        outcome
    }

    /// What the kernel counts behind the VMMs that do not tell it themselves, by rising number. Shared memory and
    /// anonymous memory are the guest's but for the VMM's own few megabytes; mapped files are not.
    fn resident(&mut self) -> Vec<(VmId, Bytes)> {
        let vmms: Vec<(VmId, u32)> = {
            let inner = self.daemon.lock();
            let qemus = inner
                .registry
                .iter()
                .filter(|vm| vm.gone.is_none() && matches!(vm.saved.endpoint, Endpoint::Qemu { .. }));
            // Whoever answers is the VMM, also before it was written down as such.
            let pid = |vm: &Vm| {
                let told = vm.saved.vmm.map(|vmm| vmm.pid);
                told.or_else(|| vm.driver.as_ref()?.slot().peer()?.pid)
            };
            qemus.filter_map(|vm| Some((vm.saved.id, pid(vm)?))).collect()
        };
        let count = |(id, pid)| {
            let memory = self.proc.memory(pid).ok()?;
            Some((id, memory.rss_shmem.plus(memory.rss_anon)))
        };
        vmms.into_iter().filter_map(count).collect()
    }
}

impl Daemon {
    /// Everything of a tick that waits for nothing.
    fn decide_and_apply(
        &self,
        inner: &mut Inner,
        host: HostSample,
        now: MonoTime,
        resident: &[(VmId, Bytes)],
    ) -> Outcome {
        inner.journal.before_tick(&self.config.policy, &inner.history);
        self.absorb(inner, now, resident);
        inner.host = host;
        let vms = inner.registry.iter().filter(|vm| vm.gone.is_none()).map(|vm| vm.sample(now)).collect();
        let snapshot = Snapshot { now, host, vms };
        let plan = decide(&snapshot, &self.config.policy, &mut inner.history);
        inner.journal.tick(&snapshot, &plan);
        for action in &plan.actions {
            apply(inner, action);
        }
        absorb::note_verdicts(inner, &plan);
        self.stop_exhausted(inner, now);
        note_host(inner, &plan);
        let ticks = inner.last.ticks.saturating_add(1);
        let Plan { host: state, claimed, waiting, .. } = plan;
        inner.last = LastTick { state, claimed, waiting, ticks, micros: inner.last.micros };
        tracing::debug!(%state, %claimed, actions = plan.actions.len(), %waiting, "tick");
        let may_have = |vm: &VmSample| vm.pager.map_or(vm.actual.0, |pager| pager.limit);
        let held = snapshot.vms.iter().map(may_have).sum();
        Outcome { hurried: hurried(inner, &plan, now), held }
    }
}

/// Hands a target to its driver and remembers why.
fn apply(inner: &mut Inner, action: &Action) {
    let Some(vm) = inner.registry.get_mut(action.vm) else { return };
    let Action { from, to, reason, .. } = *action;
    let by = vm.by(&reason);
    let reason_text = reason.to_string();
    let text = format!("{} to {}: {reason_text}", mib(from.0), mib(to.0));
    vm.change(Change { wall_us: clock::wall_us(), from, to, reason, reason_text, by });
    if to.0 == vm.saved.sizes.memory() {
        vm.baseline_by = None;
    }
    let name = vm.saved.name.clone();
    inner.metrics.changes.inc();
    inner.tell(Some(&name), Kind::Target, text);
}

/// For people: an exact number of bytes is no help in a sentence.
fn mib(bytes: Bytes) -> String {
    format!("{}M", bytes.whole_mib())
}

/// Tells of a change in how the host stands.
fn note_host(inner: &mut Inner, plan: &Plan) {
    if plan.host == inner.last.state {
        return;
    }
    let (kind, meaning) = match plan.host {
        HostState::Ample => (Kind::HostAmple, "there is enough for everybody"),
        HostState::Tight => (Kind::HostTight, "guests want more than is free; others are asked to give"),
        HostState::Short => (Kind::HostShort, "over budget, below the low mark, or stalling"),
    };
    let sample = inner.host;
    let text = format!(
        "{meaning}: {} claimed of {}, {} available",
        mib(plan.claimed),
        mib(sample.budget),
        mib(sample.available)
    );
    inner.tell(None, kind, text);
}

/// Whether somebody waits for memory that is on its way.
fn hurried(inner: &Inner, plan: &Plan, now: MonoTime) -> bool {
    let under_way = || {
        inner.registry.iter().any(|vm| {
            let movable = vm.verdict.is_some_and(|v| {
                matches!(v.state, plimsoll_model::VmState::Ok | plimsoll_model::VmState::Distressed)
            });
            vm.gone.is_none() && movable && vm.actual().0.minus(vm.saved.target.0) > ARRIVED
        })
    };
    // One that was just given more may want more than that.
    let waits = || {
        inner.registry.iter().any(|vm| {
            vm.gone.is_none()
                && vm.waits(now)
                && vm.verdict.is_some_and(|v| v.state == plimsoll_model::VmState::Distressed)
        })
    };
    waits() || plan.waiting > Bytes::ZERO || (plan.host != HostState::Ample && under_way())
}
