//! The control socket: one JSON object a line, see [`plimsoll_api::control`].
//!
//! Peers are root or this process's own user, hence no enemies; they may still be slow, verbose or broken.
//! There are at most 8, the longest idle one gives way to a new one; a line is at most 64 KiB; nothing is read from a peer
//! that does not take its answers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use plimsoll_api::control::{ErrorKind, MAX_LINE, Op, Reply, Request, VERSION};
use plimsoll_shm::ShmError;
use rustix::event::PollFlags;
use rustix::net::SocketFlags;
use serde_json::Value;

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 8;

/// How long a peer may take for the rest of a line, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The listener and its connections.
pub(crate) struct Control {
    listener: OwnedFd,
    connections: Vec<Connection>,
    next: u64,
}

/// One peer.
struct Connection {
    id: u64,
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When something last came or went.
    moved: Instant,
    /// It is to be closed once its answer is out.
    ending: bool,
}

impl Control {
    /// Over a listening, non-blocking socket.
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self { listener, connections: Vec::new(), next: 0 }
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The connections: number, socket, and what to wait for on it.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>, PollFlags)> {
        self.connections.iter().map(|connection| {
            let wait = if connection.output.is_empty() { PollFlags::IN } else { PollFlags::OUT };
            (connection.id, connection.socket.as_fd(), wait)
        })
    }

    /// The earliest moment at which a peer's patience ends.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.connections.iter().filter(|c| c.owes()).map(|c| c.moved + PATIENCE).min()
    }

    /// Takes one new connection, if there is one.
    pub(crate) fn accept(&mut self, now: Instant) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else { return };
        match plimsoll_shm::peer(&socket) {
            Ok(peer) if peer.is_trusted_user() => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a stranger on the control socket");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "refused a control connection");
                return;
            }
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let idle = self.connections.iter().enumerate().min_by_key(|(_, c)| c.moved);
            if let Some((index, _)) = idle {
                self.connections.remove(index);
            }
        }
        self.next = self.next.saturating_add(1);
        self.connections.push(Connection {
            id: self.next,
            socket,
            input: Vec::new(),
            output: Vec::new(),
            moved: now,
            ending: false,
        });
    }

    /// A connection is ready: reads, answers by `carry_out`, writes.
    pub(crate) fn ready(&mut self, id: u64, now: Instant, carry_out: impl FnMut(u64, Op) -> Reply) {
        let Some(index) = self.connections.iter().position(|connection| connection.id == id) else { return };
        let alive = self.connections.get_mut(index).is_some_and(|c| c.ready(now, carry_out));
        if !alive {
            self.connections.remove(index);
        }
    }

    /// Closes the connections whose peers have kept others waiting for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.connections.retain(|c| !c.owes() || now.duration_since(c.moved) < PATIENCE);
    }
}

impl Connection {
    /// Whether the peer has something under way: half a line, or an answer it has not taken.
    fn owes(&self) -> bool {
        !self.input.is_empty() || !self.output.is_empty()
    }

    /// False when it is over.
    fn ready(&mut self, now: Instant, mut carry_out: impl FnMut(u64, Op) -> Reply) -> bool {
        self.moved = now;
        if !self.output.is_empty() && !self.flush() {
            return false;
        }
        if self.output.is_empty() && !self.ending && !self.fill() {
            return false;
        }
        while self.output.is_empty() && !self.ending {
            let Some(line) = self.line() else { break };
            let reply = match line {
                Ok(line) => answer(&line, &mut carry_out),
                Err(reply) => {
                    self.ending = true;
                    reply
                }
            };
            self.output = text(&reply);
            if !self.flush() {
                return false;
            }
        }
        !(self.ending && self.output.is_empty())
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

fn text(reply: &Reply) -> Vec<u8> {
    // A reply is made of numbers and strings; there is nothing in it that JSON cannot say.
    let mut text = serde_json::to_vec(reply).unwrap_or_default();
    text.push(b'\n');
    text
}

fn answer(line: &[u8], carry_out: &mut impl FnMut(u64, Op) -> Reply) -> Reply {
    match parse(line) {
        Ok(request) => carry_out(request.id, request.op),
        Err(reply) => reply,
    }
}

/// The operations of this version.
const OPS: [&str; 3] = ["status", "set_balloon", "stats_interval"];

fn parse(line: &[u8]) -> Result<Request, Reply> {
    let bad = |id, message: String| Reply::error(id, ErrorKind::BadRequest, message);
    let value: Value =
        serde_json::from_slice(line).map_err(|error| bad(0, format!("the line is not JSON: {error}")))?;
    let id = value.get("id").and_then(Value::as_u64).unwrap_or(0);
    let version = value.get("v");
    if version.and_then(Value::as_u64) != Some(u64::from(VERSION)) {
        let message = format!("this back end speaks version {VERSION}: send \"v\":{VERSION}");
        return Err(Reply::error(id, ErrorKind::BadVersion, message));
    }
    match value.get("op").and_then(Value::as_str) {
        None => return Err(bad(id, "there is no \"op\"".to_owned())),
        Some(op) if !OPS.contains(&op) => {
            let message = format!("`{op}` is none of {}", OPS.join(", "));
            return Err(Reply::error(id, ErrorKind::UnknownOp, message));
        }
        Some(_) => {}
    }
    serde_json::from_value(value).map_err(|error| bad(id, format!("the request is incomplete: {error}")))
}

#[cfg(test)]
mod test {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use plimsoll_api::control::{Outcome, Status};
    use proptest::prelude::*;

    use super::*;

    fn kind(line: &[u8]) -> Option<ErrorKind> {
        match answer(line, &mut |id, _| Reply::ok(id, Status::default())).result {
            Outcome::Ok(_) => None,
            Outcome::Error(error) => Some(error.kind),
        }
    }

    #[test]
    fn refusals_say_what_was_wrong() {
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"status"}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_balloon","pages":5}"#), None);
        assert_eq!(kind(b"GET / HTTP/1.1"), Some(ErrorKind::BadRequest));
        assert_eq!(kind(b""), Some(ErrorKind::BadRequest));
        assert_eq!(kind(b"[1,2]"), Some(ErrorKind::BadVersion));
        assert_eq!(kind(br#"{"v":2,"id":7,"op":"status"}"#), Some(ErrorKind::BadVersion));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"explode"}"#), Some(ErrorKind::UnknownOp));
        assert_eq!(kind(br#"{"v":1,"id":7}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_balloon"}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_balloon","pages":-1}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind(br#"{"v":1,"id":-7,"op":"status"}"#), Some(ErrorKind::BadRequest));
        assert_eq!(kind("[".repeat(50_000).as_bytes()), Some(ErrorKind::BadRequest));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            kind(&line);
        }
    }

    fn control() -> (Control, std::path::PathBuf) {
        let name = format!("plimsoll-test-control-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        (Control::new(listener.into()), path)
    }

    fn turn(control: &mut Control) {
        let now = Instant::now();
        control.accept(now);
        let ids: Vec<_> = control.connections().map(|(id, ..)| id).collect();
        ids.into_iter().for_each(|id| control.ready(id, now, |id, _| Reply::ok(id, Status::default())));
    }

    #[test]
    fn lines_in_pieces_and_several_at_once_are_answered_in_order() {
        let (mut control, path) = control();
        let mut peer = UnixStream::connect(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        peer.write_all(b"{\"v\":1,\"id\":1,").unwrap();
        turn(&mut control);
        peer.write_all(b"\"op\":\"status\"}\n{\"v\":1,\"id\":2,\"op\":\"status\"}\n").unwrap();
        turn(&mut control);
        let mut lines = BufReader::new(peer).lines();
        for id in [1, 2] {
            let reply: Reply = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert_eq!(reply.id, id);
        }
    }

    #[test]
    fn floods_are_bounded() {
        let (mut control, path) = control();
        let mut verbose = UnixStream::connect(&path).unwrap();
        turn(&mut control);
        for _ in 0..20 {
            verbose.write_all(&[b'x'; 4096]).unwrap();
            turn(&mut control);
            if control.connections().count() == 0 {
                break;
            }
        }
        assert_eq!(control.connections().count(), 0, "a line without end is refused");
        let mut answer = String::new();
        verbose.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("bad_request"), "{answer}");

        let peers: Vec<_> = (0..20)
            .map(|_| {
                let peer = UnixStream::connect(&path).unwrap();
                turn(&mut control);
                peer
            })
            .collect();
        assert_eq!(control.connections().count(), MAX_CONNECTIONS);
        let mut newest = peers.last().unwrap();
        newest.write_all(b"{\"v\":1,\"id\":3,\"op\":\"status\"}\n").unwrap();
        turn(&mut control);
        let mut first = [0; 1];
        newest.read_exact(&mut first).unwrap();

        newest.write_all(b"{").unwrap();
        turn(&mut control);
        assert!(control.deadline().is_some());
        control.expire(Instant::now() + PATIENCE);
        assert_eq!(control.connections().count(), MAX_CONNECTIONS - 1, "half a line does not wait for ever");
        std::fs::remove_file(path).unwrap();
    }
}
