//! Killed processes, and guests that begin anew.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_units::PAGE_SIZE;

use super::model::{Space, index};
use super::steps::{correct, take_back, unpin};
use super::world::{Flight, Kind, World};
use crate::test::{from_image, image};
use crate::{Ledger, PageState, Reboot};

/// The process is killed between two events. Bit `n` of `done` says whether the `n`th call under way was made.
pub(super) fn crash(world: &mut World, done: u64) {
    for n in 0..world.flights.len() {
        if done >> (n % 64) & 1 == 1 {
            world.execute(n);
        }
    }
    let protected = world.ledger.protected();
    let rebooting = world.ledger.is_rebooting();
    let totals = world.ledger.totals();
    let (ledger, repairs) = Ledger::attach(from_image(&image(&world.ledger))).unwrap();
    assert_eq!((repairs.protected, repairs.reboot, ledger.totals()), (protected, rebooting, totals));
    assert!(!repairs.reset && repairs.stray_frames == 0 && repairs.uniform_maps == 0);
    // The log goes on, for who cuts it.
    let log = world.ledger.words.log.take();
    ledger.words.log.borrow_mut().splice(0..0, log);
    world.ledger = ledger;
    check_protection(world);
    if protected.is_some() {
        world.seen.insert("killed during a sweep");
    }
    world.ledger.end_batch();
    (world.flights, world.pinned) = (vec![], vec![]);
    (world.batch, world.zero) = (vec![], vec![]);
    for page in world.spaces.iter_mut().flat_map(|space| &mut space.pages) {
        (page.held, page.arriving, page.leaving, page.pins) = (false, false, false, 0);
        (page.protected, page.takeable) = (false, false);
    }
    for n in 0..world.spaces.len() {
        let all = world.extent((n, 0, u64::MAX));
        correct(world, all);
    }
    world.limit = world.limit.max(world.resident());
}

/// Everything protected is where the mark says.
fn check_protection(world: &World) {
    let hull = world.ledger.protected();
    for space in &world.spaces {
        for (page, _) in space.pages.iter().enumerate().filter(|(_, page)| page.protected) {
            let hull = hull.unwrap();
            assert!(hull.space == space.id && (index(hull.first)..index(hull.end())).contains(&page));
        }
    }
}

/// The guest begins anew and stands still meanwhile. After `kill` steps the process is killed.
pub(super) fn reboot(world: &mut World, most: usize, kill: Option<usize>) {
    for page in world.spaces.iter_mut().flat_map(|space| &mut space.pages) {
        take_back(page);
        page.want = None;
    }
    world.ledger.begin_reboot();
    for step in 0.. {
        assert!(step < 100, "the reboot comes to no end");
        if kill == Some(step) {
            world.seen.insert("killed during a reboot");
            crash(world, 0x5555_5555_5555_5555);
        }
        let mut out = vec![];
        let progress = world.ledger.continue_reboot(most, &mut out);
        for discard in out {
            let n = world.space_of(discard.space);
            let first = index(discard.offset.0 / PAGE_SIZE);
            let pages = first..first + index(discard.len.0 / PAGE_SIZE);
            for page in &mut world.spaces[n].pages[pages.clone()] {
                assert!(page.pins == 0 && !page.arriving && !page.leaving);
                page.set(PageState::Outstanding);
                page.leaving = true;
            }
            world.flights.push(Flight { kind: Kind::Discard, space: n, pages, done: false });
        }
        match progress {
            Reboot::More => {}
            Reboot::Waiting { left, leaving } => settle(world, left.0, leaving.0),
            Reboot::Done => break,
        }
    }
    assert!(!world.ledger.is_rebooting() && world.memory() == 0 && world.resident() == 0);
    for page in world.spaces.iter_mut().flat_map(|space| &mut space.pages) {
        assert_eq!(page.state, PageState::Outstanding);
        page.want = Some(0);
    }
}

/// Whatever the reboot waits for comes to its end.
fn settle(world: &mut World, left: u64, leaving: u64) {
    let count = |world: &World, holds: fn(&super::model::Page) -> bool| -> u64 {
        world.spaces.iter().flat_map(|space: &Space| &space.pages).map(|page| u64::from(holds(page))).sum()
    };
    assert_eq!(left, count(world, |page| page.state != PageState::Outstanding));
    assert_eq!(leaving, count(world, |page| page.leaving));
    assert!(left > 0 || leaving > 0);
    world.seen.insert(if left > 0 { "reboot met I/O" } else { "reboot waited for discards" });
    while !world.flights.is_empty() {
        world.finish(0, true);
    }
    let pins: Vec<_> = world.pinned.clone();
    for _ in pins {
        unpin(world, 0);
    }
}
