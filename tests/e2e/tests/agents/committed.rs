//! An agent whose guest was promised more memory than there is in the world.

use std::time::Duration;

use plimsoll_e2e::{Kind, PATIENCE, mib};
use plimsoll_model::{AgentStats, Source, VmState};
use plimsoll_units::Bytes;

use crate::frames::{calm, in_order};
use crate::world::{SUSPECT, World, act, tell};

/// Half of what can be said in 64 bits.
const COMMITTED: Bytes = Bytes(1 << 63);

/// Self-ballooning follows what a guest's programs were promised; where that is beyond all bounds, it goes to maxmem at
/// most, out of what nobody else has.
fn asks_for_everything(world: &World<'_, '_>) {
    let suspect = world.suspect;
    suspect.bed.ok(&["set", "suspect", "selfballooning=on", "selfballoon_interval=1"]);
    world.inside.signal_agent("KILL");
    let stats = AgentStats { committed: Some(COMMITTED), ..calm(mib(SUSPECT.1)) };
    world.inside.say(&in_order(stats), Duration::from_millis(200));
    let heard = suspect.wait("to be heard", PATIENCE, |view| {
        view.agent.is_some_and(|agent| agent.stats.committed == Some(COMMITTED))
    });
    world.needy_is_served();
    let view = suspect.view();
    tell(&format!("heard {:?} {:?} {:?}", heard.source, view.source, view.target));
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
