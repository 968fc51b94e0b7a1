//! Memory in huge pages, on a file system of its own: what the machine's setting for memfds is does not matter.

use std::os::fd::OwnedFd;

use plimsoll_pager::Config;
use plimsoll_testbed::skip::skip;
use plimsoll_uffd::{Features, HostRange, HugePages, Woken};
use plimsoll_units::{FRAME_SIZE, PAGES_PER_FRAME, Ppm};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::pipe::SpliceFlags;

use crate::fixture::{Dice, Guest, PATIENCE, goes_on};

/// A file on a tmpfs with these options, which is mounted nowhere and gone with the last descriptor.
pub(crate) fn file_on_tmpfs(test: &str, bytes: u64, options: &[(&str, &str)]) -> Option<OwnedFd> {
    let made = || -> rustix::io::Result<OwnedFd> {
        let system = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            rustix::mount::fsconfig_set_string(&system, *key, *value)?;
        }
        rustix::mount::fsconfig_create(&system)?;
        let mount = rustix::mount::fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(&mount, "guest", flags, Mode::RUSR | Mode::WUSR)
    };
    match made() {
        Ok(file) => {
            rustix::fs::ftruncate(&file, bytes).unwrap();
            Some(file)
        }
        Err(errno) => {
            skip(test, &format!("cannot make a tmpfs with {options:?} (it takes root): {errno}"));
            None
        }
    }
}

/// A guest with huge pages.
fn guest(test: &str, frames: u64) -> Option<Guest> {
    let file = file_on_tmpfs(test, frames * FRAME_SIZE, &[("huge", "always")])?;
    Guest::of(test, file, frames, Features::SHARED_GUEST)
}

/// Bytes of the guest's memory that are mapped by huge pages.
fn mapped_huge(guest: &Guest) -> u64 {
    let start = format!("{:x}-", guest.range().start());
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let line = lines.skip(1).find(|line| line.starts_with("ShmemPmdMapped:")).unwrap();
    let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn frames_come_as_huge_pages_and_the_rest_as_small_ones() {
    let Some(guest) = guest("frames_come_as_huge_pages_and_the_rest_as_small_ones", 8) else { return };
    let served = guest.served_by(4, &Config::new(HugePages::Always));
    served.set_target(crate::fixture::target(4 * PAGES_PER_FRAME + 100));
    let watcher = guest.watched(4 * PAGES_PER_FRAME + 100);
    goes_on(&guest.writes(0, 4 * PAGES_PER_FRAME));
    if mapped_huge(&guest) == 0 {
        skip("frames_come_as_huge_pages", "the kernel had no huge page to give just now");
    } else {
        assert_eq!(mapped_huge(&guest), 4 * FRAME_SIZE);
    }
    // A single page more must not bring a huge one.
    goes_on(&guest.writes(6 * PAGES_PER_FRAME, 3));
    assert!(guest.allocated() <= 4 * PAGES_PER_FRAME + 100);
    assert_eq!(served.status().totals.populated_frames, 4);
    guest.verify_writes(0, 4 * PAGES_PER_FRAME);
    watcher.end();
    served.agree();
}

#[test]
fn huge_pages_that_are_in_use_are_not_taken_apart_by_a_sweep() {
    let Some(guest) = guest("huge_pages_that_are_in_use_are_not_taken_apart_by_a_sweep", 8) else { return };
    let served = guest.served_by(8, &Config::new(HugePages::Always));
    goes_on(&guest.writes(0, 4 * PAGES_PER_FRAME));
    goes_on(&guest.reads(4 * PAGES_PER_FRAME, 4 * PAGES_PER_FRAME));
    served.settled(0, guest.pages());
    let before = mapped_huge(&guest);
    let report = served.sweep(PATIENCE).expect("it ends");
    assert_eq!(report.frames, 4);
    assert_eq!(mapped_huge(&guest), before / 2);
    guest.verify_writes(0, 4 * PAGES_PER_FRAME);
    served.agree();
}

#[test]
fn pieces_of_huge_pages_are_given_back_or_said_not_to_be() {
    let Some(guest) = guest("pieces_of_huge_pages_are_given_back_or_said_not_to_be", 8) else { return };
    let served = guest.served_by(8, &Config::new(HugePages::Always));
    let mut dice = Dice(3);
    for _ in 0..6 {
        // Every frame has a page that is not zero.
        goes_on(&guest.thread(|map| (0..8).for_each(|frame| map.write(frame * PAGES_PER_FRAME + 200, 5, 1))));
        goes_on(&guest.reads(0, guest.pages()));
        served.sweep(PATIENCE).expect("it ends");
        served.agree();
        let keep = dice.below(8) * PAGES_PER_FRAME + 200;
        assert_eq!(goes_on(&guest.thread(move |map| map.read(keep, 5))), 1);
    }
    assert!(served.status().totals.swept_pages > 0);
    assert_eq!(served.status().whole_frame_share().map(|share| share <= Ppm::percent(100)), Some(true));
}

#[test]
fn a_huge_page_that_cannot_be_split_is_not_taken_for_given_back() {
    let test = "a_huge_page_that_cannot_be_split_is_not_taken_for_given_back";
    let Some(guest) = guest(test, 1) else { return };
    let served = guest.served_by(1, &Config::new(HugePages::Always));
    goes_on(&guest.writes(200, 1));
    served.settled(0, PAGES_PER_FRAME);
    if mapped_huge(&guest) == 0 {
        return skip(test, "the kernel had no huge page to give just now");
    }
    // Somebody holds a page of it.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut from = 10 * 4096;
    let held =
        rustix::pipe::splice(&guest.memory, Some(&mut from), &writer, None, 4096, SpliceFlags::empty());
    assert_eq!(held, Ok(4096));
    served.sweep(PATIENCE).expect("it ends");
    assert_eq!(guest.allocated(), PAGES_PER_FRAME, "it could be split after all");
    assert_eq!(served.resident(), PAGES_PER_FRAME);
    served.agree();
    assert_eq!(rustix::io::read(&reader, &mut [0; 4096]), Ok(4096));
    served.sweep(PATIENCE).expect("it ends");
    assert_eq!((guest.allocated(), served.resident()), (1, 1));
    guest.verify_writes(200, 1);
    served.agree();
}

#[test]
fn what_somebody_put_there_unseen_is_not_written_over() {
    let Some(guest) = guest("what_somebody_put_there_unseen_is_not_written_over", 3) else { return };
    let served = guest.served_by(3, &Config::new(HugePages::Always));
    for page in [0, PAGES_PER_FRAME + 5] {
        let address = guest.range().start() + page * 4096;
        let one = HostRange::new(address, 4096).unwrap();
        assert_eq!(guest.uffd.zeropage(one, Woken::Yes).unwrap().stopped, None);
        goes_on(&guest.thread(move |map| map.write(page, 0, u64::from_ne_bytes([7; 8]))));
    }
    assert_eq!((guest.allocated(), served.resident()), (2, 0));
    goes_on(&guest.writes(300, 1));
    goes_on(&guest.writes(PAGES_PER_FRAME + 300, 1));
    let sevens = u64::from_ne_bytes([7; 8]);
    let found = guest.thread(|map| [map.read(0, 0), map.read(PAGES_PER_FRAME + 5, 0)]);
    assert_eq!(goes_on(&found), [sevens, sevens]);
    served.settled(0, guest.pages());
    served.agree();
}

#[test]
fn many_threads_race_for_huge_pages_and_lose_nothing() {
    let Some(guest) = guest("many_threads_race_for_huge_pages_and_lose_nothing", 16) else { return };
    let served = guest.served_by(16, &Config::new(HugePages::Always));
    for round in 1..=6 {
        // All write to the same frames at once, each to its own word, the first page's first word included.
        let writer = |thread: u64| {
            guest.thread(move |map| {
                for frame in 0..16 {
                    map.write(frame * PAGES_PER_FRAME, thread, round);
                    map.write(frame * PAGES_PER_FRAME + thread, 0, round);
                }
            })
        };
        let threads: Vec<_> = (0..5).map(writer).collect();
        threads.iter().for_each(goes_on);
        let lost = guest.thread(move |map| {
            (0..16 * 5).find(|at| {
                let (frame, thread) = (at / 5 * PAGES_PER_FRAME, at % 5);
                map.read(frame, thread) != round || map.read(frame + thread, 0) != round
            })
        });
        assert_eq!(goes_on(&lost), None);
        served.reset(PATIENCE).unwrap();
        // A fault may still be answered of a thread that did not have to wait after all.
        served.agree();
    }
}
