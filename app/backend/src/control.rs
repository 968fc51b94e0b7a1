//! The control socket: one JSON object a line, see [`plimsoll_api::control`].
//!
//! Peers are root or this process's own user, hence no enemies; they may still be slow, verbose or broken.
//! There are at most 8, the longest idle one gives way to a new one; a line is at most 64 KiB; nothing is read from a peer
//! that does not take its answers. An answer may have to wait for something to happen, at most
//! [`AWAIT_AGENT_MS`](plimsoll_api::control::AWAIT_AGENT_MS); nothing is read from that peer meanwhile.

mod connection;
mod request;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use plimsoll_api::control::{Op, Reply};
use plimsoll_vhost_user::Polls;
use rustix::event::PollFlags;
use rustix::net::SocketFlags;

use self::connection::Connection;

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 8;

/// The listener and its connections.
pub(crate) struct Control {
    listener: OwnedFd,
    connections: Vec<Connection>,
    next: u64,
}

/// What became ready.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Somebody wants to connect.
    Connect,
    /// The connection of this number.
    Peer(u64),
}

impl Control {
    /// Over a listening, non-blocking socket.
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self { listener, connections: Vec::new(), next: 0 }
    }

    /// What to wait for, told as the server's own kind of event.
    pub(crate) fn watch<'a, E>(&'a self, polls: &mut Polls<'a, E>, event: impl Fn(Event) -> E) {
        polls.add(self.listener.as_fd(), PollFlags::IN, event(Event::Connect));
        for connection in &self.connections {
            polls.add(connection.socket(), connection.interest(), event(Event::Peer(connection.id)));
        }
    }

    /// The earliest moment at which a peer's patience ends, or an answer is due whatever has happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.connections.iter().filter_map(Connection::deadline).min()
    }

    /// Something became ready: lets in who knocks; or reads, answers by `carry_out`, writes. `carry_out` may have no answer yet to
    /// an [`Op::AwaitAgent`] or [`Op::AwaitPager`], and is asked again by [`Control::wake`].
    pub(crate) fn happened(
        &mut self,
        event: Event,
        now: Instant,
        carry_out: impl FnMut(u64, Op) -> Option<Reply>,
    ) {
        match event {
            Event::Connect => self.accept(now),
            Event::Peer(id) => self.ready(id, now, carry_out),
        }
    }

    /// Takes one new connection, if there is one.
    fn accept(&mut self, now: Instant) {
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
        self.connections.push(Connection::new(self.next, socket, now));
    }

    fn ready(&mut self, id: u64, now: Instant, carry_out: impl FnMut(u64, Op) -> Option<Reply>) {
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
        self.connections.retain(|c| !c.is_too_slow(now));
    }
}

#[cfg(test)]
mod test {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use plimsoll_api::control::{Outcome, Status};

    use super::connection::{PATIENCE, WAIT};
    use super::*;

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
        let mut polls = Polls::default();
        control.watch(&mut polls, |event| event);
        let ready = polls.wait(Some(Instant::now())).unwrap();
        ready.into_iter().for_each(|event| control.happened(event, now, &carry_out));
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
        assert_eq!(control.connections.len(), 1);
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
            if control.connections.is_empty() {
                break;
            }
        }
        assert!(control.connections.is_empty(), "a line without end is refused");
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
        assert_eq!(control.connections.len(), MAX_CONNECTIONS);
        let mut newest = peers.last().unwrap();
        newest.write_all(b"{\"v\":1,\"id\":3,\"op\":\"status\"}\n").unwrap();
        turn(&mut control);
        let mut first = [0; 1];
        newest.read_exact(&mut first).unwrap();

        newest.write_all(b"{").unwrap();
        turn(&mut control);
        assert!(control.deadline().is_some());
        control.expire(Instant::now() + PATIENCE);
        assert_eq!(control.connections.len(), MAX_CONNECTIONS - 1, "half a line does not wait for ever");
        std::fs::remove_file(path).unwrap();
    }
}
