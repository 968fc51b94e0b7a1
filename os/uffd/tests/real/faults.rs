//! Missing pages, and the ways to fill them.

use plimsoll_uffd::{Event, Events, FaultKind, Filled, HostRange, Stop, Uffd, UffdError, Watch, Woken};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE, PAGES_PER_FRAME};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::fixture::{DOUBT, PATIENCE, Watched, goes_on, readable, waits};

const PAGE_DONE: Filled = Filled { bytes: PAGE_SIZE, stopped: None };

#[test]
fn a_page_is_served_and_only_that_page() {
    let Some(watched) = Watched::new("a_page_is_served_and_only_that_page") else { return };
    let reader = watched.reader(5);
    let fault = watched.fault_on(5);
    assert_eq!((fault.kind, fault.write), (FaultKind::Missing, false));
    assert_eq!(watched.resident(), 0);
    assert_eq!(watched.uffd().zeropage(watched.page(5), Woken::Yes).unwrap(), PAGE_DONE);
    assert_eq!(goes_on(&reader), 0);
    assert_eq!(watched.resident(), PAGE_SIZE);
    let writer = watched.writer(6, 1);
    assert!(watched.fault_on(6).write);
    assert_eq!(watched.uffd().zeropage(watched.page(6), Woken::Yes).unwrap(), PAGE_DONE);
    goes_on(&writer);
}

#[test]
fn a_frame_is_served_at_once() {
    let Some(watched) = Watched::new("a_frame_is_served_at_once") else { return };
    let writer = watched.writer(PAGES_PER_FRAME + 7, 42);
    watched.fault_on(PAGES_PER_FRAME + 7);
    let frame = watched.range(FRAME_SIZE, FRAME_SIZE);
    let mut left = Some(frame);
    // The kernel may be interrupted; it goes on where it stopped.
    while let Some(range) = left {
        let filled = watched.uffd().zeropage(range, Woken::Yes).unwrap();
        assert!(matches!(filled.stopped, None | Some(Stop::Again)));
        left = range.after(filled.bytes);
    }
    goes_on(&writer);
    assert_eq!(watched.resident(), FRAME_SIZE);
    assert_eq!(goes_on(&watched.reader(PAGES_PER_FRAME + 7)), 42);
    assert_eq!(goes_on(&watched.reader(2 * PAGES_PER_FRAME - 1)), 0);
    assert!(!readable(watched.uffd(), DOUBT), "a fault in a frame that is there");
}

#[test]
fn what_is_there_already_stops_the_filling_and_is_kept() {
    let Some(watched) = Watched::new("what_is_there_already_stops_the_filling_and_is_kept") else { return };
    let writer = watched.writer(2, 9);
    watched.fault_on(2);
    assert_eq!(watched.uffd().zeropage(watched.page(2), Woken::Yes).unwrap(), PAGE_DONE);
    goes_on(&writer);
    let whole = watched.range(0, FRAME_SIZE);
    let two = watched.uffd().zeropage(whole, Woken::Yes).unwrap();
    assert_eq!(two, Filled { bytes: 2 * PAGE_SIZE, stopped: Some(Stop::Again) });
    let rest = whole.after(two.bytes).unwrap();
    let none = watched.uffd().zeropage(rest, Woken::Yes).unwrap();
    assert_eq!(none, Filled { bytes: 0, stopped: Some(Stop::Exists) });
    assert_eq!(goes_on(&watched.reader(2)), 9);
}

#[test]
fn filled_without_waking_leaves_them_waiting_until_they_are_woken() {
    let Some(watched) = Watched::new("filled_without_waking_leaves_them_waiting") else { return };
    let reader = watched.reader(3);
    watched.fault_on(3);
    assert_eq!(watched.uffd().zeropage(watched.page(3), Woken::No).unwrap(), PAGE_DONE);
    waits(&reader);
    watched.uffd().wake(watched.page(3)).unwrap();
    assert_eq!(goes_on(&reader), 0);
}

#[test]
fn memory_that_is_put_into_the_file_serves_once_they_are_woken() {
    let Some(watched) = Watched::new("memory_that_is_put_into_the_file_serves") else { return };
    let reader = watched.reader(1);
    watched.fault_on(1);
    rustix::fs::fallocate(&watched.memfd, FallocateFlags::empty(), 0, FRAME_SIZE).unwrap();
    assert_eq!(watched.resident(), FRAME_SIZE);
    watched.uffd().wake(watched.range(0, FRAME_SIZE)).unwrap();
    assert_eq!(goes_on(&reader), 0);
    assert_eq!(goes_on(&watched.reader(400)), 0);
    assert!(!readable(watched.uffd(), DOUBT), "a fault in memory that is there");
}

#[test]
fn events_come_in_batches_and_none_twice() {
    let Some(watched) = Watched::new("events_come_in_batches_and_none_twice") else { return };
    let mut events = Events::with_room_for(2);
    assert_eq!(watched.uffd().read(&mut events).unwrap().len(), 0);
    let readers: Vec<_> = [10, 20, 30].map(|page| watched.reader(page)).into();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        assert!(readable(watched.uffd(), PATIENCE), "only {seen:?}");
        let batch: Vec<_> = watched.uffd().read(&mut events).unwrap().collect();
        assert!(batch.len() <= 2);
        seen.extend(batch.into_iter().map(|event| {
            let Event::Pagefault(fault) = event else { panic!("{event:?}") };
            fault.page() - watched.all().start()
        }));
    }
    seen.sort_unstable();
    assert_eq!(seen, [10, 20, 30].map(|page| page * PAGE_SIZE));
    assert_eq!(watched.uffd().zeropage(watched.range(0, FRAME_SIZE), Woken::Yes).unwrap().stopped, None);
    assert_eq!(readers.iter().map(goes_on).collect::<Vec<_>>(), [0, 0, 0]);
}

#[test]
fn what_is_not_watched_cannot_be_filled() {
    let Some(watched) = Watched::new("what_is_not_watched_cannot_be_filled") else { return };
    // The first page of all, which is never mapped.
    let elsewhere = HostRange::new(PAGE_SIZE, PAGE_SIZE).unwrap();
    let error = watched.uffd().zeropage(elsewhere, Woken::Yes).unwrap_err();
    assert!(matches!(error, UffdError::Kernel { errno: Errno::NOENT, .. }), "{error}");
    let error = watched.uffd().register(elsewhere, Watch::Missing).unwrap_err();
    assert!(error.to_string().starts_with("watch a range of memory: "), "{error}");
    watched.uffd().write_protect(elsewhere).unwrap_err();
}

#[test]
fn a_range_can_be_watched_without_writes() {
    let Some(watched) = Watched::new("a_range_can_be_watched_without_writes") else { return };
    watched.uffd().unregister(watched.all()).unwrap();
    watched.uffd().register(watched.all(), Watch::Missing).unwrap();
    let reader = watched.reader(0);
    watched.fault_on(0);
    assert_eq!(watched.uffd().zeropage(watched.page(0), Woken::Yes).unwrap(), PAGE_DONE);
    goes_on(&reader);
    watched.uffd().write_protect(watched.page(0)).unwrap_err();
}

#[test]
fn this_kernel_offers_what_it_gives() {
    let Some(_watched) = Watched::new("this_kernel_offers_what_it_gives") else { return };
    let offered = Uffd::offered().unwrap();
    assert!(offered.contains(plimsoll_uffd::Features::SHARED_GUEST), "{offered}");
}
