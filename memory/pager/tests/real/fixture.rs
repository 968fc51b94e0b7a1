//! A guest of threads, its pager, and who watches both.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plimsoll_frames::Ledger;
use plimsoll_pager::{Config, Pager, PagerEvent, Parts};
use plimsoll_shm::SharedWords;
use plimsoll_testbed::skip::skip;
use plimsoll_uffd::{Features, HostRange, HugePages, Uffd, UffdError, Watch};
use plimsoll_units::{Bytes, FRAME_SIZE, MemTarget, PAGES_PER_FRAME, PageCount};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use crate::memory::{Mapped, WORDS};

/// How long what must happen may take, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// How long what must not happen is waited for.
pub(crate) const DOUBT: Duration = Duration::from_millis(200);

/// A guest's memory, watched, and a ledger for it.
pub(crate) struct Guest {
    pub(crate) memory: OwnedFd,
    pub(crate) uffd: Uffd,
    pub(crate) map: Arc<Mapped>,
    pub(crate) frames: u64,
    pub(crate) words: SharedWords,
    pub(crate) words_fd: OwnedFd,
    formatted: AtomicBool,
}

impl Guest {
    /// `None`, after saying so loudly, where there is no userfaultfd.
    pub(crate) fn new(test: &str, frames: u64) -> Option<Self> {
        Self::of(test, sealed_memfd(frames * FRAME_SIZE), frames, Features::SHARED_GUEST)
    }

    pub(crate) fn of(test: &str, memory: OwnedFd, frames: u64, features: Features) -> Option<Self> {
        let uffd = match Uffd::open(features) {
            Ok(uffd) => uffd,
            Err(error @ (UffdError::NotAllowed { .. } | UffdError::Absent | UffdError::Lacks { .. })) => {
                skip(test, &error.to_string());
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let map = Arc::new(Mapped::new(&memory, frames * FRAME_SIZE));
        let of_ledger = Ledger::frames_for(Bytes(frames * FRAME_SIZE));
        let words = Ledger::words_needed(of_ledger, of_ledger).unwrap();
        let (words, words_fd) = SharedWords::create("plimsoll-test-ledger", words).unwrap();
        let formatted = AtomicBool::new(false);
        let guest = Self { memory, uffd, map, frames, words, words_fd, formatted };
        guest.uffd.register(guest.range(), Watch::MissingAndWrites).unwrap();
        Some(guest)
    }

    pub(crate) fn range(&self) -> HostRange {
        HostRange::new(self.map.address(), self.frames * FRAME_SIZE).unwrap()
    }

    pub(crate) fn pages(&self) -> u64 {
        self.frames * PAGES_PER_FRAME
    }

    /// What a keeper hands to each back end.
    pub(crate) fn parts(&self) -> Parts<SharedWords> {
        let ledger = if self.formatted.swap(true, Ordering::SeqCst) {
            Ledger::attach(self.words.clone()).unwrap().0
        } else {
            let frames = Ledger::frames_for(Bytes(self.frames * FRAME_SIZE));
            Ledger::format(self.words.clone(), frames, frames).unwrap()
        };
        let memory = self.memory.try_clone().unwrap();
        Parts { memory, uffd: self.uffd.copy().unwrap(), range: self.range(), ledger, hints: None }
    }

    /// A pager with a target of so many frames.
    pub(crate) fn served(&self, frames: u64) -> Served {
        self.served_by(frames, &Config::new(HugePages::Never))
    }

    pub(crate) fn served_by(&self, frames: u64, config: &Config) -> Served {
        let served = Served::start(self.parts(), config);
        served.set_target(target(frames * PAGES_PER_FRAME));
        served
    }

    /// A thread that does something with the memory, and what comes of it.
    pub(crate) fn thread<T: Send + 'static>(
        &self,
        deed: impl FnOnce(&Mapped) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (sender, receiver) = channel();
        let map = Arc::clone(&self.map);
        // Not joined: if it waits for ever the test has failed, and the process ends.
        std::thread::spawn(move || sender.send(deed(&map)));
        receiver
    }

    /// Reads a word of each page, from one page on, in another thread.
    pub(crate) fn reads(&self, first: u64, pages: u64) -> Receiver<u64> {
        self.thread(move |map| (first..first + pages).map(|page| map.read(page, 3)).sum())
    }

    /// Writes a number to each page, its own plus one, in another thread.
    pub(crate) fn writes(&self, first: u64, pages: u64) -> Receiver<()> {
        self.thread(move |map| (first..first + pages).for_each(|page| map.write(page, 5, page + 1)))
    }

    /// Pages that [`Guest::writes`] wrote to have what it wrote, and nothing else.
    #[track_caller]
    pub(crate) fn verify_writes(&self, first: u64, pages: u64) {
        let wrong = self.thread(move |map| {
            (first..first + pages).find(|&page| {
                (0..WORDS).any(|word| map.read(page, word) != if word == 5 { page + 1 } else { 0 })
            })
        });
        assert_eq!(goes_on(&wrong), None);
    }

    /// Makes a hole as a VMM does, without a word.
    pub(crate) fn punch(&self, first: u64, pages: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.memory, flags, first * 4096, pages * 4096).unwrap();
    }

    /// Pages of memory in the file, by the kernel.
    pub(crate) fn allocated(&self) -> u64 {
        allocated(&self.memory)
    }

    /// Watches that the file never has more than so many pages, until it is dropped, which says how many it had at most.
    pub(crate) fn watched(&self, limit: u64) -> Watcher {
        let memory = self.memory.try_clone().unwrap();
        Watcher::start(memory, limit)
    }
}

/// A pager, and what it tells.
pub(crate) struct Served {
    pager: Option<Pager<SharedWords>>,
    pub(crate) events: Receiver<PagerEvent>,
}

impl Served {
    pub(crate) fn start(parts: Parts<SharedWords>, config: &Config) -> Self {
        let (sender, events) = channel();
        let pager = Pager::start(parts, config, move |event| drop(sender.send(event))).unwrap();
        Self { pager: Some(pager), events }
    }

    /// The next event.
    #[track_caller]
    pub(crate) fn event(&self) -> PagerEvent {
        self.events.recv_timeout(PATIENCE).expect("an event comes")
    }

    #[track_caller]
    pub(crate) fn no_event(&self) {
        assert_eq!(self.events.recv_timeout(DOUBT), Err(RecvTimeoutError::Timeout));
    }

    /// Waits until the ledger and the kernel agree, with everything in order.
    #[track_caller]
    pub(crate) fn agree(&self) {
        until(|| self.audit().unwrap() == PageCount(0));
    }

    /// Waits until pages that were touched are no longer on their way: who touches them may be quicker than the answer.
    #[track_caller]
    pub(crate) fn settled(&self, first: u64, pages: u64) {
        drop(self.pin(first, first + pages, PATIENCE).unwrap());
    }

    pub(crate) fn resident(&self) -> u64 {
        self.status().residency.resident.0
    }

    pub(crate) fn stop(mut self) {
        self.pager.take().unwrap().stop();
    }
}

impl Deref for Served {
    type Target = Pager<SharedWords>;

    fn deref(&self) -> &Self::Target {
        self.pager.as_ref().unwrap()
    }
}

/// Looks at a file's blocks all the time.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    /// Pages that are allowed.
    pub(crate) limit: Arc<AtomicU64>,
    thread: Option<JoinHandle<(u64, u64)>>,
}

impl Watcher {
    fn start(memory: OwnedFd, limit: u64) -> Self {
        let (stop, limit) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(limit)));
        let (until, allowed) = (Arc::clone(&stop), Arc::clone(&limit));
        let thread = std::thread::spawn(move || {
            let (mut most, mut looks) = (0, 0);
            let mut last = false;
            while !last {
                // One more look after the end.
                last = until.load(Ordering::SeqCst);
                let allowed = allowed.load(Ordering::SeqCst);
                let now = allocated(&memory);
                assert!(now <= allowed, "{now} pages of memory where {allowed} are allowed");
                (most, looks) = (most.max(now), looks + 1);
                // Not a wait for anything: it leaves the processor to those it watches.
                std::thread::sleep(Duration::from_millis(1));
            }
            (most, looks)
        });
        Self { stop, limit, thread: Some(thread) }
    }

    /// The most pages that were seen.
    pub(crate) fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let (most, looks) = self.thread.take().unwrap().join().unwrap();
        assert!(looks > 0);
        most
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

pub(crate) fn allocated(memory: impl AsFd) -> u64 {
    let file = File::from(memory.as_fd().try_clone_to_owned().unwrap());
    file.metadata().unwrap().blocks() / 8
}

pub(crate) fn target(pages: u64) -> MemTarget {
    MemTarget(PageCount(pages).bytes())
}

/// Memory as is made for a guest.
pub(crate) fn sealed_memfd(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("plimsoll-test-guest", flags).unwrap();
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
    assert!(matches!(thread.recv_timeout(DOUBT), Err(RecvTimeoutError::Timeout)), "it does not wait");
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Numbers that look like chance and are the same for a seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
