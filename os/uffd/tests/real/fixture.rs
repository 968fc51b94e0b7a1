//! Shared memory of this process that is watched, and threads that touch it.
#![expect(unsafe_code, reason = "maps memory and touches it as a guest would")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use plimsoll_testbed::skip::skip;
use plimsoll_uffd::{Event, Events, Fault, Features, HostRange, Uffd, UffdError, Watch};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// How long what must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long what must not happen is waited for.
pub(crate) const DOUBT: Duration = Duration::from_millis(100);
/// The frames of the memory.
pub(crate) const FRAMES: u64 = 4;

/// Memory mapped once, beginning where a huge page may.
pub(crate) struct Mapping {
    reserved: NonNull<u8>,
    reserved_len: usize,
    start: NonNull<u8>,
}

// SAFETY: all access is by volatile single bytes, of memory that lives as long as this.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(memfd: &OwnedFd, len: usize) -> Self {
        let frame = usize::try_from(FRAME_SIZE).unwrap();
        let reserved_len = len + frame;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                reserved_len,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }
        .unwrap();
        let aligned = reserved.map_addr(|address| address.next_multiple_of(frame));
        // SAFETY: replaces a piece of the mapping just made, which nobody else knows of.
        let start = unsafe {
            rustix::mm::mmap(
                aligned,
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                memfd,
                0,
            )
        }
        .unwrap();
        let (reserved, start) = (NonNull::new(reserved.cast()).unwrap(), NonNull::new(start.cast()).unwrap());
        Self { reserved, reserved_len, start }
    }

    fn at(&self, offset: u64) -> *mut u8 {
        assert!(offset < FRAMES * FRAME_SIZE);
        self.start.as_ptr().wrapping_add(usize::try_from(offset).unwrap())
    }

    fn write(&self, offset: u64, byte: u8) {
        // SAFETY: inside the mapping, which is writable.
        unsafe { self.at(offset).write_volatile(byte) };
    }

    fn read(&self, offset: u64) -> u8 {
        // SAFETY: inside the mapping, which is readable.
        unsafe { self.at(offset).read_volatile() }
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) {
        // SAFETY: inside the mapping; nobody holds a reference into it.
        unsafe { rustix::mm::madvise(self.at(offset).cast(), usize::try_from(len).unwrap(), advice) }
            .unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` reserved; the last user drops it.
        unsafe { rustix::mm::munmap(self.reserved.as_ptr().cast(), self.reserved_len) }.unwrap();
    }
}

/// Memory of [`FRAMES`] frames without a page in it, and who watches it.
pub(crate) struct Watched {
    /// `None` when the test has closed it.
    pub(crate) uffd: Option<Uffd>,
    pub(crate) memfd: OwnedFd,
    map: Arc<Mapping>,
}

impl Watched {
    /// `None`, after saying so loudly, where there is no userfaultfd.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::with(test, Features::SHARED_GUEST)
    }

    pub(crate) fn with(test: &str, features: Features) -> Option<Self> {
        let uffd = match Uffd::open(features) {
            Ok(uffd) => uffd,
            Err(error @ (UffdError::NotAllowed { .. } | UffdError::Absent | UffdError::Lacks { .. })) => {
                skip(test, &error.to_string());
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let len = usize::try_from(FRAMES * FRAME_SIZE).unwrap();
        let memfd = guest_memory(FRAMES * FRAME_SIZE);
        let map = Arc::new(Mapping::new(&memfd, len));
        let watched = Self { uffd: Some(uffd), memfd, map };
        watched.uffd().register(watched.range(0, FRAMES * FRAME_SIZE), Watch::MissingAndWrites).unwrap();
        Some(watched)
    }

    pub(crate) fn uffd(&self) -> &Uffd {
        self.uffd.as_ref().unwrap()
    }

    /// Addresses of a piece of the file.
    pub(crate) fn range(&self, offset: u64, len: u64) -> HostRange {
        let start = u64::try_from(self.map.start.as_ptr().addr()).unwrap();
        HostRange::new(start + offset, len).unwrap()
    }

    pub(crate) fn page(&self, number: u64) -> HostRange {
        self.range(number * PAGE_SIZE, PAGE_SIZE)
    }

    pub(crate) fn all(&self) -> HostRange {
        self.range(0, FRAMES * FRAME_SIZE)
    }

    /// A thread that does something with the memory, and what comes of it.
    pub(crate) fn thread<T: Send + 'static>(
        &self,
        deed: impl FnOnce(&Mapping) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (sender, receiver) = channel();
        let map = Arc::clone(&self.map);
        // Not joined: if it waits for ever the test has failed, and closing the userfaultfd lets it go on.
        std::thread::spawn(move || sender.send(deed(&map)));
        receiver
    }

    /// A thread that reads the first byte of a page.
    pub(crate) fn reader(&self, page: u64) -> Receiver<u8> {
        self.thread(move |map| map.read(page * PAGE_SIZE))
    }

    /// A thread that writes to a page.
    pub(crate) fn writer(&self, page: u64, byte: u8) -> Receiver<()> {
        self.thread(move |map| map.write(page * PAGE_SIZE, byte))
    }

    /// A thread that gives memory back.
    pub(crate) fn remover(&self, offset: u64, len: u64, advice: Advice) -> Receiver<()> {
        self.thread(move |map| map.advise(offset, len, advice))
    }

    /// Gives memory back in the file.
    pub(crate) fn punch(&self, offset: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.memfd, flags, offset, len).unwrap();
    }

    /// Bytes of memory in the file (`st_blocks`, in units of 512).
    pub(crate) fn resident(&self) -> u64 {
        let file = File::from(self.memfd.try_clone().unwrap());
        file.metadata().unwrap().blocks() * 512
    }

    /// What happens next.
    #[track_caller]
    pub(crate) fn event(&self) -> Event {
        next(self.uffd(), PATIENCE).expect("an event comes")
    }

    /// The next event, which is a fault on this page.
    #[track_caller]
    pub(crate) fn fault_on(&self, page: u64) -> Fault {
        let Event::Pagefault(fault) = self.event() else { panic!("another event") };
        assert_eq!(fault.page(), self.page(page).start());
        fault
    }
}

/// The next event within `limit`, one at a time.
#[track_caller]
pub(crate) fn next(uffd: &Uffd, limit: Duration) -> Option<Event> {
    let mut events = Events::with_room_for(1);
    assert!(readable(uffd, limit) || limit < PATIENCE, "nothing within {limit:?}");
    uffd.read(&mut events).unwrap().next()
}

/// Whether something can be read within `limit`.
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

/// Memory as is made for a guest.
pub(crate) fn guest_memory(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("plimsoll-test", flags).unwrap();
    rustix::fs::ftruncate(&memfd, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    memfd
}

/// What a thread came to, which must not take for ever.
#[track_caller]
pub(crate) fn goes_on<T>(thread: &Receiver<T>) -> T {
    thread.recv_timeout(PATIENCE).expect("it goes on")
}

/// That a thread waits, as far as can be told.
#[track_caller]
pub(crate) fn waits<T>(thread: &Receiver<T>) {
    assert!(matches!(thread.recv_timeout(DOUBT), Err(RecvTimeoutError::Timeout)), "it did not wait");
}
