//! VMMs that their guests have taken over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use plimsoll_uffd::Watch;
use plimsoll_uffd::agreement::{OnPagerLoss, exit};
use plimsoll_uffd::handover::{Extent, Handover, Refusal, ToPager, ToVmm};
use plimsoll_units::PAGE_SIZE;
use rustix::fs::MemfdFlags;

use super::guest::{Connection, Guest, MAXMEM, TARGET, goes_on, guest_memory, pages};
use super::process::Vmm;
use crate::common::{Keeper, LIMIT, open_files};

fn keeper(guest: &Guest, name: &str) -> Keeper {
    Keeper::start_pod(name, &guest.memory, TARGET, &[])
}

/// What is answered to this message with these descriptors.
fn answer(keeper: &Keeper, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Option<ToVmm> {
    let connection = Connection::open(keeper);
    connection.send(bytes, fds);
    connection.answer()
}

fn refused(why: Refusal) -> Option<ToVmm> {
    Some(ToVmm::Refused(why))
}

#[test]
fn only_the_whole_of_the_file_that_was_made_for_it_is_taken() {
    let Some(guest) = Guest::new("pod-wrong-file") else { return };
    let keeper = keeper(&guest, "wrong-file");
    let (uffd, memory, said) = (guest.uffd.as_fd(), guest.memory.as_fd(), guest.said());
    let hand_over = |said, fds: &[BorrowedFd<'_>]| answer(&keeper, &ToPager::Handover(said).encode(), fds);
    let other = guest_memory(MAXMEM.0);
    assert_eq!(hand_over(said, &[uffd, other.as_fd()]), refused(Refusal::OtherFile));
    let unsealed = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, MAXMEM.0).unwrap();
    assert_eq!(hand_over(said, &[uffd, unsealed.as_fd()]), refused(Refusal::OtherFile));
    for part in [
        Handover { length: MAXMEM.0 / 2, ..said },
        Handover { length: MAXMEM.0 * 2, ..said },
        Handover { offset: PAGE_SIZE, length: MAXMEM.0 - PAGE_SIZE, ..said },
    ] {
        assert_eq!(hand_over(part, &[uffd, memory]), refused(Refusal::Size), "{part:?}");
    }
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    assert_eq!(hand_over(said, &[pipe.as_fd(), memory]), refused(Refusal::Other));
    assert_eq!(hand_over(said, &[memory, uffd]), refused(Refusal::Other));
    // And then it is taken as if nothing had been.
    assert_eq!(hand_over(said, &[uffd, memory]), Some(ToVmm::Accepted));
}

#[test]
fn what_is_no_handover_is_refused_and_costs_nothing() {
    let Some(guest) = Guest::new("pod-garbage") else { return };
    let keeper = keeper(&guest, "garbage");
    keeper.status();
    let (uffd, memory) = (guest.uffd.as_fd(), guest.memory.as_fd());
    let good = ToPager::Handover(guest.said()).encode();
    let files = open_files(keeper.pid());
    let punched = ToPager::Punched { extent: Extent { offset: 0, length: PAGE_SIZE }, lost: 0 }.encode();
    for _ in 0..20 {
        for (bytes, fds) in [
            (&b"x"[..], &[][..]),
            (&[0; 40], &[uffd, memory]),
            (&[0xff; 4096], &[]),
            (&good[..39], &[uffd, memory]),
            (&good, &[]),
            (&good, &[uffd]),
            (&good, &[uffd, memory, memory]),
            (&punched, &[]),
            (&ToVmm::Accepted.encode(), &[]),
        ] {
            let answer = answer(&keeper, bytes, fds);
            assert_eq!(answer, refused(Refusal::Protocol), "{}", bytes.escape_ascii());
        }
        let too_many = answer(&keeper, &good, &[memory; 8]);
        assert_eq!(too_many, refused(Refusal::Protocol));
        // Those who say nothing and go.
        drop(Connection::open(&keeper));
    }
    keeper.wait("descriptors to be closed", |k| (open_files(k.pid()) <= files).then_some(()));
    assert!(keeper.log().lines().filter(|line| line.contains("refused a VMM's memory")).count() <= 5);
    assert_eq!(guest.hand_over(&keeper).answer(), Some(ToVmm::Accepted));
}

#[test]
fn who_connects_and_says_nothing_holds_a_vmm_up_for_seconds_only() {
    let Some(guest) = Guest::new("pod-silent") else { return };
    let keeper = keeper(&guest, "silent");
    let silent: Vec<_> = (0..6).map(|_| Connection::open(&keeper)).collect();
    let connection = guest.hand_over(&keeper);
    assert_eq!(connection.answer(), Some(ToVmm::Accepted), "{}", keeper.log());
    assert_eq!(silent[0].answer(), None, "it was hung up on");
}

#[test]
fn there_is_one_mapping_in_one_process_at_a_time() {
    let Some((guest, keeper, first)) = Guest::served("pod-taken", &[]) else { return };
    assert_eq!(guest.hand_over(&keeper).answer(), refused(Refusal::Taken));
    let mut stranger = Vmm::start(&keeper, &guest.memory, OnPagerLoss::Stall);
    stranger.begin("map");
    assert_eq!(stranger.process.wait_exit(LIMIT).unwrap().code(), Some(exit::PAGER));
    assert!(stranger.said().contains("already"), "{}", stranger.said());
    goes_on(&keeper, &guest.fill(0..100, 1));
    // Not even when the VMM has hung up: it is still the one whose end is the VM's.
    drop(first);
    let mut stranger = Vmm::start(&keeper, &guest.memory, OnPagerLoss::Stall);
    stranger.begin("map");
    assert_eq!(stranger.process.wait_exit(LIMIT).unwrap().code(), Some(exit::PAGER));
    goes_on(&keeper, &guest.fill(100..2000, 1));
    assert_eq!(guest.hand_over(&keeper).answer(), Some(ToVmm::Accepted));
    goes_on(&keeper, &guest.fill(2000..3000, 1));
    guest.cpu().holds(0..3000, 1);
}

#[test]
fn a_userfaultfd_that_watches_nothing_is_refused() {
    let Some(guest) = Guest::new("pod-unwatched") else { return };
    let keeper = keeper(&guest, "unwatched");
    guest.uffd.unregister(guest.range()).unwrap();
    let answer = guest.hand_over(&keeper).answer();
    assert_eq!(answer, refused(Refusal::Other), "{}", keeper.log());
    guest.uffd.register(guest.range(), Watch::Missing).unwrap();
    assert_eq!(guest.hand_over(&keeper).answer(), refused(Refusal::Other), "it could not be swept");
    guest.uffd.unregister(guest.range()).unwrap();
    guest.uffd.register(guest.range(), Watch::MissingAndWrites).unwrap();
    assert_eq!(guest.hand_over(&keeper).answer(), Some(ToVmm::Accepted));
}

#[test]
fn hints_that_are_lies_or_nonsense_keep_nobody_from_being_served() {
    let Some((guest, keeper, connection)) = Guest::served("pod-lies", &[]) else { return };
    goes_on(&keeper, &guest.fill(0..pages(TARGET) / 2, 1));
    let extents = [(0, MAXMEM.0), (0, u64::MAX), (u64::MAX, 0), (5, 4097), (MAXMEM.0, PAGE_SIZE), (4096, 0)];
    for round in 0..50 {
        for (offset, length) in extents {
            let lie = ToPager::Punched { extent: Extent { offset, length }, lost: u64::MAX >> round };
            send_patiently(&connection, &lie.encode());
        }
        send_patiently(&connection, &ToPager::Unmapped(Extent { offset: 0, length: MAXMEM.0 }).encode());
    }
    keeper.status();
    goes_on(&keeper, &guest.fill(pages(TARGET) / 2..pages(TARGET) / 2 + 600, 2));
    keeper.wait_in_step(&guest);
    connection.send(b"and now for something completely different", &[]);
    goes_on(&keeper, &guest.fill(0..10, 3));
    guest.punch(100..200, None);
    goes_on(&keeper, &guest.fill(100..200, 3));
    guest.cpu().holds(200..pages(TARGET) / 2, 1);
    assert_eq!(keeper.status().epoch, 2, "no back end has died of it");
}

/// Sends as the library does: waits for room.
fn send_patiently(connection: &Connection, bytes: &[u8]) {
    let end = std::time::Instant::now() + LIMIT;
    while plimsoll_shm::send(&connection.0, bytes, &[]).is_err() {
        assert!(std::time::Instant::now() < end, "it is not listened to");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn a_userfaultfd_that_was_made_to_block_does_not_keep_the_daemon_waiting() {
    let Some((guest, keeper, _connection)) = Guest::served("pod-blocking", &[]) else { return };
    let flags = rustix::fs::fcntl_getfl(&guest.uffd).unwrap();
    let blocking = flags - rustix::fs::OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&guest.uffd, blocking).unwrap();
    goes_on(&keeper, &guest.fill(0..2000, 1));
    assert_eq!(keeper.set_target(MAXMEM).target.0, MAXMEM);
    let memory: &OwnedFd = &guest.memory;
    assert!(super::guest::resident(memory) > 0);
}
