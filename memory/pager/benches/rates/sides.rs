//! What is measured, and what it is measured against.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use plimsoll_frames::{Ledger, RemovedBy};
use plimsoll_pager::{Config, Pager, Parts, Scannable, Scanner, Scrub};
use plimsoll_uffd::{Event, Events, Features, HostRange, HugePages, Uffd, Watch, Woken, memfd_huge_pages};
use plimsoll_units::{Bytes, MemTarget, PAGE_SIZE};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::guest::{Mapping, index};

/// What is punched in one call, as a sweep does.
const PUNCHED: u64 = 8 << 20;
/// What is read in one call, as a sweep does.
const PIECE: u64 = 256 << 10;
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Memory for a guest.
fn memory(len: u64, huge: bool) -> Result<OwnedFd, String> {
    let file = if huge {
        on_tmpfs_with_huge_pages()
    } else {
        rustix::fs::memfd_create("rates", MemfdFlags::CLOEXEC)
    };
    let file = file.map_err(|errno| format!("cannot make memory for a guest: {errno}"))?;
    rustix::fs::ftruncate(&file, len).map_err(|errno| format!("cannot set its size: {errno}"))?;
    Ok(file)
}

fn on_tmpfs_with_huge_pages() -> rustix::io::Result<OwnedFd> {
    let system = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&system, "huge", "always")?;
    rustix::mount::fsconfig_create(&system)?;
    let mount = rustix::mount::fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, "guest", flags, Mode::RUSR | Mode::WUSR)
}

fn punch(memory: &OwnedFd, len: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for offset in (0..len).step_by(index(PUNCHED)) {
        rustix::fs::fallocate(memory, flags, offset, PUNCHED.min(len - offset)).expect("a hole");
    }
}

fn watched(mapping: &Mapping) -> Result<Uffd, String> {
    let uffd = Uffd::open(Features::SHARED_GUEST).map_err(|error| error.to_string())?;
    uffd.register(mapping.range(), Watch::MissingAndWrites).map_err(|error| error.to_string())?;
    Ok(uffd)
}

/// A guest with a pager, and its memory mapped once more where nobody watches.
pub(crate) struct Served {
    memory: OwnedFd,
    len: u64,
    mapping: Mapping,
    unwatched: Mapping,
    pager: Pager<Vec<AtomicU64>>,
}

impl Served {
    pub(crate) fn new(mib: u64, huge: bool) -> Result<Self, String> {
        let len = Bytes::mib(mib).0;
        let memory = memory(len, huge)?;
        let (mapping, unwatched) = (Mapping::new(&memory, len), Mapping::new(&memory, len));
        let frames = Ledger::frames_for(Bytes(len));
        let words = Ledger::words_needed(frames, frames).map_err(|error| error.to_string())?;
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        let mut ledger = Ledger::format(words, frames, frames).map_err(|error| error.to_string())?;
        ledger.set_target(MemTarget(Bytes(len)));
        let parts = Parts {
            memory: memory.try_clone().map_err(|error| error.to_string())?,
            uffd: watched(&mapping)?,
            range: mapping.range(),
            ledger,
            hints: None,
        };
        let huge =
            if huge { HugePages::Always } else { memfd_huge_pages().map_err(|error| error.to_string())? };
        let config = Config { holes_are: RemovedBy::Other, ..Config::new(huge) };
        let pager = Pager::start(parts, &config, drop).map_err(|error| error.to_string())?;
        Ok(Self { memory, len, mapping, unwatched, pager })
    }

    pub(crate) fn touch(&self) {
        self.mapping.write(1);
    }

    pub(crate) fn touch_reading(&self) {
        self.mapping.read();
    }

    pub(crate) fn touch_unwatched(&self) {
        self.unwatched.write(1);
    }

    /// The pager knows nothing of what was touched unwatched, and need not.
    pub(crate) fn forget_unwatched(&self) {
        punch(&self.memory, self.len);
    }

    pub(crate) fn give_back(&self) {
        self.pager.reset(PATIENCE).expect("nothing is in use");
    }

    pub(crate) fn punch(&self) {
        punch(&self.memory, self.len);
    }

    /// Tells the pager what was punched.
    pub(crate) fn notice(&self) {
        self.pager.correct();
    }

    pub(crate) fn sweep(&self) {
        let report = self.pager.sweep(PATIENCE).expect("a sweep ends");
        assert_eq!(report.pages, self.len / PAGE_SIZE, "not all was swept");
    }

    pub(crate) fn whole_frame_share(&self) -> Option<u32> {
        self.pager.status().whole_frame_share().map(|share| share.0)
    }
}

/// A guest whose faults are served one page at a time.
pub(crate) struct Piecemeal {
    memory: OwnedFd,
    len: u64,
    mapping: Mapping,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Piecemeal {
    pub(crate) fn new(mib: u64, huge: bool) -> Result<Self, String> {
        let len = Bytes::mib(mib).0;
        let memory = memory(len, huge)?;
        let mapping = Mapping::new(&memory, len);
        let uffd = watched(&mapping)?;
        let end = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&end);
        let thread = Some(std::thread::spawn(move || serve_pages(&uffd, &ends)));
        Ok(Self { memory, len, mapping, end, thread })
    }

    pub(crate) fn touch(&self) {
        self.mapping.write(1);
    }

    pub(crate) fn give_back(&self) {
        punch(&self.memory, self.len);
    }
}

impl Drop for Piecemeal {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| thread.join().expect("it served"));
    }
}

fn serve_pages(uffd: &Uffd, end: &AtomicBool) {
    let mut events = Events::with_room_for(8);
    let soon = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    while !end.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(uffd, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&soon)).expect("faults");
        for event in uffd.read(&mut events).expect("faults") {
            let Event::Pagefault(fault) = event else { continue };
            let page = HostRange::new(fault.page(), PAGE_SIZE).expect("a page");
            let _ = uffd.zeropage(page, Woken::Yes).expect("memory");
        }
    }
}

/// Memory of which only the last word of each page is not zero.
pub(crate) struct Scanning {
    memory: OwnedFd,
    file: Scannable,
    len: u64,
    scanner: Scanner,
    buffer: Vec<u8>,
}

impl Scanning {
    pub(crate) fn new(mib: u64, huge: bool) -> Result<Self, String> {
        let len = Bytes::mib(mib).0;
        let memory = memory(len, huge)?;
        Mapping::new(&memory, len).write_last(1);
        let copy = memory.try_clone().map_err(|error| error.to_string())?;
        let file = Scannable::new(copy).map_err(|error| error.to_string())?;
        let (scanner, buffer) = (Scanner::new(Scrub::ZERO), vec![0; index(PIECE)]);
        Ok(Self { memory, file, len, scanner, buffer })
    }

    pub(crate) fn read(&mut self) {
        for offset in (0..self.len).step_by(self.buffer.len()) {
            let read = rustix::io::pread(&self.memory, &mut self.buffer, offset).expect("memory");
            assert_eq!(read, self.buffer.len());
            std::hint::black_box(&self.buffer);
        }
    }

    pub(crate) fn scan(&mut self) {
        let mut empty = Vec::new();
        self.scanner.scan(&self.file, 0..self.len / PAGE_SIZE, &mut empty).expect("memory");
        assert_eq!(empty, []);
    }
}
