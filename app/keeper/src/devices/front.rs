//! One connection of a front end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plimsoll_shm::ShmError;
use plimsoll_vhost_user::wire::{Answer, Code, Framer, Progress, WireError, config_change, protocol};
use rustix::event::PollFlags;

/// How long a front end may take for the rest of a message, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a front end's connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// It hung up.
    #[error("it left")]
    Left,
    /// It sent what no front end may send.
    #[error("it sent what no front end may send: {0}")]
    Misbehaved(WireError),
    /// It cannot be written to.
    #[error("it cannot be answered: {0}")]
    Unreachable(ShmError),
    /// It took too long for the rest of a message, or to take an answer.
    #[error("it took more than 10 seconds for the rest of a message, or to take an answer")]
    TooSlow,
    /// Back ends die of a question that cannot be refused.
    #[error("back ends die of its question {0:?}")]
    Fatal(Code),
}

/// A front end's socket. All that comes over it is hostile.
#[derive(Debug)]
pub(crate) struct Front {
    socket: OwnedFd,
    framer: Framer,
    /// An answer that it has not taken yet; never more than one.
    answer: Vec<u8>,
    /// When something last came or went.
    moved: Instant,
    /// The process that connected.
    pub(crate) pid: u32,
    /// The protocol features it chose.
    pub(crate) protocol: u64,
    /// Where it takes requests of ours.
    requests: Option<Arc<OwnedFd>>,
    /// It is to be told that the configuration has changed.
    change_due: bool,
}

impl Front {
    pub(crate) fn new(socket: OwnedFd, pid: u32, now: Instant) -> Self {
        Self {
            socket,
            framer: Framer::of_requests(),
            answer: Vec::new(),
            moved: now,
            pid,
            protocol: 0,
            requests: None,
            change_due: false,
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for on the socket. While a request of its own is under way nothing more is read.
    pub(crate) fn interest(&self, busy: bool) -> PollFlags {
        if !self.answer.is_empty() {
            PollFlags::OUT
        } else if busy {
            PollFlags::empty()
        } else {
            PollFlags::IN
        }
    }

    /// The socket of [`Front::set_requests`], if something waits to be sent on it.
    pub(crate) fn requests_waiting(&self) -> Option<BorrowedFd<'_>> {
        self.requests.as_ref().filter(|_| self.change_due).map(|fd| fd.as_fd())
    }

    /// When its patience with us, or ours with it, ends.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (self.framer.is_mid_message() || !self.answer.is_empty()).then(|| self.moved + PATIENCE)
    }

    /// Reads until a message is whole.
    pub(crate) fn read(&mut self, now: Instant) -> Result<Progress, WireError> {
        let begun = self.framer.is_mid_message();
        let progress = self.framer.read(&self.socket);
        if !begun {
            // The time runs from a message's first byte, so that sending a byte now and then does not help.
            self.moved = now;
        }
        progress
    }

    /// Answers a request. A front end that does not read gets the rest later.
    pub(crate) fn answer(&mut self, code: u32, answer: &Answer, now: Instant) -> Result<(), ShmError> {
        self.answer = answer.message(code).bytes();
        self.moved = now;
        self.flush()
    }

    /// Goes on sending the answer.
    pub(crate) fn flush(&mut self) -> Result<(), ShmError> {
        while !self.answer.is_empty() {
            match plimsoll_shm::send(&self.socket, &self.answer, &[]) {
                Ok(sent) => drop(self.answer.drain(..sent.min(self.answer.len()))),
                Err(ShmError::WouldBlock) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it wants an acknowledgement where it asks for one.
    pub(crate) fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    /// Takes the socket on which it takes requests of ours.
    pub(crate) fn set_requests(&mut self, fd: Arc<OwnedFd>) {
        self.requests = Some(fd);
    }

    /// Tells it that the configuration has changed, now or as soon as there is room.
    pub(crate) fn tell_change(&mut self) {
        let Some(requests) = &self.requests else { return };
        let message = config_change();
        match plimsoll_shm::send(requests, &message, &[]) {
            Ok(sent) if sent == message.len() => self.change_due = false,
            Err(ShmError::WouldBlock) => self.change_due = true,
            // Half a message, or no socket at all: whatever follows would not be understood either.
            Ok(_) | Err(_) => {
                self.requests = None;
                self.change_due = false;
            }
        }
    }
}
