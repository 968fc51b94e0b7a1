//! A small pager.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plimsoll_uffd::handover::{HandedOver, Heard, PodListener, ToVmm, VmmSocket};
use plimsoll_uffd::{Event, Events, HostRange, Stop, Uffd, UffdError, Woken};
use plimsoll_units::PAGE_SIZE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bed::{Bed, PATIENCE};

/// How often a server looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until something can be read, or the other side has closed; `false` after `limit`.
pub(crate) fn readable(what: impl AsFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap();
        let mut fds = [PollFd::new(&what, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// The next thing that a VMM says.
#[track_caller]
pub(crate) fn hear(vmm: &VmmSocket) -> Heard {
    assert!(readable(vmm, PATIENCE), "the VMM says nothing");
    vmm.hear().unwrap()
}

/// A VMM that has handed over.
pub(crate) struct Taken {
    pub(crate) socket: VmmSocket,
    pub(crate) range: HostRange,
    pub(crate) uffd: Uffd,
}

/// The next VMM that connects.
#[track_caller]
pub(crate) fn connection(listener: &PodListener) -> VmmSocket {
    assert!(readable(listener, PATIENCE), "no VMM connects");
    listener.accept().unwrap().unwrap()
}

/// What a VMM hands over, not yet accepted.
#[track_caller]
pub(crate) fn handover(listener: &PodListener, bed: &Bed) -> (VmmSocket, HandedOver) {
    let socket = connection(listener);
    let Heard::Handover(taken) = hear(&socket) else { panic!("the VMM says something else") };
    taken.check(bed.file()).unwrap();
    assert_eq!(taken.said.loss, bed.loss);
    (socket, *taken)
}

/// The same, accepted.
#[track_caller]
pub(crate) fn accept(listener: &PodListener, bed: &Bed) -> Taken {
    let (socket, taken) = handover(listener, bed);
    socket.answer(ToVmm::Accepted).unwrap();
    Taken { socket, range: taken.range, uffd: taken.uffd }
}

impl Taken {
    /// The next fault, as an offset in the file.
    #[track_caller]
    pub(crate) fn fault(&self) -> u64 {
        assert!(readable(&self.uffd, PATIENCE), "no fault");
        let mut events = Events::with_room_for(1);
        let event = self.uffd.read(&mut events).unwrap().next();
        let Some(Event::Pagefault(fault)) = event else { panic!("{event:?}") };
        fault.page() - self.range.start()
    }

    /// Fills one page.
    pub(crate) fn fill(&self, offset: u64) {
        let page = HostRange::new(self.range.start() + offset, PAGE_SIZE).unwrap();
        let filled = self.uffd.zeropage(page, Woken::Yes).unwrap();
        assert_eq!((filled.bytes, filled.stopped), (PAGE_SIZE, None));
    }
}

/// Fills what is asked for, in a thread of its own, a chunk at a time.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `chunk` is a power of two, of bytes of the file.
    pub(crate) fn start(uffd: &Uffd, range: HostRange, chunk: u64) -> Self {
        let uffd = uffd.copy().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_room_for(16);
            while !stopped.load(Ordering::Relaxed) {
                if readable(&uffd, LOOK) {
                    serve(&uffd, range, chunk, &mut events);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking(), "the server failed");
    }
}

/// Serves the faults there are.
fn serve(uffd: &Uffd, range: HostRange, chunk: u64, events: &mut Events) {
    for event in uffd.read(events).unwrap() {
        let Event::Pagefault(fault) = event else { panic!("{event:?}") };
        let offset = (fault.page() - range.start()) & !(chunk - 1);
        let len = chunk.min(range.len() - offset);
        fill(uffd, HostRange::new(range.start() + offset, len).unwrap());
    }
}

/// Fills what is missing of a range and wakes who waits there.
pub(crate) fn fill(uffd: &Uffd, range: HostRange) {
    let mut left = Some(range);
    while let Some(rest) = left {
        match uffd.zeropage(rest, Woken::No) {
            Ok(filled) if filled.stopped == Some(Stop::Exists) => left = rest.after(PAGE_SIZE),
            Ok(filled) => left = rest.after(filled.bytes),
            Err(UffdError::Gone) => return,
            Err(error) => panic!("{error}"),
        }
    }
    uffd.wake(range).unwrap();
}
