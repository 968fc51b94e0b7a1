//! A small pager with a small ledger, which takes hints as the protocol wants them taken.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use plimsoll_uffd::handover::{Extent, Heard};
use plimsoll_uffd::{Event, Events, HostRange};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::pager::{Taken, fill};

/// How often it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);

/// Which pages have memory behind them, by what the pager did and was told.
pub(crate) struct Ledger {
    present: Vec<bool>,
    memory: OwnedFd,
    pub(crate) faults: u64,
    pub(crate) hints: u64,
}

fn index(offset: u64) -> usize {
    usize::try_from(offset / PAGE_SIZE).unwrap()
}

impl Ledger {
    pub(crate) fn new(memory: impl AsFd, bytes: u64) -> Self {
        let memory = memory.as_fd().try_clone_to_owned().unwrap();
        Self { present: vec![false; index(bytes)], memory, faults: 0, hints: 0 }
    }

    /// Pages with memory.
    pub(crate) fn present(&self) -> u64 {
        u64::try_from(self.present.iter().filter(|present| **present).count()).unwrap()
    }

    /// Whether the file has a page there.
    fn in_file(&self, page: usize) -> bool {
        let offset = u64::try_from(page).unwrap() * PAGE_SIZE;
        match rustix::fs::seek(&self.memory, SeekFrom::Data(offset)) {
            Ok(data) => data == offset,
            Err(Errno::NXIO) => false,
            Err(errno) => panic!("{errno}"),
        }
    }

    pub(crate) fn agrees_page_by_page(&self) -> bool {
        self.present.iter().enumerate().all(|(page, present)| *present == self.in_file(page))
    }

    /// A hint: what the file says is right.
    fn look_again(&mut self, extent: Extent) {
        self.hints += 1;
        let end = (extent.offset + extent.length).div_ceil(PAGE_SIZE);
        for page in index(extent.offset)..usize::try_from(end).unwrap() {
            self.present[page] = self.present[page] && self.in_file(page);
        }
    }

    /// Fills what is missing of the frame that a fault is in.
    fn serve(&mut self, taken: &Taken, address: u64) {
        self.faults += 1;
        let offset = (address - taken.range.start()) & !(FRAME_SIZE - 1);
        let frame = HostRange::new(taken.range.start() + offset, FRAME_SIZE).unwrap();
        // In the ledger before it is in the file.
        self.present[index(offset)..index(offset + FRAME_SIZE)].fill(true);
        fill(&taken.uffd, frame);
    }
}

/// The thread that serves. Dropped, it ends.
pub(crate) struct Keeping {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeping {
    pub(crate) fn start(taken: Taken, ledger: &Arc<Mutex<Ledger>>) -> Self {
        let (stop, ledger) = (Arc::new(AtomicBool::new(false)), Arc::clone(ledger));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_room_for(16);
            let mut closed = false;
            while !closed && !stopped.load(Ordering::Relaxed) {
                wait(&taken);
                closed = turn(&taken, &ledger, &mut events);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking(), "the pager failed");
    }
}

/// Until there is something to do, or for a while.
fn wait(taken: &Taken) {
    let limit = Timespec::try_from(LOOK).unwrap();
    let mut fds = [PollFd::new(&taken.uffd, PollFlags::IN), PollFd::new(&taken.socket, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => panic!("{errno}"),
    }
}

/// Does what there is to do; `true` when the VMM has ended.
fn turn(taken: &Taken, ledger: &Arc<Mutex<Ledger>>, events: &mut Events) -> bool {
    let mut ledger = ledger.lock().unwrap();
    for event in taken.uffd.read(events).unwrap() {
        let Event::Pagefault(fault) = event else { panic!("{event:?}") };
        ledger.serve(taken, fault.page());
    }
    // Not more than so many in one turn, so that faults do not wait for a flood.
    for _ in 0..256 {
        match taken.socket.hear().unwrap() {
            Heard::Nothing => return false,
            Heard::Closed => return true,
            Heard::Punched { extent, lost: 0 } => ledger.look_again(extent),
            other @ (Heard::Punched { .. } | Heard::Handover(_) | Heard::Unmapped(_)) => panic!("{other:?}"),
        }
    }
    false
}
