//! Things that should not happen, and do.

use plimsoll_pager::{Config, Pager, PagerEvent, Scrub, StartError};
use plimsoll_uffd::agreement::OnPagerLoss;
use plimsoll_uffd::{Features, HostRange, HugePages};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE, PAGES_PER_FRAME, PageCount};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::fixture::{DOUBT, Guest, goes_on, target, until, waits};
use crate::huge::file_on_tmpfs;

#[test]
fn a_full_file_system_makes_the_guest_wait_until_there_is_space() {
    let test = "a_full_file_system_makes_the_guest_wait_until_there_is_space";
    // Room for a frame and a half.
    let Some(file) = file_on_tmpfs(test, 4 * FRAME_SIZE, &[("size", "3m")]) else { return };
    let Some(guest) = Guest::of(test, file, 4, Features::SHARED_GUEST) else { return };
    let served = guest.served(4);
    let writer = guest.writes(0, 2 * PAGES_PER_FRAME);
    let PagerEvent::Refused { page, errno } = served.event() else { panic!("it was told") };
    assert!(page >= PAGES_PER_FRAME, "{page}");
    assert!(matches!(errno, Errno::NOSPC | Errno::NOMEM), "{errno}");
    waits(&writer);
    served.no_event();
    // Tried again now and then, not all the time.
    assert!((1..50).contains(&served.status().faults.refused), "{:?}", served.status().faults);
    // Somebody gives back what nobody tells of; it is tried again all the same.
    guest.punch(0, 400);
    goes_on(&writer);
    assert!(matches!(served.event(), PagerEvent::Relieved { .. }));
    guest.verify_writes(400, 2 * PAGES_PER_FRAME - 400);
    served.correct();
    served.agree();
}

#[test]
fn a_file_that_is_cut_under_the_pager_does_it_no_harm() {
    let test = "a_file_that_is_cut_under_the_pager_does_it_no_harm";
    // Not sealed: a handover would refuse it.
    let memory = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 4 * FRAME_SIZE).unwrap();
    let Some(guest) = Guest::of(test, memory, 4, Features::SHARED_GUEST) else { return };
    let served = guest.served(4);
    goes_on(&guest.writes(0, 2 * PAGES_PER_FRAME));
    rustix::fs::ftruncate(&guest.memory, FRAME_SIZE).unwrap();
    served.sweep(crate::fixture::PATIENCE).expect("it ends");
    served.hint(plimsoll_uffd::handover::Extent { offset: 0, length: u64::MAX }, 1);
    let error = served.pin(2 * PAGES_PER_FRAME, 2 * PAGES_PER_FRAME + 1, DOUBT).unwrap_err();
    assert!(matches!(error, plimsoll_pager::PinError::NoRoom { .. }), "{error}");
    guest.verify_writes(0, PAGES_PER_FRAME);
    // And with its old length again it can be used again.
    rustix::fs::ftruncate(&guest.memory, 4 * FRAME_SIZE).unwrap();
    served.correct();
    goes_on(&guest.writes(2 * PAGES_PER_FRAME, 1));
    guest.verify_writes(2 * PAGES_PER_FRAME, 1);
    served.agree();
}

#[test]
fn memory_given_back_by_madvise_is_noticed() {
    let test = "memory_given_back_by_madvise_is_noticed";
    let memory = crate::fixture::sealed_memfd(4 * FRAME_SIZE);
    let features = Features::SHARED_GUEST | Features::EVENT_REMOVE;
    let Some(guest) = Guest::of(test, memory, 4, features) else { return };
    let served = guest.served(4);
    goes_on(&guest.writes(0, guest.pages()));
    // Who calls waits until the event was read.
    goes_on(&guest.thread(|map| map.advise(100, 600, Advice::LinuxRemove)));
    until(|| served.status().counts.ballooned == PageCount(600));
    assert_eq!(guest.allocated(), guest.pages() - 600);
    // This one only unmaps: the memory stays.
    goes_on(&guest.thread(|map| map.advise(1000, 50, Advice::LinuxDontNeed)));
    guest.verify_writes(700, guest.pages() - 700);
    assert_eq!(served.status().counts.ballooned, PageCount(600));
    served.agree();
}

#[test]
fn faults_go_on_while_the_vmm_changes_its_mappings() {
    let test = "faults_go_on_while_the_vmm_changes_its_mappings";
    let memory = crate::fixture::sealed_memfd(6 * FRAME_SIZE);
    let features = Features::SHARED_GUEST | Features::EVENT_REMOVE | Features::EVENT_UNMAP;
    let Some(guest) = Guest::of(test, memory, 6, features) else { return };
    let served = guest.served(6);
    let remover =
        guest.thread(|map| (0..200).for_each(|_| map.advise(0, PAGES_PER_FRAME, Advice::LinuxRemove)));
    let toucher = guest.thread(|map| {
        (0..40).for_each(|_| {
            (0..2 * PAGES_PER_FRAME).for_each(|page| {
                map.read(page, 0);
            });
        });
    });
    goes_on(&remover);
    goes_on(&toucher);
    goes_on(&guest.writes(0, guest.pages()));
    guest.verify_writes(0, guest.pages());
    until(|| served.audit().is_ok_and(|lag| lag == PageCount(0)));
}

#[test]
fn faults_elsewhere_are_not_answered_and_do_no_harm() {
    let test = "faults_elsewhere_are_not_answered_and_do_no_harm";
    let Some(guest) = Guest::new(test, 2) else { return };
    // The VMM watches other memory of its own with the same userfaultfd.
    let other = crate::fixture::sealed_memfd(FRAME_SIZE);
    let map = std::sync::Arc::new(crate::memory::Mapped::new(&other, FRAME_SIZE));
    let range = HostRange::new(map.address(), FRAME_SIZE).unwrap();
    guest.uffd.register(range, plimsoll_uffd::Watch::Missing).unwrap();
    let served = guest.served(2);
    let (sender, reader) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(map.read(9, 0)));
    waits(&reader);
    assert_eq!(served.status().faults.odd, 1);
    goes_on(&guest.writes(0, guest.pages()));
    guest.verify_writes(0, guest.pages());
    guest.uffd.unregister(range).unwrap();
    goes_on(&reader);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let Some(guest) = Guest::new("what_cannot_be_served_is_refused_by_name", 2) else { return };
    let config = Config::new(HugePages::Never);
    let refused = |change: &dyn Fn(&mut plimsoll_pager::Parts<plimsoll_shm::SharedWords>),
                   config: &Config| {
        let mut parts = guest.parts();
        change(&mut parts);
        match Pager::start(parts, config, drop) {
            Ok(_) => panic!("it was started"),
            Err(error) => error,
        }
    };
    let half = refused(&|parts| parts.range = HostRange::new(4096, FRAME_SIZE).unwrap(), &config);
    assert!(matches!(half, StartError::NotWhole { .. }), "{half}");
    let pipe = refused(&|parts| parts.memory = rustix::pipe::pipe().unwrap().0, &config);
    assert!(pipe.to_string().contains("not on tmpfs"), "{pipe}");
    let pattern =
        Config { scrub: Scrub::pattern([1; 8]), on_pager_loss: OnPagerLoss::Open, ..config.clone() };
    let pattern = refused(&|_| {}, &pattern);
    assert!(matches!(pattern, StartError::Pattern { .. }), "{pattern}");
    let other = refused(&|parts| parts.memory = crate::fixture::sealed_memfd(2 * PAGE_SIZE), &config);
    assert!(matches!(other, StartError::NotWhole { size: 8192, .. }), "{other}");
}

#[test]
fn a_target_beyond_everything_is_no_limit() {
    let Some(guest) = Guest::new("a_target_beyond_everything_is_no_limit", 2) else { return };
    let served = guest.served(0);
    let writer = guest.writes(0, guest.pages());
    assert!(matches!(served.event(), PagerEvent::Exhausted { .. }));
    served.set_target(target(u64::MAX / 4096));
    goes_on(&writer);
    served.agree();
}
