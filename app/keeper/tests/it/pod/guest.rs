//! A VMM in this process: its threads are the guest's CPUs, and it hands over by hand.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use plimsoll_api::control::{Op, PagerStatus};
use plimsoll_shm::SharedWords;
use plimsoll_testbed::skip::skip;
use plimsoll_uffd::agreement::OnPagerLoss;
use plimsoll_uffd::handover::{Extent, Handover, ToPager, ToVmm};
use plimsoll_uffd::{Features, HostRange, Uffd, Watch};
use plimsoll_units::{Bytes, MemTarget, PAGE_SIZE, PAGES_PER_FRAME, PageCount};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::common::{Keeper, LIMIT};

/// How long what must not happen is waited for.
pub(crate) const DOUBT: Duration = Duration::from_millis(200);

/// What the guest is told it has.
pub(crate) const MAXMEM: Bytes = Bytes::mib(64);
/// What it may have to begin with.
pub(crate) const TARGET: Bytes = Bytes::mib(16);

const WORDS_PER_PAGE: u64 = PAGE_SIZE / 8;

/// Memory as `plimsoll run` makes it.
pub(crate) fn guest_memory(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("plimsoll-guest", flags).unwrap();
    rustix::fs::ftruncate(&memory, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    memory
}

/// A userfaultfd; `None`, after saying so loudly, where there is none.
pub(crate) fn uffd(test: &str) -> Option<Uffd> {
    Uffd::open(Features::SHARED_GUEST).map_err(|error| skip(test, &error.to_string())).ok()
}

/// Bytes of memory in a file (`st_blocks`, in units of 512).
pub(crate) fn resident(memory: impl AsFd) -> u64 {
    u64::try_from(rustix::fs::fstat(memory).unwrap().st_blocks).unwrap() * 512
}

/// A socket to a keeper, as the library in a VMM has one.
pub(crate) struct Connection(pub(crate) OwnedFd);

impl Connection {
    pub(crate) fn open(keeper: &Keeper) -> Self {
        let kind = SocketType::SEQPACKET;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(keeper.socket()).unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        plimsoll_shm::send(&self.0, bytes, fds).unwrap();
    }

    /// Whether something comes, or the keeper hangs up, within some time.
    pub(crate) fn is_answered(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap();
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&left)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }

    /// The answer; `None` if the keeper hangs up.
    #[track_caller]
    pub(crate) fn answer(&self) -> Option<ToVmm> {
        assert!(self.is_answered(LIMIT), "no answer");
        let mut packet = [0; 64];
        let received = plimsoll_shm::receive(&self.0, &mut packet).ok()?;
        (received.bytes > 0).then(|| ToVmm::decode(&packet[..received.bytes]).unwrap())
    }
}

/// A guest's memory, mapped and watched in this process.
pub(crate) struct Guest {
    pub(crate) memory: OwnedFd,
    pub(crate) uffd: Uffd,
    words: SharedWords,
}

impl Guest {
    /// `None`, after saying so loudly, where there is no userfaultfd.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let uffd = uffd(test)?;
        let memory = guest_memory(MAXMEM.0);
        let words = SharedWords::attach_all(&memory).unwrap();
        let guest = Self { memory, uffd, words };
        guest.uffd.register(guest.range(), Watch::MissingAndWrites).unwrap();
        Some(guest)
    }

    /// With a keeper that has accepted it.
    pub(crate) fn served(test: &str, more: &[&str]) -> Option<(Self, Keeper, Connection)> {
        let guest = Self::new(test)?;
        let keeper = Keeper::start_pod(test, &guest.memory, TARGET, more);
        let connection = guest.hand_over(&keeper);
        assert_eq!(connection.answer(), Some(ToVmm::Accepted), "{}", keeper.log());
        Some((guest, keeper, connection))
    }

    pub(crate) fn range(&self) -> HostRange {
        let start = u64::try_from(self.words.as_ptr().addr()).unwrap();
        HostRange::new(start, MAXMEM.0).unwrap()
    }

    pub(crate) fn said(&self) -> Handover {
        let range = self.range();
        Handover { address: range.start(), length: range.len(), offset: 0, loss: OnPagerLoss::Stall }
    }

    /// Connects and hands over. There is no answer yet.
    pub(crate) fn hand_over(&self, keeper: &Keeper) -> Connection {
        let connection = Connection::open(keeper);
        let handover = ToPager::Handover(self.said()).encode();
        connection.send(&handover, &[self.uffd.as_fd(), self.memory.as_fd()]);
        connection
    }

    pub(crate) fn resident(&self) -> u64 {
        resident(&self.memory)
    }

    /// The guest's memory, for its threads.
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu(self.words.clone())
    }

    /// Fills pages in a thread of its own; what comes is sent when it is done.
    pub(crate) fn fill(&self, pages: std::ops::Range<u64>, seed: u64) -> Receiver<Instant> {
        let cpu = self.cpu();
        let (sender, receiver) = channel();
        // Not joined: if it waits for ever the test has failed, and the end of the uffd lets it go on.
        std::thread::spawn(move || {
            pages.for_each(|page| cpu.write(page, seed));
            sender.send(Instant::now())
        });
        receiver
    }

    /// Gives pages back as QEMU's balloon does, and tells of it or not.
    pub(crate) fn punch(&self, pages: std::ops::Range<u64>, tell: Option<&Connection>) {
        let (offset, length) = (pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.memory, flags, offset, length).unwrap();
        if let Some(connection) = tell {
            let extent = Extent { offset, length };
            connection.send(&ToPager::Punched { extent, lost: 0 }.encode(), &[]);
        }
    }
}

/// One of the guest's CPUs.
#[derive(Clone)]
pub(crate) struct Cpu(SharedWords);

impl Cpu {
    fn page(&self, page: u64) -> &[AtomicU64] {
        let start = usize::try_from(page * WORDS_PER_PAGE).unwrap();
        &self.0[start..start + usize::try_from(WORDS_PER_PAGE).unwrap()]
    }

    /// Fills a page with a pattern of its own; 0 is a seed for zeros.
    pub(crate) fn write(&self, page: u64, seed: u64) {
        (0..).zip(self.page(page)).for_each(|(at, word)| word.store(pattern(page, at, seed), SeqCst));
    }

    /// Whether a page has what was written to it.
    pub(crate) fn has(&self, page: u64, seed: u64) -> bool {
        (0..).zip(self.page(page)).all(|(at, word)| word.load(SeqCst) == pattern(page, at, seed))
    }

    /// That pages have what was written to them.
    #[track_caller]
    pub(crate) fn holds(&self, pages: std::ops::Range<u64>, seed: u64) {
        let lost: Vec<_> = pages.filter(|page| !self.has(*page, seed)).collect();
        assert!(lost.is_empty(), "pages {lost:?} have lost what was written to them");
    }
}

fn pattern(page: u64, at: u64, seed: u64) -> u64 {
    if seed == 0 { 0 } else { (page << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed | 1 }
}

/// Sets a flag when something is over, also when it has failed: whoever looks at it must end.
pub(crate) struct Stop<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Runs `deed` while somebody looks at the memory every few milliseconds. Returns the most bytes that it had.
pub(crate) fn watched<T>(memory: &OwnedFd, deed: impl FnOnce() -> T) -> (T, u64) {
    let (most, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                most.fetch_max(resident(memory), SeqCst);
                std::thread::park_timeout(Duration::from_millis(2));
            }
        });
        let _stop = Stop(&stop);
        deed()
    });
    (done, most.load(SeqCst))
}

/// What a thread came to, which must not take for ever.
#[track_caller]
pub(crate) fn goes_on<T>(keeper: &Keeper, thread: &Receiver<T>) -> T {
    thread.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("it does not go on\n{}", keeper.log()))
}

/// That a thread waits, as far as can be told.
#[track_caller]
pub(crate) fn waits<T>(thread: &Receiver<T>) {
    assert!(matches!(thread.recv_timeout(DOUBT), Err(RecvTimeoutError::Timeout)), "it did not wait");
}

/// Pages of so many bytes.
pub(crate) fn pages(bytes: Bytes) -> u64 {
    bytes.pages_floor().0
}

/// Frames of so many bytes.
pub(crate) fn frames(bytes: Bytes) -> u64 {
    pages(bytes) / PAGES_PER_FRAME
}

impl Keeper {
    /// What the back end says of the memory.
    pub(crate) fn pager(&self) -> PagerStatus {
        self.status().pager.expect("memory on demand")
    }

    pub(crate) fn set_target(&self, target: Bytes) -> PagerStatus {
        self.ask(Op::SetTarget { target: MemTarget(target) }).pager.unwrap()
    }

    /// Waits until ledger and file agree, as they must once all hints are heard.
    pub(crate) fn wait_in_step(&self, guest: &Guest) {
        self.wait("ledger and file to agree", |keeper| {
            let status = keeper.status();
            let resident = PageCount(guest.resident() / PAGE_SIZE);
            (status.ledger.present == resident).then_some(())
        });
    }
}
