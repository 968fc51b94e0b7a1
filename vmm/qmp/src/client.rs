//! The conversation: one command at a time, events on the way.
//!
//! Nothing here is lost when a call is cancelled (dropped in a `select!`): unread bytes, unsent bytes and
//! unanswered commands are kept in the client, and every await is a wait for readiness after which nothing
//! but straight code runs. A command whose first byte has gone out will be carried out by QEMU, cancelled or
//! not; its reply is dropped by its id.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, timeout},
};

use crate::{
    Event, QemuVersion, QmpError,
    error::excerpt,
    event::EventQueue,
    line::LineBuffer,
    wire::{self, Answer, Message},
};

/// How long a command may take unless [`QmpClient::set_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands sent and not answered. A QEMU that hangs is not sent more: they would all be carried out, late,
/// when it wakes up.
pub const MAX_OUTSTANDING: usize = 8;

/// A connection to a QEMU in command mode.
///
/// One owner drives it: commands one after the other, [`QmpClient::next_event`] between them. While nobody
/// calls, nothing is read, and QEMU keeps what it has to say.
#[derive(Debug)]
pub struct QmpClient {
    stream: UnixStream,
    path: PathBuf,
    version: QemuVersion,
    timeout: Duration,
    input: LineBuffer,
    /// The unsent rest of at most one command line.
    output: Vec<u8>,
    /// How much of `output` has gone out.
    sent: usize,
    last_id: u64,
    /// Ids of commands begun and not answered, oldest first; at most [`MAX_OUTSTANDING`].
    outstanding: VecDeque<u64>,
    events: EventQueue,
    late_replies: u64,
    broken: bool,
}

impl QmpClient {
    /// Reads the greeting and negotiates no capabilities at all (QMP specification, section 4).
    pub(crate) async fn greet(stream: UnixStream, path: PathBuf, within: Duration) -> Result<Self, QmpError> {
        let begun = Instant::now();
        let mut client = Self {
            stream,
            path,
            version: QemuVersion::default(),
            timeout: within,
            input: LineBuffer::default(),
            output: Vec::new(),
            sent: 0,
            last_id: 0,
            outstanding: VecDeque::new(),
            events: EventQueue::default(),
            late_replies: 0,
            broken: false,
        };
        client.version = match timeout(within, client.greeting()).await {
            Ok(version) => version?,
            Err(_elapsed) => return Err(client.no_greeting(within)),
        };
        client.timeout = within.saturating_sub(begun.elapsed());
        let _: wire::Empty = client.execute("qmp_capabilities", wire::NO_ARGUMENTS).await?;
        client.timeout = DEFAULT_TIMEOUT;
        Ok(client)
    }

    /// The version of the greeting.
    #[must_use]
    pub const fn version(&self) -> &QemuVersion {
        &self.version
    }

    /// What the socket is called.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long each command may take from now on.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Events dropped because more than [`crate::MAX_EVENTS`] waited.
    #[must_use]
    pub const fn events_dropped(&self) -> u64 {
        self.events.dropped()
    }

    /// Replies dropped because nobody waited for them any more, or nobody ever asked.
    #[must_use]
    pub const fn late_replies(&self) -> u64 {
        self.late_replies
    }

    /// The oldest event that has been read while a command waited for its reply.
    pub fn pop_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Waits for the next event, without limit; an error means that the connection is lost.
    /// May be cancelled at any time.
    pub async fn next_event(&mut self) -> Result<Event, QmpError> {
        const DURING: &str = "waiting for events";
        loop {
            if let Some(event) = self.events.pop() {
                return Ok(event);
            }
            match self.next_message(DURING)? {
                Some(message) => {
                    self.unasked(message, DURING)?;
                }
                None => self.pump(DURING).await?,
            }
        }
    }

    /// Sends any command and reads its result as a `T`. The typed calls cover what Plimsoll needs; this is for
    /// tests and for whatever is missing.
    pub async fn execute<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: impl Serialize,
    ) -> Result<T, QmpError> {
        let result = self.exchange(command, arguments).await?;
        serde_json::from_str(result.get()).map_err(|err| self.bad_reply(command, &result, &err))
    }

    /// Sends a command and returns its result as it was written.
    pub(crate) async fn exchange(
        &mut self,
        command: &'static str,
        arguments: impl Serialize,
    ) -> Result<Box<RawValue>, QmpError> {
        self.forget_unsent();
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let line = wire::command_line(command, arguments, id).map_err(|err| QmpError::BadReply {
            path: self.path.clone(),
            command,
            seen: format!("its arguments cannot be written: {err}"),
        })?;
        match timeout(self.timeout, self.converse(command, id, line)).await {
            Ok(Ok(Answer::Return(result))) => Ok(result),
            Ok(Ok(Answer::Refused { class, desc })) => {
                Err(QmpError::Refused { path: self.path.clone(), command, class, desc })
            }
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => {
                self.forget_unsent();
                Err(QmpError::Timeout { path: self.path.clone(), command, after: self.timeout })
            }
        }
    }

    /// A result that is not what the command returns.
    pub(crate) fn bad_reply(
        &self,
        command: &'static str,
        result: &RawValue,
        err: &serde_json::Error,
    ) -> QmpError {
        let seen = format!("{} ({err})", excerpt(result.get().as_bytes()));
        QmpError::BadReply { path: self.path.clone(), command, seen }
    }

    async fn greeting(&mut self) -> Result<QemuVersion, QmpError> {
        const DURING: &str = "waiting for its greeting";
        loop {
            match self.next_message(DURING)? {
                Some(Message::Greeting(version)) => return Ok(version),
                Some(other) => self.unasked(other, DURING)?,
                None => {
                    // Told from its first byte, so that a service that ends no line is recognised too.
                    if self.input.rest().first().is_some_and(|first| *first != b'{') {
                        return Err(self.not_qmp(DURING));
                    }
                    self.pump(DURING).await?;
                }
            }
        }
    }

    /// Says `line` as soon as it may be said and waits for the answer to `id`.
    async fn converse(&mut self, during: &'static str, id: u64, line: Vec<u8>) -> Result<Answer, QmpError> {
        let mut unsaid = Some(line);
        loop {
            while let Some(message) = self.next_message(during)? {
                match message {
                    Message::Reply { id: of, answer } if of == id && unsaid.is_none() => {
                        self.outstanding.retain(|o| *o != id);
                        return Ok(answer);
                    }
                    Message::Greeting(_) | Message::Reply { .. } | Message::Event(_) => {
                        self.unasked(message, during)?;
                    }
                }
            }
            if self.output.is_empty()
                && self.outstanding.len() < MAX_OUTSTANDING
                && let Some(line) = unsaid.take()
            {
                (self.output, self.sent) = (line, 0);
                self.outstanding.push_back(id);
            }
            self.pump(during).await?;
        }
    }

    /// Deals with a message nobody waits for.
    fn unasked(&mut self, message: Message, during: &'static str) -> Result<(), QmpError> {
        match message {
            Message::Event(event) => self.events.push(event),
            Message::Reply { id, .. } => {
                self.outstanding.retain(|o| *o != id);
                self.late_replies = self.late_replies.saturating_add(1);
            }
            Message::Greeting(_) => {
                self.broken = true;
                let seen = "a second greeting".to_owned();
                return Err(QmpError::NotQmp { path: self.path.clone(), during, seen });
            }
        }
        Ok(())
    }

    /// The next message among the bytes already read.
    fn next_message(&mut self, during: &'static str) -> Result<Option<Message>, QmpError> {
        if self.broken {
            return Err(QmpError::Closed { path: self.path.clone(), during, seen: String::new() });
        }
        let error = match self.input.next_line() {
            Ok(None) => return Ok(None),
            Ok(Some(line)) => match wire::parse(line) {
                Some(message) => return Ok(Some(message)),
                None => QmpError::NotQmp { path: self.path.clone(), during, seen: excerpt(line) },
            },
            Err(_too_long) => QmpError::LineTooLong { path: self.path.clone(), during },
        };
        self.broken = true;
        Err(error)
    }

    /// Waits until bytes can be moved, and moves some, both ways: a QEMU that waits for us to read would never
    /// read what we write.
    async fn pump(&mut self, during: &'static str) -> Result<(), QmpError> {
        let interest = match self.output.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        match self.stream.ready(interest).await.and_then(|ready| self.move_some(ready.is_writable())) {
            Ok(()) => Ok(()),
            Err(source) => {
                self.broken = true;
                Err(self.lost(during, source))
            }
        }
    }

    /// Writes if it can be done, then reads; what the peer said before it hung up is read first.
    fn move_some(&mut self, writable: bool) -> io::Result<()> {
        let written = if writable { self.write_some() } else { Ok(()) };
        match self.read_some() {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => written,
            Err(err) => Err(err),
        }
    }

    fn lost(&self, during: &'static str, source: io::Error) -> QmpError {
        let path = self.path.clone();
        let gone = matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        );
        if gone {
            return QmpError::Closed { path, during, seen: excerpt(self.input.rest()) };
        }
        QmpError::Io { path, during, source }
    }

    fn read_some(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 8192];
        let n = self.stream.try_read(&mut chunk)?;
        self.input.extend(chunk.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn write_some(&mut self) -> io::Result<()> {
        let unsent = self.output.get(self.sent..).unwrap_or_default();
        if unsent.is_empty() {
            return Ok(());
        }
        match self.stream.try_write(unsent) {
            Ok(n) => self.sent = self.sent.saturating_add(n),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
        if self.sent >= self.output.len() {
            (self.output, self.sent) = (Vec::new(), 0);
        }
        Ok(())
    }

    /// Drops a command of which not one byte has gone out; one that was begun must be ended.
    fn forget_unsent(&mut self) {
        if !self.output.is_empty() && self.sent == 0 {
            self.output.clear();
            self.outstanding.pop_back();
        }
    }

    fn no_greeting(&self, after: Duration) -> QmpError {
        match self.input.rest() {
            [] => QmpError::NoGreeting { path: self.path.clone(), after },
            _ => self.not_qmp("waiting for the end of its greeting"),
        }
    }

    fn not_qmp(&self, during: &'static str) -> QmpError {
        QmpError::NotQmp { path: self.path.clone(), during, seen: excerpt(self.input.rest()) }
    }
}
