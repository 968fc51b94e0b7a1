//! `explain NAME`: why a VM has the memory it has, in sentences.

use plimsoll_api::http::{Explain, HostView, Life, VmView};
use plimsoll_model::{HostState, OnPagerLoss, Reason, Source, Standstill, VmState};
use plimsoll_units::Bytes;

use super::size::short;
use super::{clean, show, time};

/// The whole answer.
pub(crate) fn explain(told: &Explain, now_us: u64) -> String {
    let (vm, host) = (&told.vm, &told.host);
    let mut lines = vec![what(vm), format!("Why: {}.", clean(&vm.reason_text)), guest(vm)];
    lines.extend(pager(vm));
    lines.push(host_says(host));
    if let Some(problem) = &vm.problem {
        lines.push(format!("Problem: {}.", clean(problem)));
    }
    lines.push(format!("What would change it: {}.", what_would_change(vm, host)));
    match told.changes.split_first() {
        None => lines.push("Its target has not changed since it was registered.".to_string()),
        Some((last, earlier)) => {
            lines.push(format!("Last change: {}.", show::change_line(last, now_us)));
            if !earlier.is_empty() {
                lines.push("Before that:".to_string());
                lines.extend(earlier.iter().map(|change| format!("  {}", show::change_line(change, now_us))));
            }
        }
    }
    lines.join("\n") + "\n"
}

fn what(vm: &VmView) -> String {
    let sizes = vm.sizes;
    let held = if vm.hold.is_some() { ", where an operator holds it" } else { "" };
    format!(
        "{}'s target is {}{held}. It was told of {} (maxmem), is guaranteed {} (floor), and its baseline is {} (memory).",
        vm.name,
        vm.target,
        sizes.maxmem(),
        sizes.floor(),
        sizes.memory()
    )
}

fn guest(vm: &VmView) -> String {
    let holds = format!("The guest holds {}", vm.actual);
    let resident =
        vm.resident.map_or(String::new(), |r| format!(" ({} of it in the host's memory)", short(r)));
    let ago = |ms: Option<u64>| ms.map_or(String::new(), |ms| format!(", {} ago", time::span(ms)));
    let word = match vm.source {
        Source::Agent => format!("by its agent{}", ago(vm.agent.map(|a| a.age_ms))),
        Source::Device | Source::Nobody => {
            format!("by its balloon's statistics{} (no agent is heard)", ago(vm.stats_age_ms))
        }
    };
    let known = match vm.need {
        Some(need) => {
            format!("{holds}{resident}; {word} it needs {} and could spare {}.", short(need), short(vm.spare))
        }
        None => format!("{holds}{resident}; it has sent no statistics, so nothing is known of its need."),
    };
    if vm.tunables.selfballooning && vm.source != Source::Agent {
        format!("{known} Self-ballooning is on, but does nothing before its agent speaks.")
    } else {
        known
    }
}

/// What is enforced, where something is.
fn pager(vm: &VmView) -> Option<String> {
    let pager = vm.pager?;
    if pager.lost {
        return Some(match pager.on_pager_loss {
            OnPagerLoss::Stall => "Its pager is gone for good: nothing more is populated, and it stands still sooner or later.",
            OnPagerLoss::Open => "Its pager is gone for good: nothing limits it but its balloon.",
        }
        .to_string());
    }
    let Some(status) = pager.status else {
        return Some("Its memory is populated on demand; its pager has not been heard yet.".to_string());
    };
    let waits = status.stalled.map_or(String::new(), |stalled| {
        format!(
            " It has waited for more for {}, with {} faults; on-exhausted is {}.",
            time::span(stalled.since_ms),
            stalled.waiting,
            pager.on_exhausted
        )
    });
    Some(format!(
        "Its memory is populated on demand: {} of the {} it may have are populated, {} were never touched.{waits}",
        short(status.resident),
        short(status.limit),
        short(status.outstanding.bytes())
    ))
}

fn host_says(host: &HostView) -> String {
    let state = match host.state {
        HostState::Ample => "The host has room",
        HostState::Tight => "The host is tight: guests want more than is free",
        HostState::Short => "The host is short of memory",
    };
    let waiting = match host.waiting.0 {
        0 => String::new(),
        _ => format!("; distressed guests wait for {}", short(host.waiting)),
    };
    format!(
        "{state}: {} of a budget of {} is claimed, {} is available{waiting}.",
        short(host.claimed),
        short(host.sample.budget),
        short(host.sample.available)
    )
}

/// What lets a guest that waits for memory go on.
fn what_would_help(vm: &VmView) -> String {
    let (name, sizes) = (&vm.name, vm.sizes);
    let why = if let Reason::Stalled { why, .. } = vm.reason { Some(why) } else { None };
    let more = Bytes(vm.target.0.0.saturating_mul(2)).max(sizes.memory()).min(sizes.maxmem());
    match why {
        Some(Standstill::AtMaxmem) => {
            "free memory on the host, or a higher limit of the VM's cgroup: its pager asks again by itself"
                .to_string()
        }
        Some(Standstill::Held) => {
            format!("`plimsoll hold {name} {}`, or `plimsoll release {name}`", short(more))
        }
        Some(Standstill::Stop) => {
            "nothing: it is being stopped, as it was started with --on-exhausted stop".to_string()
        }
        Some(Standstill::NothingFree) => format!(
            "memory given up by others (lower their `memory=`, release holds, stop one), or a larger budget; it goes on by itself \
             then; `plimsoll stop {name} --kill` ends it"
        ),
        Some(Standstill::Wait) | None => format!(
            "`plimsoll set {name} memory={}` (up to {}) lets it go on at once, `plimsoll set {name} on-exhausted=grow` by \
             itself from now on; `plimsoll stop {name} --kill` ends it",
            short(more),
            sizes.maxmem()
        ),
    }
}

fn what_would_change(vm: &VmView, host: &HostView) -> String {
    let (name, sizes) = (&vm.name, vm.sizes);
    match vm.life {
        Life::Gone => return format!("nothing, its VMM has ended; `plimsoll stop {name}` clears it away"),
        Life::Unprotected => {
            return format!(
                "nothing while its keeper is gone; `plimsoll stop {name}` and a new `plimsoll run` make it whole"
            );
        }
        Life::Stopping => return "nothing, it is being stopped".to_string(),
        Life::Starting => return "its VMM's first answer".to_string(),
        Life::Running | Life::Unreachable => {}
    }
    match vm.state {
        VmState::Held => format!("`plimsoll release {name}`, or another `plimsoll hold {name} SIZE`"),
        VmState::Stalled => what_would_help(vm),
        VmState::NoDriver => "the guest's loading its balloon driver (virtio_balloon)".to_string(),
        VmState::Unreachable => {
            format!("an answer from its VMM; `plimsoll events {name}` tells since when there is none")
        }
        VmState::Stuck => {
            "the guest's giving up pages when it is asked again; a guest short of memory, or one whose driver hangs, cannot"
                .to_string()
        }
        VmState::Distressed if vm.target.0 >= sizes.maxmem() => {
            format!("only a larger --maxmem when it is started next: it has all of {}", sizes.maxmem())
        }
        VmState::Distressed if host.waiting.0 > 0 => format!(
            "memory given up by others (lower their `memory=`, release holds, stop one), or a larger budget: {} is waited for",
            short(host.waiting)
        ),
        VmState::Distressed | VmState::Ok => format!(
            "distress of the guest raises it at once, up to {}; need of the host or of other guests lowers it, never below {}; `plimsoll set {name} memory=SIZE` moves its baseline, `plimsoll hold {name} SIZE` pins it",
            sizes.maxmem(),
            sizes.floor()
        ),
    }
}
