//! Back ends that are killed while the guest runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use plimsoll_api::control::Op;
use plimsoll_uffd::handover::{Extent, ToPager};
use plimsoll_units::{FRAME_SIZE, MemTarget, PAGE_SIZE};

use super::guest::{Connection, Cpu, Guest, MAXMEM, Stop, TARGET, goes_on, pages, waits, watched};

/// Kills after which a keeper of a test that kills on purpose still does not give up.
const PATIENT: [&str; 2] = ["--give-up-after", "1000"];

/// Pages with a pattern that one CPU has at most; two of them leave a quarter of the target free.
const MOST: usize = 1536;

/// Numbers without order, the same in each run (Steele, Lea, Flood: SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// Fills, empties, gives back and checks pages of its own, until told to stop.
fn busy(guest: &Guest, connection: &Connection, which: u64, done: &AtomicU64, stop: &AtomicBool) {
    let (cpu, mut numbers) = (guest.cpu(), Numbers(which));
    let mut known: BTreeMap<u64, u64> = BTreeMap::new();
    while !stop.load(SeqCst) {
        let step = done.fetch_add(1, SeqCst) + 1;
        let page = numbers.next(pages(MAXMEM) / 2) * 2 + which;
        let seed = known.get(&page).copied().unwrap_or(0);
        assert!(cpu.has(page, seed), "page {page} is not what was written to it last");
        match numbers.next(8) {
            0 => {
                guest.punch(page..page + 1, (!step.is_multiple_of(3)).then_some(connection));
                known.remove(&page);
            }
            1..3 => {
                cpu.write(page, 0);
                known.remove(&page);
            }
            _ => {
                cpu.write(page, step);
                known.insert(page, step);
            }
        }
        while known.len() > MOST {
            let (page, seed) = known.pop_first().unwrap();
            check_and_empty(&cpu, page, seed);
        }
    }
    known.into_iter().for_each(|(page, seed)| check_and_empty(&cpu, page, seed));
}

fn check_and_empty(cpu: &Cpu, page: u64, seed: u64) {
    assert!(cpu.has(page, seed), "page {page} has lost what was written to it");
    cpu.write(page, 0);
}

#[test]
fn killed_twenty_times_while_the_guest_is_busy_it_loses_nothing() {
    let Some((guest, keeper, connection)) = Guest::served("pod-kills", &PATIENT) else { return };
    let (stop, done) = (AtomicBool::new(false), [0; 2].map(AtomicU64::new));
    let ((), most) = watched(&guest.memory, || {
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            for (which, done) in (0..).zip(&done) {
                let (guest, connection, stop) = (&guest, &connection, &stop);
                scope.spawn(move || busy(guest, connection, which, done, stop));
            }
            for kill in 0..20 {
                // Both go on after each of them.
                let before = [0, 1].map(|which: usize| done[which].load(SeqCst));
                let moved = || (0..2).all(|which| done[which].load(SeqCst) > before[which] + 20);
                keeper.wait("both CPUs to go on", |_| moved().then_some(()));
                let epoch = keeper.status().epoch;
                // Half of them in the middle of a sweep that was asked for, the others wherever it hits.
                if kill % 2 == 0 {
                    let _ = keeper.try_ask(Op::Sweep);
                }
                std::thread::sleep(Duration::from_millis(3 * kill));
                assert!(keeper.kill_back_end());
                keeper.wait("another back end", |k| (k.status().epoch > epoch).then_some(()));
            }
        });
    });
    // What a pager before has given is counted by the next; between two of them nothing is given.
    assert!(most <= TARGET.0, "{most} bytes");
    // Of some holes the VMM did not tell.
    let extent = Extent { offset: 0, length: MAXMEM.0 };
    connection.send(&ToPager::Punched { extent, lost: 0 }.encode(), &[]);
    keeper.wait_in_step(&guest);
    let pager = keeper.pager();
    assert_eq!(pager.target, MemTarget(TARGET));
    assert!(pager.swept_pages > 0 && pager.populated_frames > 0, "{pager:?}");
}

#[test]
fn a_guest_that_waits_waits_on_and_is_told_of_again() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-kill-stalled", &PATIENT) else { return };
    goes_on(&keeper, &guest.fill(0..pages(TARGET), 1));
    let filling = guest.fill(pages(TARGET)..pages(TARGET) + 1, 1);
    let mut before = keeper.wait("a stall", |k| Some(k.pager()).filter(|pager| pager.stalled.is_some()));
    for _ in 0..3 {
        let epoch = keeper.status().epoch;
        assert!(keeper.kill_back_end());
        keeper.wait("another back end", |k| (k.status().epoch > epoch).then_some(()));
        let after =
            keeper.wait("the same stall", |k| Some(k.pager()).filter(|pager| pager.stalled.is_some()));
        assert!(after.turns != before.turns && after.stalls > before.stalls, "{before:?} {after:?}");
        assert_eq!((after.target, after.resident), (MemTarget(TARGET), TARGET));
        before = after;
    }
    waits(&filling);
    assert_eq!(keeper.set_target(MAXMEM).target, MemTarget(MAXMEM));
    goes_on(&keeper, &filling);
}

#[test]
fn a_target_that_was_set_and_a_reset_that_was_begun_outlive_back_ends() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-kill-words", &PATIENT) else { return };
    keeper.set_target(MAXMEM);
    for round in 0..4 {
        goes_on(&keeper, &guest.fill(0..pages(MAXMEM), round + 1));
        let epoch = keeper.status().epoch;
        keeper.ask(Op::Reset);
        assert!(keeper.kill_back_end());
        keeper.wait("another back end", |k| (k.status().epoch > epoch).then_some(()));
        let pager = keeper.pager();
        // The first frame stays: firmware begins in it.
        assert_eq!((pager.target, guest.resident()), (MemTarget(MAXMEM), FRAME_SIZE), "{pager:?}");
        assert_eq!(pager.outstanding.0 * PAGE_SIZE, MAXMEM.0 - FRAME_SIZE);
    }
}

#[test]
fn after_too_many_deaths_the_guest_waits_for_seconds_and_goes_on() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-rest", &["--give-up-after", "3"]) else {
        return;
    };
    goes_on(&keeper, &guest.fill(0..pages(TARGET) / 2, 1));
    keeper.wait("the control socket to go", |k| {
        k.kill_back_end();
        (!k.control_socket().exists()).then_some(())
    });
    assert!(keeper.back_end().is_none());
    guest.cpu().holds(0..pages(TARGET) / 2, 1);
    let filling = guest.fill(pages(TARGET) / 2..pages(TARGET), 1);
    waits(&filling);
    goes_on(&keeper, &filling);
    guest.cpu().holds(0..pages(TARGET), 1);
    assert_eq!(keeper.pager().resident, TARGET);
}
