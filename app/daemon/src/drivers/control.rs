//! The client's side of a back end's control socket (see [`plimsoll_api::control`]).
//!
//! The back end is no more trusted than its guest: lines are bounded, unasked lines are counted and end the
//! connection when there are many, and everything has a deadline.

use std::{io, path::PathBuf, time::Duration};

use plimsoll_api::control::{
    AWAIT_AGENT_MS, AWAIT_PAGER_MS, ControlError, MAX_LINE, Op, Outcome, Reply, Request, Status, VERSION,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, timeout_at},
};

use super::PeerId;
use super::peer::{self, CONNECT_TIMEOUT, ConnectError};

/// How long a request may take, beyond what it is to wait for.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Lines to other questions than ours that are passed over before the connection is given up. Late answers
/// come to questions that timed out, and after a time-out we hang up, so even one is strange.
const MAX_STRAY_LINES: u32 = 16;

/// What went wrong in speaking to a back end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No socket, nobody listening, no permission.
    #[error("cannot connect to {}: {}", path.display(), connect_hint(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The listener belongs to somebody else; nothing was sent and nothing read.
    #[error("whoever listens at {} is user {found}, the VM belongs to user {owner}", path.display())]
    NotOwner {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        found: u32,
        /// Who should.
        owner: u32,
    },
    /// No answer in time.
    #[error("{} did not answer within {} ms", path.display(), after.as_millis())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The deadline.
        after: Duration,
    },
    /// The other side hung up.
    #[error("{} hung up", path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// The socket failed.
    #[error("{} failed: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A line that is no reply of this protocol.
    #[error("{} does not speak the control protocol: {seen}", path.display())]
    Garbage {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        seen: String,
    },
}

fn connect_hint(source: &io::Error) -> String {
    let kind = source.kind();
    if kind == io::ErrorKind::NotFound {
        "no such socket; is the VM's keeper running?".into()
    } else if kind == io::ErrorKind::ConnectionRefused {
        "nobody listens; the VM's keeper is gone".into()
    } else {
        source.to_string()
    }
}

/// A connection, and the bytes read beyond the last line.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    path: PathBuf,
    peer: PeerId,
    input: Vec<u8>,
    last_id: u64,
}

impl Connection {
    /// Connects; hangs up without a byte sent or read unless `owner` listens there or is root.
    pub(crate) async fn open(path: PathBuf, owner: u32) -> Result<Self, Failure> {
        match peer::connect(&path, owner).await {
            Ok((stream, peer)) => Ok(Self { stream, path, peer, input: Vec::new(), last_id: 0 }),
            Err(ConnectError::Refused(source)) => Err(Failure::Connect { path, source }),
            Err(ConnectError::Timeout) => Err(Failure::Timeout { path, after: CONNECT_TIMEOUT }),
            Err(ConnectError::Nameless(source)) => Err(Failure::Io { path, source }),
            Err(ConnectError::NotOwner { found, owner }) => Err(Failure::NotOwner { path, found, owner }),
        }
    }

    /// Who listens.
    pub(crate) const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Asks and waits for the answer. After a failure the connection is of no more use.
    pub(crate) async fn exchange(&mut self, op: Op) -> Result<Result<Status, ControlError>, Failure> {
        let waits_ms = match op {
            Op::AwaitAgent { .. } => AWAIT_AGENT_MS,
            Op::AwaitPager { .. } => AWAIT_PAGER_MS,
            Op::Status
            | Op::SetBalloon { .. }
            | Op::StatsInterval { .. }
            | Op::SetTarget { .. }
            | Op::Sweep
            | Op::Reset => 0,
        };
        let after = REQUEST_TIMEOUT + Duration::from_millis(waits_ms);
        match timeout_at(Instant::now() + after, self.converse(op)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Timeout { path: self.path.clone(), after }),
        }
    }

    async fn converse(&mut self, op: Op) -> Result<Result<Status, ControlError>, Failure> {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let request = Request { v: VERSION, id: self.last_id, op };
        let mut line = serde_json::to_vec(&request).map_err(|e| self.garbage(e.to_string()))?;
        line.push(b'\n');
        self.stream.write_all(&line).await.map_err(|source| self.io(source))?;
        for _ in 0..MAX_STRAY_LINES {
            let line = self.line().await?;
            let reply: Reply = serde_json::from_slice(&line).map_err(|e| self.garbage(e.to_string()))?;
            if reply.v != VERSION {
                return Err(self.garbage(format!("it speaks version {}, this daemon {VERSION}", reply.v)));
            }
            if reply.id == request.id {
                return Ok(match reply.result {
                    Outcome::Ok(status) => Ok(*status),
                    Outcome::Error(error) => Err(error),
                });
            }
        }
        Err(self.garbage(format!("{MAX_STRAY_LINES} lines that answer nothing")))
    }

    /// The next line without its end.
    async fn line(&mut self) -> Result<Vec<u8>, Failure> {
        let mut searched = 0;
        loop {
            let unsearched = self.input.get(searched..).unwrap_or_default();
            if let Some(end) = unsearched.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.input.drain(..=searched.saturating_add(end)).collect();
                line.pop();
                return Ok(line);
            }
            searched = self.input.len();
            if searched >= MAX_LINE {
                return Err(self.garbage(format!("a line of more than {MAX_LINE} bytes")));
            }
            let room = MAX_LINE.saturating_sub(searched);
            let mut chunk = [0; 4096];
            let part = chunk.get_mut(..room.min(4096)).unwrap_or_default();
            match self.stream.read(part).await {
                Ok(0) => return Err(Failure::Closed { path: self.path.clone() }),
                Ok(n) => self.input.extend_from_slice(part.get(..n).unwrap_or_default()),
                Err(source) => return Err(self.io(source)),
            }
        }
    }

    fn io(&self, source: io::Error) -> Failure {
        Failure::Io { path: self.path.clone(), source }
    }

    fn garbage(&self, seen: String) -> Failure {
        Failure::Garbage { path: self.path.clone(), seen: seen.chars().take(200).collect() }
    }
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;
    use tokio::{io::AsyncBufReadExt, net::UnixListener};

    use super::*;

    /// Answers the first question with what `answer` makes of its id.
    async fn ask_somebody(
        answer: impl FnOnce(u64) -> Vec<u8> + Send + 'static,
    ) -> Result<Result<Status, ControlError>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio::io::BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let request: Request = serde_json::from_str(&line).unwrap();
            // The client may have hung up on us by then.
            let _ = stream.write_all(&answer(request.id)).await;
            let _ = stream.read_line(&mut line).await;
        });
        let owner = rustix::process::geteuid().as_raw();
        let mut connection = Connection::open(path, owner).await.unwrap();
        let outcome = connection.exchange(Op::Status).await.map_err(|e| e.to_string());
        drop(connection);
        server.await.unwrap();
        outcome
    }

    fn reply(id: u64) -> Vec<u8> {
        let status = Status { maxmem: Bytes::mib(64), ..Status::default() };
        let mut line = serde_json::to_vec(&Reply::ok(id, status)).unwrap();
        line.push(b'\n');
        line
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn answers_to_other_questions_are_passed_over() {
        run(async {
            let status = ask_somebody(|id| [reply(id + 7), reply(id)].concat()).await.unwrap().unwrap();
            assert_eq!(status.maxmem, Bytes::mib(64));
        });
    }

    #[test]
    fn whoever_speaks_something_else_is_told_apart() {
        run(async {
            let seen = ask_somebody(|_| b"220 mail ready\n".to_vec()).await.unwrap_err();
            assert!(seen.contains("does not speak the control protocol"), "{seen}");
            let seen = ask_somebody(|_| vec![b'x'; 2 * MAX_LINE]).await.unwrap_err();
            assert!(seen.contains("more than 65536 bytes"), "{seen}");
            let seen = ask_somebody(|id| reply(id + 1).repeat(64)).await.unwrap_err();
            assert!(seen.contains("16 lines that answer nothing"), "{seen}");
            let seen = ask_somebody(|id| {
                format!("{{\"v\":2,\"id\":{id},\"error\":{{\"kind\":\"unknown_op\",\"message\":\"\"}}}}\n")
                    .into_bytes()
            })
            .await
            .unwrap_err();
            assert!(seen.contains("version 2"), "{seen}");
            let seen = ask_somebody(|_| Vec::new()).await.unwrap_err();
            assert!(seen.contains("did not answer within 1000 ms"), "{seen}");
        });
    }

    #[test]
    fn a_stranger_is_hung_up_on_before_a_word() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("c");
            let listener = UnixListener::bind(&path).unwrap();
            let other = rustix::process::geteuid().as_raw() + 4242;
            let refused = Connection::open(path, other).await.unwrap_err();
            assert!(matches!(refused, Failure::NotOwner { owner, .. } if owner == other));
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            stream.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, b"");
        });
    }

    #[test]
    fn missing_sockets_and_listeners_are_told_apart() {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("c");
            let seen = Connection::open(path.clone(), 0).await.unwrap_err().to_string();
            assert!(seen.contains("no such socket"), "{seen}");
            drop(UnixListener::bind(&path).unwrap());
            let seen = Connection::open(path, 0).await.unwrap_err().to_string();
            assert!(seen.contains("nobody listens"), "{seen}");
        });
    }
}
