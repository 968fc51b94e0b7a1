//! An agent whose guest was promised more memory than there is in the world.

use std::time::Duration;

use plimsoll_e2e::{Kind, PATIENCE, mib};
use plimsoll_model::{AgentStats, Source, VmState};
use plimsoll_units::Bytes;

use crate::frames::{calm, in_order};
use crate::world::{SUSPECT, World, act};

/// Half of what can be said in 64 bits.
const COMMITTED: Bytes = Bytes(1 << 63);
/// From one frame to the next.
const PAUSE: Duration = Duration::from_millis(200);

/// Ends the agent and says this in its place, until it has been heard.
#[track_caller]
fn is_promised_the_world(world: &World<'_, '_>) {
    world.inside.signal_agent("KILL");
    let stats = AgentStats { committed: Some(COMMITTED), ..calm(mib(SUSPECT.1)) };
    world.inside.say(&in_order(stats), PAUSE);
    world.suspect.wait("that to be heard", PATIENCE, |view| {
        view.agent.is_some_and(|agent| agent.stats.committed == Some(COMMITTED))
    });
}

/// Self-ballooning follows what a guest's programs were promised. Where that is beyond all bounds, it goes to maxmem at
/// most, out of what nobody else has.
fn asks_for_everything(world: &World<'_, '_>) {
    let suspect = world.suspect;
    suspect.bed.ok(&["set", "suspect", "selfballooning=on", "selfballoon_interval=1"]);
    is_promised_the_world(world);
    world.needy_is_served();
    let view = suspect.view();
    assert!(view.target.0 <= view.sizes.maxmem() && view.target.0 >= view.sizes.floor(), "{view:#?}");
    assert_eq!(view.state, VmState::Ok, "{view:#?}");
    world.inside.hush();
    suspect.wait("its agent to be silent", PATIENCE, |view| view.source == Source::Device);
    suspect.bed.ok(&["set", "suspect", "selfballooning=off"]);
    world.inside.agent_is_heard();
}

#[test]
fn self_ballooning_by_an_absurd_promise_stays_within_maxmem() {
    act("self_ballooning_by_an_absurd_promise_stays_within_maxmem", Kind::Uml, asks_for_everything);
}

/// 2^63 bytes are more than all programs of a machine can address: an agent that says so lies, and its guest is judged by
/// its balloon's statistics.
#[test]
fn an_agent_that_tells_of_an_absurd_promise_is_not_believed() {
    act("an_agent_that_tells_of_an_absurd_promise_is_not_believed", Kind::Uml, |world| {
        is_promised_the_world(world);
        world.falls_back();
        world.needy_is_served();
        world.falls_back();
        world.inside.hush();
        world.inside.agent_is_heard();
    });
}
