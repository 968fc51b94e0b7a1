//! Everything about one VM, or the host, in groups.

use std::fmt::Write;

use plimsoll_api::http::{BackendView, Change, Endpoint, HostView, PagerView, ProcessRef, VmView};
use plimsoll_model::{AgentStats, GuestStats, Link, Tunables};
use plimsoll_units::{Bytes, Ppm};

use super::size::{maybe, short};
use super::{clean, time, vms};

/// `show NAME`.
pub(crate) fn vm(vm: &VmView, now_us: u64) -> String {
    let mut text = format!("{} (id {}, of user {})\n", vm.name, vm.id.0, vm.owner_uid);
    group(&mut text, "state", &state_facts(vm));
    group(&mut text, "memory", &memory_facts(vm));
    group(&mut text, "guest", &guest_facts(vm));
    group(&mut text, "self-ballooning", &tunable_facts(vm));
    if let Some(backend) = &vm.backend {
        group(&mut text, "back end", &backend_facts(backend));
    }
    if let Some(pager) = &vm.pager {
        group(&mut text, "populated on demand", &pager_facts(pager));
    }
    group(&mut text, "processes", &process_facts(vm));
    let change = vm.last_change.as_ref().map_or("none yet".to_string(), |c| change_line(c, now_us));
    group(&mut text, "last change", &[("", change)]);
    text
}

/// `host`.
pub(crate) fn host(host: &HostView) -> String {
    let mut text = format!("host {} (plimsolld {})\n", host.state, clean(&host.version));
    let sample = &host.sample;
    let share =
        |part: Bytes| format!("{} ({} of the budget)", short(part), Ppm::ratio(part.0, sample.budget.0));
    group(
        &mut text,
        "budget",
        &[
            ("budget", short(sample.budget)),
            ("claimed", share(host.claimed)),
            ("guaranteed", share(host.guaranteed)),
            ("told to guests", share(host.told)),
            ("waited for", short(host.waiting)),
        ],
    );
    let psi = sample.psi.map_or("not in this kernel".to_string(), |psi| {
        format!(
            "some {}, full {}, since boot",
            time::span(psi.some_us / 1000),
            time::span(psi.full_us / 1000)
        )
    });
    group(
        &mut text,
        "memory",
        &[
            ("available", format!("{} (short below {})", short(sample.available), short(sample.low))),
            ("stalled", psi),
            ("swapped in", format!("{} pages since boot", sample.swap_in_pages)),
            ("swapped out", format!("{} pages since boot", sample.swap_out_pages)),
            (
                "measured on",
                host.cgroup.as_deref().map_or("the host".to_string(), |c| format!("cgroup {}", clean(c))),
            ),
        ],
    );
    group(
        &mut text,
        "daemon",
        &[("ticks", host.ticks.to_string()), ("last tick", format!("{} us", host.tick_us))],
    );
    text
}

/// A heading and its facts, the values in one column; nothing for no facts.
fn group(text: &mut String, head: &str, facts: &[(&str, String)]) {
    if facts.is_empty() {
        return;
    }
    let width = facts.iter().map(|(what, _)| what.len()).max().unwrap_or(0).max(15);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{head}");
    for (what, fact) in facts {
        let _ = match *what {
            "" => writeln!(text, "  {fact}"),
            what => writeln!(text, "  {what:<width$} {fact}"),
        };
    }
}

fn state_facts(vm: &VmView) -> Vec<(&'static str, String)> {
    let link = match vm.link {
        Link::Up => "the balloon driver answers",
        Link::NoDriver => "the guest has no balloon driver (yet)",
        Link::Unreachable => "nobody answers",
    };
    let mut facts = vec![
        ("life", vms::life(vm.life).to_string()),
        ("state", vm.state.to_string()),
        ("balloon", link.to_string()),
        ("why", clean(&vm.reason_text)),
    ];
    if let Some(problem) = &vm.problem {
        facts.push(("problem", clean(problem)));
    }
    facts
}

fn memory_facts(vm: &VmView) -> Vec<(&'static str, String)> {
    let mut facts = vec![("target", vm.target.to_string())];
    if let Some(hold) = vm.hold {
        facts.push(("held at", hold.to_string()));
    }
    facts.extend([
        ("actual", vm.actual.to_string()),
        ("resident", vm.resident.map_or("not known".to_string(), |r| r.to_string())),
        ("memory", vm.sizes.memory().to_string()),
        ("floor", vm.sizes.floor().to_string()),
        ("maxmem", vm.sizes.maxmem().to_string()),
        ("weight", vm.sizes.weight().to_string()),
        ("overhead", vm.overhead.to_string()),
    ]);
    facts
}

fn guest_facts(vm: &VmView) -> Vec<(&'static str, String)> {
    let mut facts =
        vec![("needs", maybe(vm.need)), ("could spare", short(vm.spare)), ("known", vm.source.to_string())];
    match &vm.agent {
        Some(agent) => {
            facts.push(("agent", format!("{} old", time::span(agent.age_ms))));
            facts.extend(agent_facts(&agent.stats));
        }
        None => facts.push(("agent", "has not spoken".to_string())),
    }
    let Some(sample) = &vm.stats else {
        facts.push(("statistics", "none yet".to_string()));
        return facts;
    };
    let age = vm.stats_age_ms.map_or("of unknown age".to_string(), |ms| format!("{} old", time::span(ms)));
    facts.push(("statistics", age));
    facts.extend(stats_facts(&sample.stats));
    facts
}

fn agent_facts(stats: &AgentStats) -> Vec<(&'static str, String)> {
    let sizes = [
        ("  total", stats.total),
        ("  free", stats.free),
        ("  available", stats.available),
        ("  committed", stats.committed),
        ("  cached", stats.cached),
        ("  anonymous", stats.anon),
        ("  swap total", stats.swap_total),
        ("  swap free", stats.swap_free),
        ("  reserve", stats.reserve),
    ];
    let counts = [
        ("  swapped in", stats.swap_in),
        ("  swapped out", stats.swap_out),
        ("  refaults", stats.refaults),
        ("  major faults", stats.major_faults),
        ("  alloc stalls", stats.alloc_stalls),
        ("  oom kills", stats.oom_kills),
    ];
    let sizes = sizes.into_iter().filter_map(|(what, size)| Some((what, short(size?))));
    let counts = counts.into_iter().filter_map(|(what, count)| Some((what, count?.to_string())));
    sizes.chain(counts).collect()
}

fn tunable_facts(vm: &VmView) -> Vec<(&'static str, String)> {
    Tunables::NAMES.iter().filter_map(|name| Some((*name, vm.tunables.get(name)?))).collect()
}

fn stats_facts(stats: &GuestStats) -> Vec<(&'static str, String)> {
    let sizes = [
        ("total", stats.total),
        ("free", stats.free),
        ("available", stats.available),
        ("caches", stats.caches),
        ("swapped in", stats.swap_in),
        ("swapped out", stats.swap_out),
        ("scanned async", stats.async_scan),
        ("scanned direct", stats.direct_scan),
        ("reclaim async", stats.async_reclaim),
        ("reclaim direct", stats.direct_reclaim),
    ];
    let counts = [
        ("major faults", stats.major_faults),
        ("minor faults", stats.minor_faults),
        ("huge pages", stats.huge_allocations),
        ("huge failures", stats.huge_failures),
        ("oom kills", stats.oom_kills),
        ("alloc stalls", stats.alloc_stalls),
    ];
    let sizes = sizes.into_iter().filter_map(|(what, size)| Some((what, short(size?))));
    let counts = counts.into_iter().filter_map(|(what, count)| Some((what, count?.to_string())));
    sizes.chain(counts).collect()
}

fn backend_facts(backend: &BackendView) -> Vec<(&'static str, String)> {
    let (ledger, did) = (&backend.ledger, &backend.counters);
    vec![
        ("started", format!("{} times; the guest connected {} times", backend.epoch, backend.generation)),
        ("present", short(ledger.present.bytes())),
        ("ballooned", short(ledger.ballooned.bytes())),
        ("reported", short(ledger.reported.bytes())),
        ("inflated", format!("{} pages", did.inflated_pages)),
        ("deflated", format!("{} pages", did.deflated_pages)),
        ("reports", format!("{} pages", did.reported_pages)),
        (
            "discards",
            format!(
                "{} ({}, {} whole frames), {} refused",
                did.discards,
                short(Bytes(did.discarded_bytes)),
                did.whole_frames,
                did.discard_errors
            ),
        ),
        ("malformed", format!("{} buffers, {} pages", did.bad_buffers, did.bad_pages)),
    ]
}

fn pager_facts(pager: &PagerView) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("on-exhausted", pager.on_exhausted.to_string()),
        ("on-pager-loss", pager.on_pager_loss.to_string()),
    ];
    if pager.lost {
        facts.push(("pager", "gone for good".to_string()));
    }
    let (Some(status), Some(age)) = (&pager.status, pager.age_ms) else {
        facts.push(("pager", "not heard yet".to_string()));
        return facts;
    };
    let stalled = status.stalled.map_or("no".to_string(), |stalled| {
        format!("for {}, {} faults", time::span(stalled.since_ms), stalled.waiting)
    });
    facts.extend([
        ("heard", format!("{} ago, started {} times", time::span(age), pager.epoch)),
        ("may have", short(status.limit)),
        ("has", short(status.resident)),
        ("outstanding", short(status.outstanding.bytes())),
        ("waits", stalled),
        ("stalls", status.stalls.to_string()),
        (
            "populated",
            format!(
                "{} frames, {} pages; {} faults",
                status.populated_frames, status.populated_pages, status.faults
            ),
        ),
        (
            "sweeps",
            format!("{}, {} pages, {} whole frames", status.sweeps, status.swept_pages, status.swept_frames),
        ),
    ]);
    facts
}

fn process_facts(vm: &VmView) -> Vec<(&'static str, String)> {
    let pid = |process: Option<ProcessRef>| {
        process.map_or("not known".to_string(), |process| format!("pid {}", process.pid))
    };
    let mut facts = match &vm.endpoint {
        Endpoint::Qemu { qmp, pager, .. } => {
            let mut facts = vec![("vmm", format!("qemu, {}", pid(vm.vmm))), ("qmp socket", clean(qmp))];
            if let Some(control) = pager {
                facts.extend([("keeper", pid(vm.keeper)), ("control socket", clean(control))]);
            }
            facts
        }
        Endpoint::Uml { control } => vec![
            ("vmm", format!("uml, {}", pid(vm.vmm))),
            ("keeper", pid(vm.keeper)),
            ("control socket", clean(control)),
        ],
    };
    if let Some(console) = &vm.console {
        facts.push(("console", clean(console)));
    }
    facts
}

/// A change of target in one line.
pub(crate) fn change_line(change: &Change, now_us: u64) -> String {
    let by = match change.by.as_str() {
        "arbiter" => "the arbiter".to_string(),
        user => format!("user {}", clean(user)),
    };
    format!(
        "{} ({}): {} -> {} by {by}: {}",
        time::ago(change.wall_us, now_us),
        time::utc(change.wall_us),
        change.from,
        change.to,
        clean(&change.reason_text)
    )
}
