//! Agents that say what cannot be, or what nobody can read, or nothing.

use std::time::Duration;

use plimsoll_agent_proto::VERSION;
use plimsoll_e2e::{Kind, mib};
use plimsoll_model::AgentStats;
use plimsoll_units::Bytes;

use crate::frames::{FRAMES, calm, huge, in_order, of_version, reports, truncated};
use crate::world::{SUSPECT, World, act, tell};

/// From one frame to the next.
const PAUSE: Duration = Duration::from_millis(200);

/// Frames that are sent in the place of the agent's, and what is counted of them at least.
type Lie = (&'static str, Vec<Vec<u8>>, fn(&plimsoll_api::control::AgentCounters) -> u64);

fn maxmem() -> Bytes {
    mib(SUSPECT.1)
}

/// What cannot be true: read, and not believed.
fn impossible() -> Vec<Lie> {
    let honest = calm(maxmem());
    let lie = |stats: AgentStats| in_order(stats);
    vec![
        ("more available than there is", lie(AgentStats { available: Some(maxmem()), ..honest }), |line| {
            line.frames
        }),
        ("all memory of the world", lie(AgentStats { available: Some(Bytes(u64::MAX)), ..honest }), |line| {
            line.frames
        }),
        (
            "more memory than it was told of",
            lie(AgentStats { total: Some(maxmem().plus(mib(1))), ..honest }),
            |line| line.frames,
        ),
        ("a total of nothing", lie(AgentStats { total: Some(Bytes::ZERO), ..honest }), |line| line.frames),
    ]
}

/// What nobody can read: not taken for a word at all.
fn unreadable() -> Vec<Lie> {
    let good = || in_order(calm(maxmem()));
    let backwards = reports(calm(maxmem()), (1..=FRAMES).rev().map(|seq| (0x5eed, seq)));
    vec![
        ("truncated frames", truncated(good()), |line| line.bad_frames),
        ("huge frames", huge(good()), |line| line.bad_frames),
        ("frames out of order", backwards, |line| line.out_of_order),
        ("frames of a newer version", of_version(VERSION + 1, good()), |line| line.newer_versions),
        ("frames of an older version", of_version(VERSION - 1, good()), |line| line.older_versions),
    ]
}

/// The agent ends; somebody else speaks on its line; then there is an honest one again.
#[track_caller]
fn is_found_out(world: &World<'_, '_>, (what, frames, counted): &Lie) {
    let line = || world.suspect.view().agent_line.map_or(0, |line| counted(&line));
    world.inside.signal_agent("KILL");
    let before = line();
    world.inside.say(frames, PAUSE);
    // It goes on all the while, and that changes nothing. How soon it was found out is checked in the end.
    world.needy_is_served();
    world.falls_back();
    let heard = line().saturating_sub(before);
    assert!(heard >= 3, "{what}: {heard} were counted of {:?}", world.suspect.view().agent_line);
    world.inside.hush();
    world.inside.agent_is_heard();
    tell(&format!("{what}: {heard} heard"));
}

fn are_found_out(test: &str, kind: Kind, lies: &[Lie]) {
    act(test, kind, |world| lies.iter().for_each(|lie| is_found_out(world, lie)));
}

#[test]
fn an_agent_in_uml_that_says_what_cannot_be_is_not_believed() {
    let name = "an_agent_in_uml_that_says_what_cannot_be_is_not_believed";
    are_found_out(name, Kind::Uml, &impossible());
}

#[test]
fn an_agent_in_uml_that_nobody_can_read_is_not_heard() {
    are_found_out("an_agent_in_uml_that_nobody_can_read_is_not_heard", Kind::Uml, &unreadable());
}

#[test]
fn an_agent_in_qemu_that_lies_is_not_believed() {
    let lies: Vec<_> = impossible().into_iter().take(1).chain(unreadable().into_iter().take(3)).collect();
    are_found_out("an_agent_in_qemu_that_lies_is_not_believed", Kind::Qemu, &lies);
}

/// An agent that stops speaking: stopped, killed; a guest without one is judged by its balloon all the time.
fn falls_silent(world: &World<'_, '_>) {
    world.inside.signal_agent("STOP");
    world.falls_back();
    world.needy_is_served();
    world.inside.signal_agent("CONT");
    world.inside.is_heard();
    world.inside.signal_agent("KILL");
    world.falls_back();
    world.needy_is_served();
    world.inside.agent_is_heard();
}

#[test]
fn an_agent_in_uml_that_falls_silent_is_done_without() {
    act("an_agent_in_uml_that_falls_silent_is_done_without", Kind::Uml, falls_silent);
}

#[test]
fn an_agent_in_qemu_that_falls_silent_is_done_without() {
    act("an_agent_in_qemu_that_falls_silent_is_done_without", Kind::Qemu, falls_silent);
}
