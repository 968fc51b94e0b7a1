//! Finds the messages in a stream of bytes.

use std::os::fd::{AsFd, OwnedFd};

use plimsoll_shm::{MAX_FDS, ShmError};

use super::message::parse_header;
use super::{HEADER, Message, WireError};

/// Puts messages together from what a socket delivers, in pieces of any length.
///
/// It never reads past the end of a message, so descriptors always come with the message they were sent
/// with, and holds at most one message.
#[derive(Debug)]
pub struct Framer {
    replies: bool,
    header: Vec<u8>,
    /// Code, flags and payload length, once the header is whole.
    parsed: Option<(u32, u32, usize)>,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What one look at the socket brought.
#[derive(Debug)]
pub enum Progress {
    /// A message is whole.
    Message(Message),
    /// Nothing more to read for now.
    NotYet,
    /// The peer has closed, between two messages.
    Closed,
}

impl Framer {
    /// For a stream of requests, which a front end sends.
    #[must_use]
    pub fn of_requests() -> Self {
        Self::new(false)
    }

    /// For a stream of replies, which a device sends.
    #[must_use]
    pub fn of_replies() -> Self {
        Self::new(true)
    }

    fn new(replies: bool) -> Self {
        Self { replies, header: Vec::new(), parsed: None, payload: Vec::new(), fds: Vec::new() }
    }

    /// Reads until a message is whole or there is nothing to read.
    ///
    /// # Errors
    /// When what came cannot be a message; the stream is then useless.
    pub fn read(&mut self, socket: impl AsFd) -> Result<Progress, WireError> {
        let mut buffer = [0; super::MAX_PAYLOAD];
        loop {
            let wanted = self.wanted().min(buffer.len());
            let (room, _) = buffer.split_at_mut(wanted);
            let received = match plimsoll_shm::receive(&socket, room) {
                Ok(received) => received,
                Err(ShmError::WouldBlock) => return Ok(Progress::NotYet),
                Err(error) => return Err(error.into()),
            };
            if received.bytes == 0 {
                return if self.is_mid_message() { Err(WireError::Truncated) } else { Ok(Progress::Closed) };
            }
            let (bytes, _) = room.split_at(received.bytes.min(wanted));
            if let Some(message) = self.push(bytes, received.fds)? {
                return Ok(Progress::Message(message));
            }
        }
    }

    /// Whether a part of a message has come, and the rest is due.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        !self.header.is_empty()
    }

    /// How many bytes may be read without reading into the next message; at least 1.
    fn wanted(&self) -> usize {
        match self.parsed {
            None => HEADER - self.header.len(),
            Some((_, _, length)) => length - self.payload.len(),
        }
    }

    /// Takes at most [`Framer::wanted`] bytes and what came with them.
    fn push(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Option<Message>, WireError> {
        self.fds.extend(fds);
        if self.fds.len() > MAX_FDS {
            return Err(ShmError::TooManyFds { limit: MAX_FDS }.into());
        }
        if self.parsed.is_some() {
            self.payload.extend_from_slice(bytes);
        } else {
            self.header.extend_from_slice(bytes);
            if let Ok(header) = <[u8; HEADER]>::try_from(self.header.as_slice()) {
                self.parsed = Some(parse_header(header, self.replies)?);
            }
        }
        let Some((code, flags, length)) = self.parsed else { return Ok(None) };
        if self.payload.len() < length {
            return Ok(None);
        }
        self.header.clear();
        self.parsed = None;
        let (payload, fds) = (std::mem::take(&mut self.payload), std::mem::take(&mut self.fds));
        Ok(Some(Message { code, flags, payload, fds }))
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::super::flag;
    use super::*;

    /// Feeds `bytes` in pieces of at most `step` bytes and never more than is wanted.
    fn feed(framer: &mut Framer, mut bytes: &[u8], step: usize) -> Result<Vec<Message>, WireError> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let take = framer.wanted().min(step).min(bytes.len());
            assert!(take > 0, "a framer that wants nothing would be read for ever");
            let (piece, rest) = bytes.split_at(take);
            messages.extend(framer.push(piece, Vec::new())?);
            bytes = rest;
        }
        Ok(messages)
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_or_grow(bytes in prop::collection::vec(any::<u8>(), 0..20_000), step in 1usize..5000) {
            let mut framer = Framer::of_requests();
            let _ = feed(&mut framer, &bytes, step);
            prop_assert!(framer.payload.len() <= super::super::MAX_PAYLOAD && framer.header.len() <= HEADER);
        }

        #[test]
        fn messages_survive_any_split(
            list in prop::collection::vec((any::<u32>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 1..20),
            step in 1usize..400,
        ) {
            let mut stream = Vec::new();
            for (code, needs_reply, payload) in &list {
                let flags = flag::VERSION | if *needs_reply { flag::NEED_REPLY } else { 0 };
                stream.extend(Message { code: *code, flags, payload: payload.clone(), fds: Vec::new() }.bytes());
            }
            let messages = feed(&mut Framer::of_requests(), &stream, step).unwrap();
            prop_assert_eq!(messages.len(), list.len());
            for (message, (code, needs_reply, payload)) in messages.iter().zip(&list) {
                prop_assert_eq!(message.code, *code);
                prop_assert_eq!(message.needs_reply(), *needs_reply);
                prop_assert_eq!(&message.payload, payload);
            }
        }
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (left, mut right) = UnixStream::pair().unwrap();
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let mut framer = Framer::of_requests();
        assert!(matches!(framer.read(&left).unwrap(), Progress::NotYet));
        let message = |fds| Message { code: 5, flags: flag::VERSION, payload: vec![1, 2, 3], fds };
        right.write_all(&message(Vec::new()).bytes()).unwrap();
        message(vec![pipe]).send(&right).unwrap();
        let counts: Vec<_> = (0..2)
            .map(|_| {
                let Progress::Message(message) = framer.read(&left).unwrap() else { panic!("no message") };
                message.fds.len()
            })
            .collect();
        assert_eq!(counts, [0, 1]);
        right.write_all(&[5, 0]).unwrap();
        assert!(matches!(framer.read(&left).unwrap(), Progress::NotYet));
        assert!(framer.is_mid_message());
        drop(right);
        assert!(matches!(framer.read(&left), Err(WireError::Truncated)));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let push = |code, flags, length| {
            Framer::of_requests().push(&super::super::message::header(code, flags, length), Vec::new())
        };
        assert!(matches!(push(5, 1, 4096), Ok(None)));
        assert!(matches!(push(5, 1, 4097), Err(WireError::TooLong { length: 4097, .. })));
        assert!(matches!(push(5, 1, u32::MAX), Err(WireError::TooLong { .. })));
        assert!(matches!(push(5, 2, 0), Err(WireError::Flags { .. })));
        assert!(matches!(push(5, 0x11, 0), Err(WireError::Flags { .. })));
        assert!(matches!(push(5, 5, 0), Err(WireError::Direction { reply: true, .. })));
    }
}
