//! Who gives and who gets.
//!
//! Order of the day: what is pinned, what is stuck; then memory is freed (for a short host first, for
//! distressed guests next), and only what is free already is granted. Memory that is on its way back is
//! granted by the tick that sees it arrive.

use alloc::vec::Vec;

use plimsoll_model::{HostSample, Link, Reason, VmState};
use plimsoll_units::{Bytes, MemTarget, MonoTime, Ppm};

use crate::assess::Vm;
use crate::config::Config;
use crate::share::{Claim, divide};

/// Why memory is being freed, in the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    OverBudget { claimed: Bytes, budget: Bytes },
    Host { available: Bytes, low: Bytes, stalled: Ppm },
}

/// What is wanted beyond the targets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lack {
    /// By guests in distress, by those whose working set does not fit, and by operators.
    pub(crate) all: Bytes,
    /// By guests in distress alone.
    pub(crate) hurting: Bytes,
    /// By whomever, as far as it lies below the baselines.
    pub(crate) below_baseline: Bytes,
}

/// The tick's figures, and what has been moved so far.
#[derive(Debug)]
pub(crate) struct Balance<'c> {
    pub(crate) config: &'c Config,
    pub(crate) now: MonoTime,
    pub(crate) host: HostSample,
    pub(crate) claimed: Bytes,
    /// What must be freed for the host's sake, what is on its way included.
    deficit: Bytes,
    pub(crate) shortage: Option<Shortage>,
    /// What may be granted now.
    pub(crate) room: Bytes,
    /// On its way back.
    pub(crate) in_flight: Bytes,
}

impl<'c> Balance<'c> {
    pub(crate) fn new(
        config: &'c Config,
        now: MonoTime,
        host: HostSample,
        stalled: Ppm,
        dt_ms: u64,
        vms: &[Vm<'_>],
    ) -> Self {
        let claimed: Bytes = vms.iter().map(Vm::claim).sum();
        let in_flight: Bytes = vms.iter().map(Vm::in_flight).sum();
        let over = claimed.minus(host.budget);
        let below = host.low.minus(host.available);
        // Stalls while memory gets scarce: free some more each second until they end. Where there is plenty they have
        // another cause, such as a program that meets the limit of its own cgroup.
        let scarce = host.available < host.low.plus(host.low).plus(host.low).plus(host.low);
        let stall = if scarce && stalled > config.host_stall {
            config.stall_step.of(host.budget).scale(dt_ms.min(1000), 1000)
        } else {
            Bytes::ZERO
        };
        let host_lack = below.max(stall);
        let shortage = if over >= host_lack && over > Bytes::ZERO {
            Some(Shortage::OverBudget { claimed, budget: host.budget })
        } else if host_lack > Bytes::ZERO {
            Some(Shortage::Host { available: host.available, low: host.low, stalled })
        } else {
            None
        };
        let room = if shortage.is_some() {
            Bytes::ZERO
        } else {
            host.budget.minus(claimed).min(host.available.minus(host.low))
        };
        let deficit = over.max(host_lack);
        Self { config, now, host, claimed, deficit, shortage, room, in_flight }
    }

    /// Puts held, new-baselined and stuck VMs where they belong, as far as that frees memory.
    pub(crate) fn settle(&mut self, vms: &mut [Vm<'_>]) {
        for vm in vms {
            let stuck = vm.state == VmState::Stuck;
            let wanted = if let Reason::Held { hold } = vm.reason {
                hold.0
            } else if stuck {
                // Not asked any further, and given no more than it has, so that it cannot wake up and take
                // what was given away meanwhile.
                vm.sample.sizes.clamp(vm.sample.actual.0.min(vm.holds())).0
            } else if let Some(proposed) = vm.voluntary().filter(|_| vm.state == VmState::Ok) {
                proposed
            } else if vm.history.seeks && (vm.movable() || vm.is_enforced()) {
                vm.sample.sizes.memory()
            } else {
                continue;
            };
            if wanted < vm.target || stuck {
                // A stuck guest's claim is what it holds either way; moving its target there grants nothing.
                if vm.state == VmState::Ok && vm.voluntary().is_some() {
                    vm.reason = vm.proposal();
                } else if vm.history.seeks && !stuck && vm.state != VmState::Held {
                    vm.reason = Reason::Baseline { memory: wanted };
                }
                self.in_flight = self.in_flight.plus(coming_back(vm, wanted));
                vm.target = wanted;
            }
        }
    }

    /// Frees what the host lacks: from what is spare, then down to the baselines, then down to the floors.
    pub(crate) fn relieve_host(&mut self, vms: &mut [Vm<'_>]) {
        let Some(shortage) = self.shortage else { return };
        let reason = |_: &Vm<'_>, spare: Bytes| match shortage {
            Shortage::OverBudget { claimed, budget } => Reason::OverBudget { claimed, budget, spare },
            Shortage::Host { available, low, stalled } => {
                Reason::HostShort { available, low, stalled, spare }
            }
        };
        let mut lack = self.deficit.minus(self.in_flight);
        lack = self.take(vms, lack, |vm| vm.spare(), reason);
        lack = self.take(vms, lack, |vm| above(vm, vm.sample.sizes.memory()), reason);
        // The floor is the only guarantee; the host's life is worth a guest's swapping.
        self.take(vms, lack, |vm| above(vm, Bytes::ZERO), reason);
    }

    /// Asks those that can spare it for what `lacking` others want, and those above their baseline for what
    /// others want below theirs.
    pub(crate) fn relieve_guests(&mut self, vms: &mut [Vm<'_>], lack: Lack) {
        let (config, Lack { all: lacking, hurting, below_baseline }) = (self.config, lack);
        let coming = self.room.plus(self.in_flight);
        let gives = |vm: &Vm<'_>, spare: Bytes| Reason::GivesToOthers { source: vm.source, lacking, spare };
        let rest = self.take(
            vms,
            lacking.minus(coming),
            |vm| if vm.eased { Bytes::ZERO } else { vm.spare() },
            gives,
        );
        self.take(vms, rest, |vm| vm.spare(), gives);
        // A guest that swaps is worse off than one with less headroom, or one that reads some files again.
        let rest = hurting.minus(self.room.plus(self.in_flight));
        self.take(vms, rest, |vm| vm.last_spare(config), gives);
        let coming = self.room.plus(self.in_flight);
        // A guest keeps its baseline whatever others lack, but no more than that while another is below its own.
        let back = |vm: &Vm<'_>| above(vm, vm.sample.sizes.memory());
        for (vm, part) in self.choose(vms, below_baseline.minus(coming), back) {
            if let Some(vm) = vms.get_mut(vm) {
                self.shrink(
                    vm,
                    part,
                    Reason::BackToBaselineForOthers { lacking, memory: vm.sample.sizes.memory() },
                );
            }
        }
    }

    /// Lowers targets by `lack` in all, as far as `spare` allows; returns what is still lacking.
    pub(crate) fn take(
        &mut self,
        vms: &mut [Vm<'_>],
        lack: Bytes,
        spare: impl Fn(&Vm<'_>) -> Bytes,
        reason: impl Fn(&Vm<'_>, Bytes) -> Reason,
    ) -> Bytes {
        let mut rest = lack;
        for (index, part) in self.choose(vms, lack, &spare) {
            if let Some(vm) = vms.get_mut(index) {
                let why = reason(vm, spare(vm));
                rest = rest.minus(self.shrink(vm, part, why));
            }
        }
        rest
    }

    /// Chooses who gives how much: those with the most to spare for their weight, few enough that each move
    /// is worth making.
    fn choose(&self, vms: &[Vm<'_>], lack: Bytes, spare: impl Fn(&Vm<'_>) -> Bytes) -> Vec<(usize, Bytes)> {
        if lack == Bytes::ZERO {
            return Vec::new();
        }
        // In thousandths, so that small spares keep their order.
        let ease = |spare: Bytes, weight: u32| spare.scale(1000, u64::from(weight)).0;
        let mut givers: Vec<(usize, Bytes, u64)> = vms
            .iter()
            .enumerate()
            .map(|(index, vm)| (index, spare(vm).pages_floor().bytes(), vm.sample.sizes.weight()))
            .filter(|(_, spare, _)| *spare >= self.config.least_move)
            .map(|(index, spare, weight)| (index, spare, ease(spare, weight)))
            .collect();
        givers.sort_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(&b.0)));
        let worthwhile = lack.0.div_ceil(self.config.least_move.0.saturating_mul(4).max(1));
        let mut sum = Bytes::ZERO;
        let mut enough = 0usize;
        for (_, spare, _) in &givers {
            if sum >= lack && u64::try_from(enough).unwrap_or(u64::MAX) >= worthwhile {
                break;
            }
            sum = sum.plus(*spare);
            enough = enough.saturating_add(1);
        }
        givers.truncate(enough);
        let claims: Vec<Claim> =
            givers.iter().map(|(_, spare, ease)| Claim { cap: spare.0, share: *ease }).collect();
        givers.iter().zip(divide(lack.0, &claims)).map(|((index, ..), part)| (*index, Bytes(part))).collect()
    }

    /// Lowers one target by about `part`; returns how much.
    fn shrink(&mut self, vm: &mut Vm<'_>, part: Bytes, reason: Reason) -> Bytes {
        let before = vm.target;
        let to = vm.sample.sizes.clamp(before.minus(part)).0;
        if to >= before {
            return Bytes::ZERO;
        }
        // Only what it really holds comes back; the rest was a promise that is taken back.
        self.in_flight = self.in_flight.plus(coming_back(vm, to));
        vm.target = to;
        vm.reason = reason;
        before.minus(to)
    }

    /// Raises targets out of what is free, by weight, each to at most what `wanted` says.
    pub(crate) fn grant(
        &mut self,
        vms: &mut [Vm<'_>],
        wanted: impl Fn(&Vm<'_>) -> Bytes,
        reason: impl Fn(&Vm<'_>, Bytes) -> Reason,
    ) {
        let takers: Vec<(usize, Claim)> = vms
            .iter()
            .enumerate()
            .map(|(index, vm)| {
                let cap = grant_cost(vm, wanted(vm).min(vm.sample.sizes.maxmem()));
                (index, Claim { cap: cap.0, share: u64::from(vm.sample.sizes.weight()) })
            })
            .filter(|(index, claim)| {
                let wants =
                    |vm: &Vm<'_>| claim.cap > 0 || vm.target < wanted(vm).min(vm.sample.sizes.maxmem());
                // Who was just asked to give is not given back in the same breath what it still holds.
                vms.get(*index).is_some_and(|vm| !vm.gives() && wants(vm))
            })
            .collect();
        let claims: Vec<Claim> = takers.iter().map(|(_, claim)| *claim).collect();
        for ((index, _), part) in takers.iter().zip(divide(self.room.0, &claims)) {
            let Some(vm) = vms.get_mut(*index) else { continue };
            // Up to what it holds already costs nothing: that is claimed as it is.
            let from = vm.target.max(vm.holds().min(vm.sample.sizes.maxmem()));
            let to = vm.sample.sizes.clamp(from.plus(Bytes(part)).min(wanted(vm).max(vm.target))).0;
            if to > vm.target {
                self.room = self.room.minus(Bytes(part));
                vm.reason = reason(vm, to.minus(vm.target));
                vm.target = to;
            }
        }
    }
}

impl Balance<'_> {
    /// Lets `act` grant from what is free beyond the slack, a share of the budget.
    pub(crate) fn keep_slack(&mut self, act: impl FnOnce(&mut Self)) {
        let all = self.room;
        self.room = all.minus(self.config.slack_share.of(self.host.budget));
        let kept = all.minus(self.room);
        act(self);
        self.room = self.room.plus(kept);
    }
}

/// What raising a VM's target to `wanted` adds to its claim.
pub(crate) fn grant_cost(vm: &Vm<'_>, wanted: Bytes) -> Bytes {
    wanted.minus(vm.target.max(vm.holds()))
}

/// What will come back of a VM whose target is lowered to `to`. Of a guest without a driver that is not known.
fn coming_back(vm: &Vm<'_>, to: Bytes) -> Bytes {
    let holds = match (vm.sample.link, vm.limit()) {
        (Link::NoDriver, Some(_)) => Bytes::ZERO,
        (_, Some(limit)) => limit,
        (_, None) => vm.sample.actual.0,
    };
    holds.min(vm.target).minus(to)
}

/// What a VM holds above `level`, its floor in any case; only of VMs that can be moved, and whose guest gives it back.
fn above(vm: &Vm<'_>, level: Bytes) -> Bytes {
    if vm.movable() && vm.sample.link == Link::Up {
        vm.target.minus(level.max(vm.sample.sizes.floor()))
    } else {
        Bytes::ZERO
    }
}

/// The distress reason with its numbers.
pub(crate) fn distress_reason(config: &Config, vm: &Vm<'_>, granted: Bytes) -> Reason {
    if let Some(stall) = vm.stall {
        return vm.stall_reason(stall, granted);
    }
    let signal = vm.signal.unwrap_or(plimsoll_model::Signal::Available);
    Reason::Distress {
        signal,
        source: vm.source,
        available: vm.available,
        low: config.distress_margin(vm.source, vm.sample.actual.0),
        wanted: vm.wanted(config),
        granted,
    }
}

/// A move by `share` of `distance` for each second of `dt_ms`, at least `least`, and all of it where less than
/// that would be left: nobody shall rest just beside where it belongs.
pub(crate) fn step(distance: Bytes, share: Ppm, dt_ms: u64, least: Bytes) -> Bytes {
    let step = share.of(distance).scale(dt_ms.min(8000), 1000).max(least).min(distance);
    if distance.minus(step) < least { distance } else { step }
}

/// The target as the model has it.
pub(crate) fn target(bytes: Bytes) -> MemTarget {
    MemTarget(bytes)
}
