//! One peer of the control socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use plimsoll_api::control::{AWAIT_AGENT_MS, ErrorKind, MAX_LINE, Op, Reply, Request};
use plimsoll_shm::ShmError;
use rustix::event::PollFlags;

use super::request::{parse, text};

/// How long a peer may take for the rest of a line, or to take its answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may wait for something to happen, whatever that is.
pub(super) const WAIT: Duration = Duration::from_millis(AWAIT_AGENT_MS);

/// One peer.
pub(super) struct Connection {
    pub(super) id: u64,
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When something last came or went.
    pub(super) moved: Instant,
    /// It is to be closed once its answer is out.
    ending: bool,
    /// What it asked for has not happened yet.
    waiting: Option<Waiting>,
}

/// A request whose answer waits for something to happen.
struct Waiting {
    request: Request,
    until: Instant,
}

impl Connection {
    pub(super) fn new(id: u64, socket: OwnedFd, now: Instant) -> Self {
        Self { id, socket, input: Vec::new(), output: Vec::new(), moved: now, ending: false, waiting: None }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When its patience with us, or ours with it, ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = self.owes().then(|| self.moved + PATIENCE);
        patience.into_iter().chain(self.waiting.as_ref().map(|waiting| waiting.until)).min()
    }

    /// Whether it has kept others waiting for too long.
    pub(super) fn is_too_slow(&self, now: Instant) -> bool {
        self.owes() && now.duration_since(self.moved) >= PATIENCE
    }

    /// Whether the peer has something under way: half a line, or an answer it has not taken.
    fn owes(&self) -> bool {
        !self.input.is_empty() || !self.output.is_empty()
    }

    /// What to wait for on its socket. That the peer has hung up is told in any case.
    pub(super) fn interest(&self) -> PollFlags {
        if !self.output.is_empty() {
            PollFlags::OUT
        } else if self.waiting.is_some() {
            PollFlags::empty()
        } else {
            PollFlags::IN
        }
    }

    /// False when it is over.
    pub(super) fn ready(&mut self, now: Instant, carry_out: impl FnMut(u64, Op) -> Option<Reply>) -> bool {
        if self.waiting.is_some() {
            // Nothing is waited for then but the peer's end.
            return false;
        }
        self.moved = now;
        if !self.output.is_empty() && !self.flush() {
            return false;
        }
        if self.output.is_empty() && !self.ending && !self.fill() {
            return false;
        }
        self.go_on(now, carry_out)
    }

    /// False when it is over.
    pub(super) fn wake(&mut self, now: Instant, mut carry_out: impl FnMut(u64, Op) -> Option<Reply>) -> bool {
        let Some(waiting) = &self.waiting else { return true };
        let Request { id, op, .. } = waiting.request;
        let reply = match carry_out(id, op) {
            None if now < waiting.until => return true,
            None => carry_out(id, Op::Status),
            reply => reply,
        };
        self.waiting = None;
        self.moved = now;
        // Lines may have come with the one that had to wait.
        reply.is_none_or(|reply| self.say(&reply)) && self.go_on(now, carry_out)
    }

    /// Answers the lines that are there. False when it is over.
    fn go_on(&mut self, now: Instant, mut carry_out: impl FnMut(u64, Op) -> Option<Reply>) -> bool {
        while self.output.is_empty() && !self.ending && self.waiting.is_none() {
            let Some(line) = self.line() else { break };
            let request = line.map(|line| parse(&line));
            let reply = match request {
                Ok(Ok(request)) => match carry_out(request.id, request.op) {
                    Some(reply) => reply,
                    None => {
                        self.waiting = Some(Waiting { request, until: now + WAIT });
                        return true;
                    }
                },
                Ok(Err(reply)) => reply,
                Err(reply) => {
                    self.ending = true;
                    reply
                }
            };
            if !self.say(&reply) {
                return false;
            }
        }
        !(self.ending && self.output.is_empty())
    }

    /// False when it is over.
    fn say(&mut self, reply: &Reply) -> bool {
        self.output = text(reply);
        self.flush()
    }

    fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match plimsoll_shm::receive(&self.socket, &mut buffer) {
            Ok(received) if received.bytes == 0 => false,
            Ok(received) => {
                self.input.extend(buffer.iter().take(received.bytes));
                true
            }
            Err(ShmError::WouldBlock) => true,
            Err(_) => false,
        }
    }

    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match plimsoll_shm::send(&self.socket, &self.output, &[]) {
                Ok(sent) => drop(self.output.drain(..sent.min(self.output.len()))),
                Err(ShmError::WouldBlock) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes the next whole line, or says that there will never be one.
    fn line(&mut self) -> Option<Result<Vec<u8>, Reply>> {
        match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) if end < MAX_LINE => {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                Some(Ok(line))
            }
            None if self.input.len() < MAX_LINE => None,
            Some(_) | None => {
                let message = format!("a line has at most {MAX_LINE} bytes; this connection is closed");
                Some(Err(Reply::error(0, ErrorKind::BadRequest, message)))
            }
        }
    }
}
