//! A guest whose memory is locked, so that it can give only a part of what it is asked for.

use std::time::Duration;

use plimsoll_api::http::ListView;
use plimsoll_e2e::{Bed, Kind, Limit, Vm, Watch, mib};
use plimsoll_model::VmState;

use crate::kit::{Needy, Spec, budget, config, is_listed, of, start, tell};

const UML: [Spec; 2] = [("locked", Kind::Uml, (256, 256, 64)), ("needy", Kind::Uml, (96, 320, 64))];
/// Locked, in MiB: the guest cannot come near what it is asked for.
const LOCKED: u64 = 96;
/// Asked for, in MiB.
const ASKED: u64 = 80;
/// What it gives at least, having that much beyond what is locked and what its kernel takes.
const PART: u64 = 48;
/// For memory to be moved, and for a guest that does not to be judged, after 4 s.
const MOVED: Duration = Duration::from_secs(30);

fn half_obeys(test: &str, how: impl FnOnce(&Vm<'_>, &Needy<'_, '_>)) {
    let budget = budget(&UML);
    let Some(bed) = Bed::journaled(test, &config(budget)) else { return };
    let Some(vms) = start(&bed, &UML) else { return };
    let [locked, needy] = vms.as_slice() else { panic!("two VMs were expected") };
    let needy = Needy(needy);
    locked.send(&format!("lock {LOCKED}M"));
    let watch = Watch::begin(&bed, budget, &[locked, needy.0]);
    how(locked, &needy);
    tell(&watch.end(Limit::Strict).0);
    needy.is_whole();
}

/// It has given a part, and holds more than was locked.
fn gave_a_part(list: &ListView) -> bool {
    let actual = of(list, "locked").actual.0;
    actual > mib(LOCKED) && actual <= mib(256 - PART)
}

/// By the arbiter: asked for more than it can give, it is in distress, and is left what it needs.
#[test]
fn a_guest_under_mlock_gives_a_part_and_is_left_what_it_needs() {
    half_obeys("a_guest_under_mlock_gives_a_part_and_is_left_what_it_needs", |locked, needy| {
        locked.bed.ok(&["set", "locked", &format!("memory={ASKED}M")]);
        locked.bed.wait_event("locked", "distressed");
        let settled = |list: &ListView| {
            let locked = of(list, "locked");
            let left = locked.actual == locked.target
                && locked.need.is_some_and(|need| locked.actual.0 >= need.minus(mib(12)));
            left && gave_a_part(list) && of(list, "needy").target.0 >= mib(96 + PART / 2)
        };
        needy.until(MOVED, "a part of what was asked for", settled);
        is_listed(locked.bed, "locked", &["ok"]);
        assert_eq!(locked.send("verify").number("bad_pages"), Some(0));

        // Unlocked, it gives the rest.
        locked.send("free");
        needy.until(MOVED, "the rest", |list| of(list, "locked").actual.0 <= mib(LOCKED));
    });
}

/// By an operator's pin: it stays where it cannot go further, shown as it is, and nobody waits for the rest.
#[test]
fn a_guest_under_mlock_that_is_held_lower_keeps_nobody_waiting() {
    half_obeys("a_guest_under_mlock_that_is_held_lower_keeps_nobody_waiting", |locked, needy| {
        locked.bed.ok(&["hold", "locked", &format!("{ASKED}M")]);
        let given_up = |list: &ListView| {
            let distressed = of(list, "needy").state == VmState::Distressed;
            gave_a_part(list) && distressed && list.host.waiting.0 == 0
        };
        let list = needy.until(MOVED, "nobody to wait for what does not come", given_up);
        let view = of(&list, "locked");
        assert_eq!((view.state, view.target.0), (VmState::Held, mib(ASKED)), "{view:#?}");
        is_listed(locked.bed, "locked", &["held", "80M"]);
        assert_eq!(locked.send("verify").number("bad_pages"), Some(0));

        // Unlocked, it goes where it was told to, unasked.
        locked.send("free");
        locked.reaches(mib(ASKED));
        let all = mib(96 + 256 - ASKED - 1);
        needy.until(MOVED, "the rest to be granted", |list| of(list, "needy").target.0 >= all);
        locked.bed.ok(&["release", "locked"]);
    });
}
