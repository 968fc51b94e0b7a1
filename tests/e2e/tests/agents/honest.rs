//! An honest agent, from the guest's own /proc to what the arbiter does.

use plimsoll_api::http::VmView;
use plimsoll_e2e::{Bed, CALM, Kind, PATIENCE, Tick, Vm, mib, sizes};
use plimsoll_model::{AgentStats, Reason, Source, VmId};
use plimsoll_units::Bytes;

use crate::inside::Inside;
use crate::world::tell;

/// A daemon that looks seldom by itself: what comes sooner was called for. An agent is heard once a second.
const SELDOM: &str = "tick = \"5s\"\n";
/// What the guest's own account and the agent's may differ by: they are taken at different moments.
const APART: Bytes = mib(4);
/// From an urgent report to the tick that answers it: the pause between two readings of the line, the least time
/// between two ticks, and what a busy machine adds.
const ANSWERED_MS: u64 = 1000;
/// Less than this available and the guest is in distress.
const CLOSE: Bytes = mib(6);

fn speaks_for_its_guest(test: &str, kind: Kind, (memory, maxmem, floor): (u64, u64, u64)) {
    let Some(bed) = Bed::journaled(test, &format!("{SELDOM}{CALM}")) else { return };
    let Some(vm) = bed.run(kind, "web", sizes(memory, maxmem, floor), &[]) else { return };
    vm.reaches(mib(memory));
    Inside(&vm).agent_is_heard();
    agrees(&vm);
    let text = bed.ok(&["explain", "web"]);
    assert!(text.contains("by its agent"), "{text}");
    is_answered_at_once(&vm, mib(memory));
}

/// What is shown of the agent's word is what the guest's kernel says.
fn agrees(vm: &Vm<'_>) {
    vm.send("fill 24M");
    let own = vm.send("meminfo");
    let own = |key: &str| own.number(key).map(Bytes);
    let (total, free, available, committed) = (own("total"), own("free"), own("available"), own("committed"));
    let near = |told: Option<Bytes>, own: Option<Bytes>| {
        told.zip(own).is_some_and(|(told, own)| told.minus(own) <= APART && own.minus(told) <= APART)
    };
    let agrees = |stats: &AgentStats| {
        stats.total == total
            && near(stats.free, free)
            && near(stats.available, available)
            && near(stats.committed, committed)
    };
    let what = format!("the agent's word to be near {total:?} {free:?} {available:?} {committed:?}");
    let view = vm.wait(&what, PATIENCE, |view: &VmView| {
        view.source == Source::Agent && view.agent.is_some_and(|agent| agrees(&agent.stats))
    });
    let line = view.agent_line.expect("it has a line");
    assert!(line.frames > 0 && line.bad_frames == 0 && line.out_of_order == 0, "{line:?}");
}

/// A guest that comes into distress between two ticks is answered by one that does not wait for its time.
fn is_answered_at_once(vm: &Vm<'_>, memory: Bytes) {
    let size = vm.meminfo("available").minus(CLOSE);
    vm.send(&format!("fill {}", size.0 & !0xfff));
    let view =
        vm.wait("to be granted more", PATIENCE, |view| view.target.0 > memory && view.actual == view.target);
    let ticks = vm.bed.ticks();
    let at = ticks.iter().position(|tick| grants(tick, view.id)).expect("a tick that grants it more");
    let (before, tick) = (&ticks[at - 1], &ticks[at]);
    let said = tick.snapshot.vms[0].agent.expect("the agent was heard");
    let after_ms = tick.snapshot.now.millis_since(said.at);
    let gap_ms = tick.snapshot.now.millis_since(before.snapshot.now);
    assert!(after_ms <= ANSWERED_MS, "answered {after_ms} ms after it was said: {tick:#?}");
    // The report that was answered is the first one that told of it: no tick before had another to look at.
    let known = before.snapshot.vms[0].agent.and_then(|agent| agent.stats.available);
    assert!(known.is_none_or(|left| left >= mib(12)), "{before:#?}");
    assert_eq!(vm.send("verify").number("bad_pages"), Some(0));
    assert_eq!(vm.send("balloon").number("oom_kill"), Some(0));
    tell(&format!(
        "{}: answered {after_ms} ms after it was heard, {gap_ms} ms after the tick before",
        vm.name
    ));
}

/// Whether a tick grants a VM more for its distress, by the word of its agent.
fn grants(tick: &Tick, id: VmId) -> bool {
    let heard = |reason: &Reason| matches!(reason, Reason::Distress { source: Source::Agent, .. });
    tick.plan.actions.iter().any(|action| action.vm == id && action.to > action.from && heard(&action.reason))
}

#[test]
fn an_agent_in_uml_speaks_for_its_guest() {
    speaks_for_its_guest("an_agent_in_uml_speaks_for_its_guest", Kind::Uml, (160, 256, 64));
}

#[test]
fn an_agent_in_qemu_speaks_for_its_guest() {
    speaks_for_its_guest("an_agent_in_qemu_speaks_for_its_guest", Kind::Qemu, (256, 384, 96));
}
