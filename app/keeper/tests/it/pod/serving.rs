//! What a pager promises, through keeper and back end.

use std::time::{Duration, Instant};

use plimsoll_api::control::{AWAIT_PAGER_MS, ErrorKind, Op, Outcome, Status};
use plimsoll_uffd::handover::ToVmm;
use plimsoll_units::{BalloonSize, Bytes, FRAME_SIZE, MemTarget, PAGE_SIZE, PageCount};

use super::guest::{Guest, MAXMEM, TARGET, frames, goes_on, pages, waits, watched};
use crate::common::{Keeper, LIMIT, resident_kib, ticks};

#[test]
fn before_a_vmm_comes_the_target_can_be_set_and_stays() {
    let Some(guest) = Guest::new("pod-before") else { return };
    let keeper = Keeper::start_pod("before", &guest.memory, TARGET, &[]);
    let status = keeper.status();
    let pager = status.pager.unwrap();
    assert_eq!((pager.target, pager.mapped, status.connected), (MemTarget(TARGET), false, false));
    assert_eq!((pager.outstanding.0, pager.resident, pager.limit), (pages(MAXMEM), Bytes::ZERO, TARGET));
    assert_eq!(keeper.set_target(Bytes::mib(8)).target, MemTarget(Bytes::mib(8)));
    let connection = guest.hand_over(&keeper);
    assert_eq!(connection.answer(), Some(ToVmm::Accepted));
    let status = keeper.status();
    let pager = status.pager.unwrap();
    assert_eq!((pager.target, pager.mapped), (MemTarget(Bytes::mib(8)), true));
    assert_eq!((status.connected, status.generation, status.epoch), (true, 1, 2));
}

#[test]
fn what_is_touched_is_there_and_no_more_than_the_target_ever() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-touch", &[]) else { return };
    let (late, most) = watched(&guest.memory, || {
        goes_on(&keeper, &guest.fill(0..pages(Bytes::mib(12)), 1));
        goes_on(&keeper, &guest.fill(pages(Bytes::mib(40))..pages(Bytes::mib(44)), 1));
        let late = guest.fill(pages(Bytes::mib(50))..pages(Bytes::mib(51)), 1);
        waits(&late);
        late
    });
    assert_eq!(most, TARGET.0);
    assert_eq!(keeper.set_target(Bytes::mib(20)).target, MemTarget(Bytes::mib(20)));
    goes_on(&keeper, &late);
    let pager = keeper.pager();
    assert!(pager.populated_frames >= frames(TARGET), "{pager:?}");
    assert_eq!(pager.resident.0, guest.resident());
    assert_eq!(pager.outstanding.bytes().plus(pager.resident), MAXMEM);
    let cpu = guest.cpu();
    cpu.holds(0..pages(Bytes::mib(12)), 1);
    cpu.holds(pages(Bytes::mib(40))..pages(Bytes::mib(44)), 1);
}

#[test]
fn a_guest_that_needs_more_waits_is_told_of_and_goes_on_at_once() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-stall", &[]) else { return };
    let quiet = keeper.pager();
    assert_eq!((quiet.stalled, quiet.stalls), (None, 0));
    let wait = |after| keeper.ask(Op::AwaitPager { after }).pager.unwrap();
    let all = 0..pages(MAXMEM);
    let filling = std::thread::scope(|scope| {
        let told = scope.spawn(|| (wait(quiet.turns), Instant::now()));
        // Long enough that the question has been asked; it is answered at once all the same if not.
        std::thread::sleep(Duration::from_millis(200));
        let filling = guest.fill(all.clone(), 2);
        let (stalled, _) = told.join().unwrap();
        assert!(stalled.turns != quiet.turns && stalled.stalls == 1, "{stalled:?}");
        assert!(stalled.stalled.is_some_and(|stalled| stalled.waiting == 1), "{stalled:?}");
        filling
    });
    waits(&filling);
    assert_eq!(guest.resident(), TARGET.0);
    let before = keeper.pager();
    let since = before.stalled.unwrap().since_ms;
    assert!((200..60_000).contains(&since), "{before:?}");
    std::thread::scope(|scope| {
        let told = scope.spawn(|| wait(before.turns));
        let raised = Instant::now();
        keeper.set_target(MAXMEM);
        let took = goes_on(&keeper, &filling) - raised;
        assert!(took < Duration::from_secs(5), "48 MiB more took {took:?}");
        let relieved = told.join().unwrap();
        assert!(relieved.turns != before.turns && relieved.stalled.is_none(), "{relieved:?}");
    });
    guest.cpu().holds(all, 2);
}

#[test]
fn a_raised_target_reaches_who_waits_within_milliseconds() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-quick", &[]) else { return };
    goes_on(&keeper, &guest.fill(0..pages(TARGET), 3));
    let mut waits_ms = Vec::new();
    for step in 0..10 {
        let page = pages(TARGET) + step;
        let next = guest.fill(page..page + 1, 3);
        keeper.wait("a stall", |k| k.pager().stalled);
        let raised = Instant::now();
        keeper.set_target(TARGET.plus(Bytes((step + 1) * PAGE_SIZE)));
        waits_ms.push((goes_on(&keeper, &next) - raised).as_millis());
    }
    waits_ms.sort_unstable();
    // Of a test build, question and answer included, on a machine with other things to do.
    assert!(waits_ms[5] < 50, "{waits_ms:?}");
}

#[test]
fn pages_of_zeros_make_room_by_themselves_and_when_asked_for() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-sweep", &[]) else { return };
    let pattern = 0..pages(Bytes::mib(4));
    goes_on(&keeper, &guest.fill(pattern.clone(), 4));
    goes_on(&keeper, &guest.fill(pattern.end..pages(Bytes::mib(12)), 0));
    let before = keeper.pager();
    keeper.ask(Op::Sweep);
    let swept = keeper.wait("a sweep", |k| Some(k.pager()).filter(|pager| pager.sweeps > before.sweeps));
    assert_eq!((swept.resident, swept.swept_frames), (Bytes::mib(4), frames(Bytes::mib(8))), "{swept:?}");
    // A guest that zeroes all it was told it has: without a word it never has more than its target.
    goes_on(&keeper, &guest.fill(pattern.end..pages(MAXMEM), 0));
    let after = keeper.pager();
    assert!(after.sweeps > swept.sweeps && after.swept_pages > swept.swept_pages, "{after:?}");
    assert!(guest.resident() <= TARGET.0);
    guest.cpu().holds(pattern, 4);
}

#[test]
fn holes_that_the_vmm_makes_are_known_whether_it_says_so_or_not() {
    let Some((guest, keeper, connection)) = Guest::served("pod-hints", &[]) else { return };
    goes_on(&keeper, &guest.fill(0..pages(Bytes::mib(8)), 5));
    guest.punch(0..700, Some(&connection));
    keeper.wait_in_step(&guest);
    guest.punch(1000..1100, None);
    goes_on(&keeper, &guest.fill(1000..1100, 6));
    goes_on(&keeper, &guest.fill(0..10, 6));
    keeper.wait_in_step(&guest);
    let cpu = guest.cpu();
    cpu.holds(700..1000, 5);
    cpu.holds(1100..pages(Bytes::mib(8)), 5);
    cpu.holds(1000..1100, 6);
    cpu.holds(0..10, 6);
}

#[test]
fn a_guest_that_begins_anew_has_nothing_again() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-reset", &[]) else { return };
    goes_on(&keeper, &guest.fill(0..pages(TARGET), 7));
    let before = keeper.pager();
    assert_eq!(guest.resident(), TARGET.0);
    keeper.ask(Op::Reset);
    let after = keeper.wait("the reset", |k| Some(k.pager()).filter(|pager| !pager.resetting));
    assert_ne!(after.turns, before.turns);
    // The first frame stays: firmware begins in it.
    let kept = Bytes(FRAME_SIZE);
    assert_eq!((guest.resident(), after.resident), (FRAME_SIZE, kept));
    assert_eq!(after.outstanding.0, pages(MAXMEM) - pages(kept));
    assert_eq!(after.target, MemTarget(TARGET));
    guest.cpu().holds(0..pages(kept), 7);
    assert!(guest.cpu().has(pages(kept) + 3, 0), "nothing of the guest before is left");
    goes_on(&keeper, &guest.fill(0..pages(TARGET), 8));
    guest.cpu().holds(0..pages(TARGET), 8);
}

#[test]
fn what_cannot_be_asked_is_refused_with_a_reason() {
    let Some(guest) = Guest::new("pod-refusals") else { return };
    let on_demand = Keeper::start_pod("refusals", &guest.memory, TARGET, &[]);
    let devices = Keeper::start("devices", MAXMEM, &[]);
    let target = |bytes| Op::SetTarget { target: MemTarget(Bytes(bytes)) };
    let balloon = Op::SetBalloon { pages: BalloonSize(PageCount(1)) };
    for (keeper, op, kind) in [
        (&on_demand, target(MAXMEM.0 + PAGE_SIZE), ErrorKind::OutOfRange),
        (&on_demand, target(4097), ErrorKind::OutOfRange),
        (&on_demand, target(0), ErrorKind::OutOfRange),
        (&on_demand, balloon, ErrorKind::Unsupported),
        (&on_demand, Op::StatsInterval { ms: 1000 }, ErrorKind::Unsupported),
        (&on_demand, Op::AwaitAgent { after: 0 }, ErrorKind::Unsupported),
        (&devices, target(PAGE_SIZE), ErrorKind::Unsupported),
        (&devices, Op::AwaitPager { after: 0 }, ErrorKind::Unsupported),
        (&devices, Op::Sweep, ErrorKind::Unsupported),
        (&devices, Op::Reset, ErrorKind::Unsupported),
    ] {
        keeper.status();
        let Outcome::Error(error) = keeper.try_ask(op).unwrap().result else { panic!("{op:?} was done") };
        assert_eq!(error.kind, kind, "{op:?}: {}", error.message);
    }
    assert_eq!(on_demand.pager().target, MemTarget(TARGET));
    assert_eq!(devices.status().pager, None);
}

#[test]
fn where_nothing_happens_the_question_is_answered_in_the_end_and_little_is_used() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-idle", &[]) else { return };
    goes_on(&keeper, &guest.fill(0..pages(Bytes::mib(4)), 9));
    let Status { pager: Some(pager), .. } = keeper.status() else { panic!() };
    let both = [keeper.pid(), keeper.back_end().unwrap()];
    let used = || both.iter().map(|pid| ticks(*pid)).sum::<u64>();
    let (begun, before) = (Instant::now(), used());
    let after = keeper.ask(Op::AwaitPager { after: pager.turns }).pager.unwrap();
    let took = begun.elapsed();
    assert_eq!(after.turns, pager.turns);
    assert!(took >= Duration::from_millis(AWAIT_PAGER_MS) && took < LIMIT, "{took:?}");
    // A tick is 10 ms, so this is 1 % of a core.
    assert!(used() - before <= 5, "{} ticks in {took:?}", used() - before);
    let rss: Vec<_> = both.iter().map(|pid| resident_kib(*pid)).collect();
    assert!(rss.iter().sum::<u64>() < 24 * 1024, "keeper and back end hold {rss:?} KiB");
}
