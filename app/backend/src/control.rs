//! The control socket: one JSON object a line, see [`plimsoll_api::control`].
//!
//! Peers are root or this process's own user, hence no enemies; they may still be slow, verbose or broken.
//! There are at most 8, the longest idle one gives way to a new one; a line is at most 64 KiB; nothing is read from a peer
//! that does not take its answers. An answer may have to wait for something to happen, at most
//! [`AWAIT_AGENT_MS`]; nothing is read from that peer meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use plimsoll_api::control::{AWAIT_AGENT_MS, ErrorKind, MAX_LINE, Op, Reply, Request, VERSION};
use plimsoll_shm::ShmError;
use rustix::event::PollFlags;
use rustix::net::SocketFlags;
use serde_json::Value;

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 8;

/// How long a peer may take for the rest of a line, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may wait for something to happen.
const WAIT: Duration = Duration::from_millis(AWAIT_AGENT_MS);

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
    /// What it asked for has not happened yet.
    waiting: Option<Waiting>,
}

/// A request whose answer waits for something to happen.
struct Waiting {
    request: Request,
    until: Instant,
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
        self.connections.iter().map(|c| (c.id, c.socket.as_fd(), c.interest()))
    }

    /// The earliest moment at which a peer's patience ends, or an answer is due whatever has happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let owing = self.connections.iter().filter(|c| c.owes()).map(|c| c.moved + PATIENCE);
        let waiting = self.connections.iter().filter_map(|c| Some(c.waiting.as_ref()?.until));
        owing.chain(waiting).min()
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
            waiting: None,
        });
    }

    /// A connection is ready: reads, answers by `carry_out`, writes. `carry_out` may have no answer yet to an
    /// [`Op::AwaitAgent`], and is asked again by [`Control::wake`].
    pub(crate) fn ready(&mut self, id: u64, now: Instant, carry_out: impl FnMut(u64, Op) -> Option<Reply>) {
        let Some(index) = self.connections.iter().position(|connection| connection.id == id) else { return };
        let alive = self.connections.get_mut(index).is_some_and(|c| c.ready(now, carry_out));
        if !alive {
            self.connections.remove(index);
        }
    }

    /// Answers the peers that wait, as far as `carry_out` has an answer now. One that has waited long enough is told
    /// how things are.
    pub(crate) fn wake(&mut self, now: Instant, mut carry_out: impl FnMut(u64, Op) -> Option<Reply>) {
        self.connections.retain_mut(|connection| connection.wake(now, &mut carry_out));
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

    /// What to wait for on its socket. That the peer has hung up is told in any case.
    fn interest(&self) -> PollFlags {
        if !self.output.is_empty() {
            PollFlags::OUT
        } else if self.waiting.is_some() {
            PollFlags::empty()
        } else {
            PollFlags::IN
        }
    }

    /// False when it is over.
    fn ready(&mut self, now: Instant, carry_out: impl FnMut(u64, Op) -> Option<Reply>) -> bool {
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
    fn wake(&mut self, now: Instant, mut carry_out: impl FnMut(u64, Op) -> Option<Reply>) -> bool {
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

fn text(reply: &Reply) -> Vec<u8> {
    // A reply is made of numbers and strings; there is nothing in it that JSON cannot say.
    let mut text = serde_json::to_vec(reply).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The operations of this version.
const OPS: [&str; 4] = ["status", "set_balloon", "stats_interval", "await_agent"];

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
        let Err(reply) = parse(line) else { return None };
        let Outcome::Error(error) = reply.result else { panic!("{reply:?} is no refusal") };
        Some(error.kind)
    }

    #[test]
    fn refusals_say_what_was_wrong() {
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"status"}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"set_balloon","pages":5}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"await_agent","after":5}"#), None);
        assert_eq!(kind(br#"{"v":1,"id":7,"op":"await_agent"}"#), Some(ErrorKind::BadRequest));
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

    /// Lets in who knocks and serves every connection on which something waits.
    fn turn(control: &mut Control) {
        turn_at(control, Instant::now(), 0);
    }

    /// The same at a moment, when the agent has been urgent that often.
    fn turn_at(control: &mut Control, now: Instant, urgent: u64) {
        let status = Status { agent_urgent: urgent, ..Status::default() };
        let carry_out =
            |id, op| (op != Op::AwaitAgent { after: urgent }).then(|| Reply::ok(id, status.clone()));
        control.accept(now);
        let mut ready = Vec::new();
        for (id, socket, interest) in control.connections() {
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(socket, interest)];
            rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap();
            ready.extend((!fds[0].revents().is_empty()).then_some(id));
        }
        ready.into_iter().for_each(|id| control.ready(id, now, &carry_out));
        control.wake(now, carry_out);
    }

    #[test]
    fn an_answer_waits_for_the_agent_and_other_peers_do_not_wait_for_it() {
        let (mut control, path) = control();
        let [waiter, other] = [(); 2].map(|()| {
            let peer = UnixStream::connect(&path).unwrap();
            peer.set_nonblocking(true).unwrap();
            turn(&mut control);
            peer
        });
        std::fs::remove_file(path).unwrap();
        let answer = |mut peer: &UnixStream| -> Option<Reply> {
            let mut line = [0; 4096];
            let n = peer.read(&mut line).ok()?;
            Some(serde_json::from_slice(&line[..n]).unwrap())
        };
        let (now, wait) = (Instant::now(), b"{\"v\":1,\"id\":4,\"op\":\"await_agent\",\"after\":7}\n");
        let late = now + Duration::from_secs(60);
        (&waiter).write_all(wait).unwrap();
        turn_at(&mut control, now, 7);
        assert!(answer(&waiter).is_none());
        assert_eq!(control.deadline(), Some(now + WAIT));
        (&other).write_all(b"{\"v\":1,\"id\":5,\"op\":\"status\"}\n").unwrap();
        turn_at(&mut control, now, 7);
        assert_eq!(answer(&other).map(|reply| reply.id), Some(5));
        turn_at(&mut control, now, 8);
        let Some(Reply { id: 4, result: Outcome::Ok(status), .. }) = answer(&waiter) else { panic!() };
        assert_eq!((status.agent_urgent, control.deadline()), (8, None));

        // What was missed meanwhile is told at once; what does not come is not waited for for ever.
        (&waiter).write_all(wait).unwrap();
        turn_at(&mut control, now, 8);
        assert!(answer(&waiter).is_some());
        (&waiter).write_all(&[wait.as_slice(), b"{\"v\":1,\"id\":6,\"op\":\"status\"}\n"].concat()).unwrap();
        turn_at(&mut control, now, 7);
        assert!(answer(&waiter).is_none());
        turn_at(&mut control, late, 7);
        let mut both = String::new();
        let _ = (&waiter).read_to_string(&mut both);
        assert_eq!(both.lines().count(), 2, "and what was asked behind it is answered too: {both}");

        // One that hangs up is seen although nothing is read.
        (&waiter).write_all(wait).unwrap();
        turn_at(&mut control, late, 7);
        drop(waiter);
        turn_at(&mut control, late, 7);
        assert_eq!(control.connections().count(), 1);
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
