//! The socket to a living back end, and what is said on it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use plimsoll_shm::ShmError;
use plimsoll_vhost_user::wire::{Framer, Message, Progress, Request, WireError, protocol};

/// How long a back end may take for an answer before it is taken for hung and killed.
const ANSWER_DUE: Duration = Duration::from_secs(20);

/// Why a back end is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Useless {
    /// It closed its socket.
    #[error("it closed its socket")]
    Left,
    /// It sent what is no answer.
    #[error("it sent what is no answer: {0}")]
    Misbehaved(WireError),
    /// It does not take requests.
    #[error("it takes no requests: {0}")]
    Unreachable(ShmError),
}

/// Something to be said to a back end.
#[derive(Debug)]
pub(crate) enum Step {
    /// To bring it to the state the front end knows.
    Ours(Request),
    /// What the front end asked.
    Theirs,
}

/// The socket to a back end. One thing is said at a time, and each is answered: the back end is told first that
/// acknowledgements are wanted.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    framer: Framer,
    to_say: VecDeque<Step>,
    awaiting: Option<(Step, Instant)>,
    /// This back end took over from another, and has not yet been told everything.
    restoring: bool,
}

impl Link {
    /// To a back end that has just started: it is told `state`, then what the front end asked, if it did.
    pub(crate) fn new(socket: OwnedFd, state: impl Iterator<Item = Request>, theirs: bool) -> Self {
        let ours = Request::SetProtocolFeatures(protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG);
        let mut to_say: VecDeque<_> = [ours].into_iter().chain(state).map(Step::Ours).collect();
        let restoring = to_say.len() > 1;
        to_say.extend(theirs.then_some(Step::Theirs));
        Self { socket, framer: Framer::of_replies(), to_say, awaiting: None, restoring }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When the answer is due that is awaited.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.awaiting.as_ref().map(|(_, due)| *due)
    }

    /// Whether the answer to a front end's request is awaited.
    pub(crate) fn awaits_theirs(&self) -> bool {
        matches!(self.awaiting, Some((Step::Theirs, _)))
    }

    /// The front end has asked something.
    pub(crate) fn push_theirs(&mut self) {
        self.to_say.push_back(Step::Theirs);
    }

    /// Says the next thing, unless an answer is awaited. `theirs` is what the front end asks.
    pub(crate) fn say(&mut self, theirs: Option<&Request>, now: Instant) -> Result<(), Useless> {
        if self.awaiting.is_some() {
            return Ok(());
        }
        let Some(step) = self.to_say.pop_front() else { return Ok(()) };
        let request = match &step {
            Step::Ours(request) => Some(request),
            Step::Theirs => theirs,
        };
        let Some(request) = request else { return Ok(()) };
        request.send(&self.socket).map_err(Useless::Unreachable)?;
        self.awaiting = Some((step, now + ANSWER_DUE));
        Ok(())
    }

    /// The next answer, and to what.
    pub(crate) fn read(&mut self) -> Result<Option<(Step, Message)>, Useless> {
        let message = match self.framer.read(&self.socket).map_err(Useless::Misbehaved)? {
            Progress::Message(message) => message,
            Progress::NotYet => return Ok(None),
            Progress::Closed => return Err(Useless::Left),
        };
        let unasked = || Useless::Misbehaved(WireError::NotOffered(message.code));
        let (step, _) = self.awaiting.take().ok_or_else(unasked)?;
        Ok(Some((step, message)))
    }

    /// True once: when a successor knows everything.
    pub(crate) fn take_restored(&mut self) -> bool {
        let ours = |step: &Step| matches!(step, Step::Ours(_));
        let left = self.to_say.iter().chain(self.awaiting.as_ref().map(|(step, _)| step)).any(ours);
        !left && std::mem::take(&mut self.restoring)
    }
}
