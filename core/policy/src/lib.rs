//! The arbiter: a pure function from what is known to what is to be done.
//!
//! Place in the map: above `units` and `model`, below the daemon and the simulator. `no_std`, integers only,
//! no clock and no I/O, so that the same snapshots always give the same plans ([`decide`]), on any machine,
//! and a journal can be replayed bit for bit.
//!
//! What it promises, for any input (each a property test):
//! * a target is a whole number of pages within floor and maxmem;
//! * what is granted at a tick was free at that tick: claims never grow beyond the budget;
//! * a guest in distress is answered in the same tick: with all it wants (maxmem, where no agent measures it) if that is
//!   free, else by asking those that can spare it, and it is given what arrives by the tick that sees it arrive;
//! * a guest that waits in its pager (populate-on-demand) is more urgent than any other, with a balloon driver or without;
//! * a guest that does not move, by rate, is not counted on, and is left alone for longer each time;
//! * a guest's own proposal (self-ballooning) lowers its target and raises it as far as there is room, and yields to
//!   pins, to its distress and to a host that is short;
//! * every action says why, with its numbers.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::expect_used)
)]

extern crate alloc;

mod assess;
mod balance;
mod config;
mod demand;
mod exhausted;
mod history;
pub mod selfballoon;
mod share;

use alloc::vec::Vec;

use plimsoll_model::{Action, HostState, Plan, PsiTotals, Reason, Snapshot, Verdict, VmState};
use plimsoll_units::{Bytes, MonoTime, Ppm};

use crate::assess::Vm;
use crate::balance::{Balance, Lack, distress_reason, grant_cost, step, target};
pub use crate::config::Config;
pub use crate::history::History;

/// Slow moves are considered at most this often, in milliseconds: the pace of statistics.
const SLOW_TICK_MS: u64 = 900;

/// Decides what to do at one tick. VMs must come by rising id, as [`Snapshot`] says; one that does not is
/// treated as new.
pub fn decide(snapshot: &Snapshot, config: &Config, history: &mut History) -> Plan {
    let now = snapshot.now;
    let mut vms = assess_all(snapshot, config, history);
    let (dt_ms, stalled) = stalled(history, now, snapshot.host.psi);
    let mut balance = Balance::new(config, now, snapshot.host, stalled, dt_ms, &vms);

    balance.settle(&mut vms);
    balance.relieve_host(&mut vms);
    let lacking = lack(&vms, config);
    balance.relieve_guests(&mut vms, lacking);
    grant_all(&mut balance, &mut vms);
    replenish(&mut balance, &mut vms);
    let unmet = lack(&vms, config).all.minus(balance.room);
    slow_moves(&mut balance, &mut vms, history);

    let host = if balance.shortage.is_some() {
        HostState::Short
    } else if unmet > Bytes::ZERO {
        HostState::Tight
    } else {
        HostState::Ample
    };
    let waiting = unmet.min(balance.in_flight);
    let plan = write_up(&vms, &balance, host, waiting);
    history.vms = vms.into_iter().map(|vm| vm.history).collect();
    plan
}

/// Joins the samples with what is remembered of them; both are in order of id.
fn assess_all<'a>(snapshot: &'a Snapshot, config: &Config, history: &mut History) -> Vec<Vm<'a>> {
    let mut remembered = core::mem::take(&mut history.vms).into_iter().peekable();
    snapshot
        .vms
        .iter()
        .map(|sample| {
            while remembered.next_if(|h| h.id < sample.id).is_some() {}
            let past = remembered.next_if(|h| h.id == sample.id);
            Vm::assess(sample, past, snapshot.now, config)
        })
        .collect()
}

/// Milliseconds since the last tick, and the share of them in which something waited for memory.
fn stalled(history: &mut History, now: MonoTime, psi: Option<PsiTotals>) -> (u64, Ppm) {
    let last = history.host.replace((now, psi));
    let Some((then, before)) = last else { return (0, Ppm(0)) };
    let micros = now.micros_since(then);
    let share = match (before, psi) {
        (Some(before), Some(after)) => Ppm::ratio(after.some_us.saturating_sub(before.some_us), micros),
        _ => Ppm(0),
    };
    (now.millis_since(then), share)
}

/// What is wanted beyond the targets.
fn lack(vms: &[Vm<'_>], config: &Config) -> Lack {
    let mut lack = Lack::default();
    // What a guest proposes itself is a wish: it is met from what is free, and nobody else is asked for it.
    for vm in vms.iter().filter(|vm| vm.state != VmState::Ok || vm.voluntary().is_none()) {
        let wanted = urgent_want(vm, config);
        let cost = grant_cost(vm, wanted);
        lack.all = lack.all.plus(cost);
        if vm.state == VmState::Distressed {
            lack.hurting = lack.hurting.plus(cost);
        }
        let below = grant_cost(vm, wanted.min(vm.sample.sizes.memory()));
        lack.below_baseline = lack.below_baseline.plus(below);
    }
    lack
}

/// The target a VM should have now if memory can be had: a pin, what it wants in distress, what it proposes itself, a
/// baseline that was set anew, what it works with; else what it has.
fn urgent_want(vm: &Vm<'_>, config: &Config) -> Bytes {
    match (vm.state, vm.reason) {
        (VmState::Held, Reason::Held { hold }) => hold.0,
        (VmState::Distressed, _) => vm.wanted(config),
        (VmState::Ok, _) => calm_want(vm),
        // No driver is needed for it: it boots with what it was promised to begin with, and waits with no less.
        _ if vm.is_enforced() => vm.target.max(vm.sample.sizes.memory()),
        _ => vm.target,
    }
}

/// The same for a VM that is not in distress.
fn calm_want(vm: &Vm<'_>) -> Bytes {
    if let Some(proposed) = vm.voluntary() {
        proposed
    } else if vm.history.seeks {
        vm.sample.sizes.memory()
    } else if vm.refaulted > Bytes::ZERO && !vm.eased {
        vm.need.unwrap_or(vm.target).min(vm.sample.sizes.maxmem())
    } else {
        vm.target
    }
}

/// Why [`calm_want`] is what it is.
fn calm_reason(vm: &Vm<'_>) -> Reason {
    match vm.need {
        _ if vm.voluntary().is_some() => vm.proposal(),
        Some(need) if !vm.history.seeks => Reason::WorkingSet { need, cache: vm.history.cache },
        _ => baseline_reason(vm),
    }
}

fn baseline_reason(vm: &Vm<'_>) -> Reason {
    Reason::Baseline { memory: vm.sample.sizes.memory() }
}

/// Grants what is free: pins first, then those that wait in their pagers, then distress (up to the baselines before beyond
/// them), then what others want.
fn grant_all(balance: &mut Balance<'_>, vms: &mut [Vm<'_>]) {
    let config = balance.config;
    let only = |state: VmState, want: fn(&Vm<'_>, &Config) -> Bytes| {
        move |vm: &Vm<'_>| if vm.state == state { want(vm, config) } else { vm.target }
    };
    let baseline = |vm: &Vm<'_>, _: &Config| vm.sample.sizes.memory();
    let distress = |vm: &Vm<'_>, granted: Bytes| distress_reason(config, vm, granted);
    balance.grant(vms, only(VmState::Held, urgent_want), |vm, _| vm.reason);
    // Who waits in its pager stands still; who is in distress only suffers.
    let waits = |want: fn(&Vm<'_>, &Config) -> Bytes| {
        move |vm: &Vm<'_>| {
            let answered = matches!(vm.state, VmState::Distressed | VmState::Stalled);
            if answered && vm.stall.is_some() { want(vm, config) } else { vm.target }
        }
    };
    balance.grant(vms, waits(baseline), distress);
    balance.grant(vms, waits(urgent_want), distress);
    balance.grant(vms, only(VmState::Distressed, baseline), distress);
    balance.grant(vms, only(VmState::Distressed, urgent_want), distress);
    balance.grant(vms, only(VmState::NoDriver, urgent_want), |vm, _| baseline_reason(vm));
    balance.grant(vms, only(VmState::Ok, urgent_want), |vm, _| calm_reason(vm));
}

/// Where less is free than the slack, who holds more than baseline and need gives that now and not slowly: the next
/// guest in distress shall not have to wait for it.
fn replenish(balance: &mut Balance<'_>, vms: &mut [Vm<'_>]) {
    let slack = balance.config.slack_share.of(balance.host.budget);
    let lack = slack.minus(balance.room.plus(balance.in_flight));
    balance.take(vms, lack, |vm| vm.idle(), |vm, _| vm.idle_reason());
}

/// What has time: idle VMs give back what they hold beyond baseline and need; VMs below their need or their
/// baseline are brought back up while enough stays free for whoever is in distress next. A VM that proposes its own
/// target has its own pace.
fn slow_moves(balance: &mut Balance<'_>, vms: &mut [Vm<'_>], history: &mut History) {
    let (config, now) = (balance.config, balance.now);
    let last = *history.slow_at.get_or_insert(now);
    let dt_ms = now.millis_since(last);
    if dt_ms < SLOW_TICK_MS {
        return;
    }
    history.slow_at = Some(now);
    let plenty = balance.room >= config.plenty_share.of(balance.host.budget);
    let idle_ms = if plenty { dt_ms / 8 } else { dt_ms };
    let slow = |vm: &Vm<'_>| vm.state == VmState::Ok && !vm.eased && vm.voluntary().is_none();
    for vm in vms.iter_mut() {
        let excess = vm.idle();
        // A target below what the guest holds is still being worked off.
        if excess >= config.least_move && vm.sample.actual.0 <= vm.target.plus(config.least_move) {
            vm.target = vm
                .sample
                .sizes
                .clamp(vm.target.minus(step(excess, config.idle_share, idle_ms, config.least_move)))
                .0;
            vm.reason = vm.idle_reason();
        }
    }
    let up = |vm: &Vm<'_>| {
        let wanted =
            vm.sample.sizes.memory().max(vm.need.unwrap_or(Bytes::ZERO)).min(vm.sample.sizes.maxmem());
        let distance = wanted.minus(vm.target);
        if slow(vm) && distance >= config.least_move {
            vm.target.plus(step(distance, config.relax_share, dt_ms, config.least_move))
        } else {
            vm.target
        }
    };
    balance.keep_slack(|balance| {
        balance.grant(vms, up, |vm, _| baseline_reason(vm));
    });
}

/// Writes the plan: actions, shrinking ones first, and a verdict for each VM.
fn write_up(vms: &[Vm<'_>], balance: &Balance<'_>, host: HostState, waiting: Bytes) -> Plan {
    let coming = balance.in_flight > Bytes::ZERO;
    let mut actions: Vec<Action> = vms
        .iter()
        .filter(|vm| vm.sample.target.0 != vm.target && vm.state != VmState::Unreachable)
        .map(|vm| Action {
            vm: vm.sample.id,
            from: vm.sample.target,
            to: target(vm.target),
            reason: vm.reason,
        })
        .collect();
    actions.sort_by_key(|a| a.to > a.from);
    let verdicts = vms
        .iter()
        .map(|vm| {
            let (state, reason) = vm.stall_verdict(coming).unwrap_or_else(|| match (vm.state, vm.reason) {
                (VmState::Distressed, Reason::Steady) => {
                    (vm.state, distress_reason(balance.config, vm, Bytes::ZERO))
                }
                (state, reason) => (state, reason),
            });
            let spare = vm.spare();
            Verdict { vm: vm.sample.id, state, source: vm.source, need: vm.need, spare, reason }
        })
        .collect();
    Plan { host, claimed: balance.claimed, actions, verdicts, waiting }
}
