//! Taking over from a VMM that may send anything.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use plimsoll_uffd::agreement::{FileId, OnPagerLoss};
use plimsoll_uffd::handover::{
    Extent, HandedOver, Handover, HandoverError, Heard, PodListener, Refusal, ToPager, ToVmm, VmmSocket,
    file_id,
};
use plimsoll_uffd::{Uffd, UffdError};
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::fixture::{FRAMES, PATIENCE, Watched, goes_on, guest_memory, next, readable};

const SIZE: u64 = FRAMES * plimsoll_units::FRAME_SIZE;

/// A pager's end and a VMM's end.
struct Talk {
    pager: VmmSocket,
    vmm: OwnedFd,
    _dir: tempfile::TempDir,
}

fn talk() -> Talk {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pod");
    let listener = PodListener::bind(&path).unwrap();
    assert!(listener.accept().unwrap().is_none());
    let vmm = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap();
    rustix::net::connect(&vmm, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    assert!(readable(&listener, PATIENCE));
    let pager = listener.accept().unwrap().unwrap();
    Talk { pager, vmm, _dir: dir }
}

impl Talk {
    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        plimsoll_shm::send(&self.vmm, bytes, fds).unwrap();
    }

    fn hear_bad(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> HandoverError {
        self.send(bytes, fds);
        self.pager.hear().unwrap_err()
    }
}

fn said(length: u64) -> Handover {
    Handover { address: 0x7f00_0000_0000, length, offset: 0, loss: OnPagerLoss::Stall }
}

fn handed_over(talk: &Talk, uffd: &Uffd, memory: &OwnedFd, said: Handover) -> HandedOver {
    talk.send(&ToPager::Handover(said).encode(), &[uffd.as_fd(), memory.as_fd()]);
    let Heard::Handover(taken) = talk.pager.hear().unwrap() else { panic!("no handover") };
    *taken
}

#[test]
fn faults_are_served_by_who_took_over() {
    let Some(mut watched) = Watched::new("faults_are_served_by_who_took_over") else { return };
    let talk = talk();
    let (file, size) = file_id(&watched.memfd).unwrap();
    let address = watched.all().start();
    let mapping = Handover { address, length: size, offset: 0, loss: OnPagerLoss::Open };
    let taken = handed_over(&talk, watched.uffd(), &watched.memfd, mapping);
    taken.check(file).unwrap();
    assert_eq!((taken.said, taken.range), (mapping, watched.all()));
    talk.pager.answer(ToVmm::Accepted).unwrap();
    let mut packet = [0; 64];
    let received = plimsoll_shm::receive(&talk.vmm, &mut packet).unwrap();
    assert_eq!(ToVmm::decode(&packet[..received.bytes]), Ok(ToVmm::Accepted));
    drop(watched.uffd.take());
    let reader = watched.reader(8);
    next(&taken.uffd, PATIENCE).unwrap();
    assert_eq!(taken.uffd.zeropage(watched.page(8), plimsoll_uffd::Woken::Yes).unwrap().stopped, None);
    assert_eq!(goes_on(&reader), 0);
}

#[test]
fn hints_are_heard_and_the_end_too() {
    let talk = talk();
    assert!(matches!(talk.pager.hear().unwrap(), Heard::Nothing));
    let extent = Extent { offset: 4096, length: 8192 };
    talk.send(&ToPager::Punched { extent, lost: 3 }.encode(), &[]);
    talk.send(&ToPager::Unmapped(extent).encode(), &[]);
    let heard = talk.pager.hear().unwrap();
    assert!(matches!(heard, Heard::Punched { extent: found, lost: 3 } if found == extent), "{heard:?}");
    assert!(matches!(talk.pager.hear().unwrap(), Heard::Unmapped(found) if found == extent));
    drop(talk.vmm);
    assert!(matches!(talk.pager.hear().unwrap(), Heard::Closed));
    talk.pager.answer(ToVmm::Accepted).unwrap_err();
}

#[test]
fn what_is_no_userfaultfd_is_not_taken_for_one() {
    let talk = talk();
    let (pipe, memory) = (rustix::pipe::pipe().unwrap().0, guest_memory(SIZE));
    let error = talk.hear_bad(&ToPager::Handover(said(SIZE)).encode(), &[pipe.as_fd(), memory.as_fd()]);
    assert!(matches!(error, HandoverError::Uffd(UffdError::NotUserfaultfd { .. })), "{error}");
    assert_eq!(error.refusal(), Refusal::Other);
}

#[test]
fn descriptors_that_are_missing_or_too_many_are_refused_and_closed() {
    let talk = talk();
    let memory = guest_memory(SIZE);
    let fd = memory.as_fd();
    for fds in [&[][..], &[fd], &[fd, fd, fd]] {
        let error = talk.hear_bad(&ToPager::Handover(said(SIZE)).encode(), fds);
        assert!(matches!(error, HandoverError::Descriptors { wanted: 2, .. }), "{error}");
    }
    let extent = Extent { offset: 0, length: 4096 };
    let error = talk.hear_bad(&ToPager::Punched { extent, lost: 0 }.encode(), &[fd]);
    assert!(matches!(error, HandoverError::Descriptors { wanted: 0, found: 1 }), "{error}");
    assert_eq!(error.refusal(), Refusal::Protocol);
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let talk = talk();
    let good = ToPager::Unmapped(Extent { offset: 0, length: 4096 }).encode();
    for bytes in [&b"x"[..], &[0; 40], &[good.as_slice(), b"x"].concat(), &[0; 4096], &good[..39]] {
        let error = talk.hear_bad(bytes, &[]);
        assert!(matches!(error, HandoverError::Wire(_)), "{error}");
    }
    // And what comes after is heard as if nothing had been.
    talk.send(&good, &[]);
    assert!(matches!(talk.pager.hear().unwrap(), Heard::Unmapped(_)));
}

#[test]
fn only_the_whole_of_the_right_file_passes() {
    let Some(watched) = Watched::new("only_the_whole_of_the_right_file_passes") else { return };
    let talk = talk();
    let (file, _) = file_id(&watched.memfd).unwrap();
    let taken = |memory: &OwnedFd, said| handed_over(&talk, watched.uffd(), memory, said);
    let other = FileId { inode: file.inode + 1, ..file };
    let error = taken(&watched.memfd, said(SIZE)).check(other).unwrap_err();
    assert!(matches!(error, HandoverError::OtherFile { .. }), "{error}");
    assert_eq!(error.refusal(), Refusal::OtherFile);
    for part in [said(SIZE / 2), said(SIZE * 2), Handover { offset: 4096, ..said(SIZE - 4096) }] {
        let error = taken(&watched.memfd, part).check(file).unwrap_err();
        assert!(matches!(error, HandoverError::NotWhole { .. }), "{error}");
        assert_eq!(error.refusal(), Refusal::Size);
    }
    taken(&watched.memfd, said(SIZE)).check(file).unwrap();
}

#[test]
fn a_file_that_could_be_truncated_does_not_pass() {
    let Some(watched) = Watched::new("a_file_that_could_be_truncated_does_not_pass") else { return };
    let talk = talk();
    let open = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&open, SIZE).unwrap();
    let disk = OwnedFd::from(tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    rustix::fs::ftruncate(&disk, SIZE).unwrap();
    for memory in [open, disk] {
        let taken = handed_over(&talk, watched.uffd(), &memory, said(SIZE));
        let error = taken.check(file_id(&memory).unwrap().0).unwrap_err();
        assert!(matches!(error, HandoverError::NotSealed { .. }), "{error}");
    }
}

#[test]
fn a_vmm_that_does_not_read_holds_nobody_up() {
    let talk = talk();
    let refused = ToVmm::Refused(Refusal::Taken);
    let error = (0..100_000).find_map(|_| talk.pager.answer(refused).err()).unwrap();
    assert!(matches!(error, HandoverError::NotRead), "{error}");
}

#[test]
fn a_listener_says_where_it_could_not_listen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pod");
    let _first = PodListener::bind(&path).unwrap();
    let error = PodListener::bind(&path).unwrap_err().to_string();
    assert!(error.starts_with("cannot listen for a VMM at ") && error.contains("pod"), "{error}");
    let long = dir.path().join("x".repeat(200));
    PodListener::bind(&long).unwrap_err();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
