//! A front end with a driver, in this process: what a guest does, and what none should.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use plimsoll_vhost_user::wire::{Code, Framer, Message, Progress, flag, protocol};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;

use crate::common::Keeper;

/// Where the guest's memory begins, in its own addresses.
pub(crate) const GUEST: u64 = 0x10_0000;
/// And in the front end's.
pub(crate) const USER: u64 = 0x7000_0000_0000;
/// Its length: rings in the first 2 MiB, pages to play with in the rest.
pub(crate) const LENGTH: u64 = 16 << 20;
/// Descriptors of a ring.
pub(crate) const SIZE: u16 = 64;

/// How long an answer may take: a back end may have to be started in between.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection, and memory for a guest.
pub(crate) struct Front {
    pub(crate) socket: UnixStream,
    framer: Framer,
    pub(crate) memory: File,
    kick: OwnedFd,
    call: OwnedFd,
    available: u16,
}

pub(crate) fn memfd(length: u64) -> File {
    let file = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, length).unwrap();
    file.into()
}

pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

pub(crate) fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(crate) fn longs(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// A memory table's payload.
pub(crate) fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = words(&[u32::try_from(regions.len()).unwrap(), 0]);
    regions.iter().for_each(|region| payload.extend(longs(region)));
    payload
}

/// Where the parts of a ring are, from the beginning of the memory: descriptors, available, used.
pub(crate) fn ring_at(ring: u32) -> [u64; 3] {
    let at = 0x1_0000 * (u64::from(ring) + 1);
    [at, at + 0x4000, at + 0x8000]
}

impl Front {
    pub(crate) fn connect(keeper: &Keeper) -> Self {
        Self {
            socket: UnixStream::connect(keeper.socket()).unwrap(),
            framer: Framer::of_replies(),
            memory: memfd(LENGTH),
            kick: eventfd(),
            call: eventfd(),
            available: 0,
        }
    }

    /// Sends a request as it is given, right or wrong.
    pub(crate) fn send(&self, code: u32, flags: u32, payload: Vec<u8>, fds: &[BorrowedFd<'_>]) -> bool {
        let bytes = Message { code, flags, payload, fds: Vec::new() }.bytes();
        plimsoll_shm::send(&self.socket, &bytes, fds).is_ok_and(|sent| sent == bytes.len())
    }

    /// Waits for what the keeper says; none if it hangs up.
    pub(crate) fn answer(&mut self) -> Option<Message> {
        let until = Instant::now() + ANSWER;
        loop {
            match self.framer.read(&self.socket) {
                Ok(Progress::Message(message)) => return Some(message),
                Ok(Progress::Closed) | Err(_) => return None,
                Ok(Progress::NotYet) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer");
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, Some(&Timespec::try_from(left).unwrap()));
        }
    }

    /// A request that is acknowledged: 0 is done, else refused. None if the keeper hung up.
    pub(crate) fn set(&mut self, code: Code, payload: Vec<u8>, fds: &[BorrowedFd<'_>]) -> Option<u64> {
        self.send(code.number(), flag::VERSION | flag::NEED_REPLY, payload, fds);
        let answer = self.answer()?;
        assert_eq!(answer.code, code.number());
        Some(u64::from_ne_bytes(answer.payload.try_into().unwrap()))
    }

    /// A question; its answer's payload.
    pub(crate) fn get(&mut self, code: Code, payload: Vec<u8>) -> Option<Vec<u8>> {
        self.send(code.number(), flag::VERSION, payload, &[]);
        Some(self.answer()?.payload)
    }

    pub(crate) fn number(&mut self, code: Code) -> u64 {
        u64::from_ne_bytes(self.get(code, Vec::new()).expect("an answer").try_into().unwrap())
    }

    /// Features and protocol features, so that requests are acknowledged.
    pub(crate) fn negotiate(&mut self) {
        let features = self.number(Code::GetFeatures);
        let offered = self.number(Code::GetProtocolFeatures);
        let wanted = protocol::REPLY_ACK | protocol::CONFIG | protocol::MQ;
        assert_eq!(offered & wanted, wanted);
        assert_eq!(self.set(Code::SetProtocolFeatures, longs(&[wanted]), &[]), Some(0));
        // All but poison: reports would be left alone.
        assert_eq!(self.set(Code::SetFeatures, longs(&[features & !(1 << 4)]), &[]), Some(0));
    }

    pub(crate) fn show_memory(&mut self) -> Option<u64> {
        let memory = self.memory.try_clone().unwrap();
        self.set(Code::SetMemTable, table(&[[GUEST, LENGTH, USER, 0]]), &[memory.as_fd()])
    }

    /// Sets a ring up and starts it.
    pub(crate) fn start_ring(&mut self, ring: u32) {
        let [descriptors, available, used] = ring_at(ring).map(|at| USER + at);
        let (kick, call) = (self.kick.try_clone().unwrap(), self.call.try_clone().unwrap());
        let fd_at = longs(&[u64::from(ring)]);
        let addresses = [words(&[ring, 0]), longs(&[descriptors, used, available, 0])].concat();
        for (code, payload, fd) in [
            (Code::SetVringNum, words(&[ring, u32::from(SIZE)]), None),
            (Code::SetVringBase, words(&[ring, 0]), None),
            (Code::SetVringAddr, addresses, None),
            (Code::SetVringCall, fd_at.clone(), Some(call.as_fd())),
            (Code::SetVringKick, fd_at, Some(kick.as_fd())),
            (Code::SetVringEnable, words(&[ring, 1]), None),
        ] {
            let fds: Vec<_> = fd.into_iter().collect();
            assert_eq!(self.set(code, payload, &fds), Some(0), "{code:?}");
        }
    }

    /// A whole driver's start: everything but reports and statistics.
    pub(crate) fn start(&mut self) {
        self.negotiate();
        assert_eq!(self.show_memory(), Some(0));
        self.start_ring(0);
        self.start_ring(1);
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    pub(crate) fn used(&self, ring: u32) -> u16 {
        let mut index = [0; 2];
        self.memory.read_exact_at(&mut index, ring_at(ring)[2] + 2).unwrap();
        u16::from_le_bytes(index)
    }

    /// Writes a descriptor: a buffer's address and length, flags and next.
    pub(crate) fn describe(&self, ring: u32, head: u16, (at, length): (u64, u32), (flags, next): (u16, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(ring_at(ring)[0] + 16 * u64::from(head), &bytes);
    }

    /// Makes a head available and kicks.
    pub(crate) fn post(&mut self, ring: u32, head: u16) {
        let available = ring_at(ring)[1];
        self.write(available + 4 + 2 * u64::from(self.available % SIZE), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(available + 2, &self.available.to_le_bytes());
        self.kick();
    }

    pub(crate) fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Inflates by these pages (numbers from the memory's beginning) in one buffer.
    pub(crate) fn inflate(&mut self, pages: &[u64]) {
        let numbers: Vec<u8> = pages
            .iter()
            .flat_map(|page| u32::try_from((GUEST >> 12) + page).unwrap().to_le_bytes())
            .collect();
        self.write(0x1000, &numbers);
        let head = self.available % SIZE;
        self.describe(0, head, (GUEST + 0x1000, u32::try_from(numbers.len()).unwrap()), (0, 0));
        self.post(0, head);
    }

    /// Fills pages with a pattern of their own.
    pub(crate) fn fill(&self, pages: std::ops::Range<u64>) {
        pages.for_each(|page| self.write(page << 12, &[u8::try_from(page % 251).unwrap() + 1; 4096]));
    }

    /// The pages that no longer have their pattern.
    pub(crate) fn lost(&self, pages: std::ops::Range<u64>) -> Vec<u64> {
        let mut bytes = [0; 4096];
        pages
            .filter(|page| {
                self.memory.read_exact_at(&mut bytes, page << 12).unwrap();
                bytes != [u8::try_from(page % 251).unwrap() + 1; 4096]
            })
            .collect()
    }

    /// Host memory behind the guest's, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.memory.metadata().unwrap().blocks() * 512
    }

    /// Whether the keeper has hung up, now or within the time an answer takes.
    pub(crate) fn is_hung_up_on(&mut self) -> bool {
        self.answer().is_none()
    }
}
