//! One device: a front end on one side, a back end on the other.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use plimsoll_vhost_user::wire::{Answer, Code, Message, Progress, Request, protocol};
use rustix::event::PollFlags;

use super::front::{End, Front};
use super::link::{Link, Step, Useless};
use super::offered::{ConfigCache, Offered};
use super::state::State;
use crate::leavings::Memory;

/// Back ends that may die over one request before it is given up: the second shows that it was no accident.
const DEATHS_PER_REQUEST: u32 = 2;

/// A device of the VM.
#[derive(Debug, Default)]
pub(crate) struct Device {
    front: Option<Front>,
    state: State,
    pending: Option<Pending>,
    offered: Offered,
    config: ConfigCache,
    link: Option<Link>,
    /// There will be no back end for a while.
    resting: bool,
}

/// A front end's request that has not been answered.
#[derive(Debug)]
struct Pending {
    request: Request,
    code: Code,
    needs_reply: bool,
    deaths: u32,
}

impl Device {
    /// The front end, if one is connected.
    pub(crate) fn front(&self) -> Option<&Front> {
        self.front.as_ref()
    }

    /// The guest's memory, as far as the front end has shown it.
    pub(crate) fn memory(&self) -> &Memory {
        self.state.memory()
    }

    /// What to wait for on the front end's socket.
    pub(crate) fn front_poll(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let front = self.front.as_ref()?;
        Some((front.socket(), front.interest(self.pending.is_some())))
    }

    /// The back end's socket.
    pub(crate) fn link_poll(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(Link::socket)
    }

    /// The next moment at which somebody is too slow.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let link = self.link.as_ref().and_then(Link::due);
        self.front.as_ref().and_then(Front::deadline).into_iter().chain(link).min()
    }

    /// Whether the back end has failed to answer in time.
    pub(crate) fn is_hung(&self, now: Instant) -> bool {
        self.link.as_ref().and_then(Link::due).is_some_and(|due| now >= due)
    }

    /// A front end has connected.
    pub(crate) fn connect(&mut self, front: Front) {
        self.front = Some(front);
    }

    /// The front end is gone: everything it said is forgotten, its descriptors are closed.
    pub(crate) fn disconnect(&mut self) {
        *self = Self::default();
    }

    /// A back end has started and listens at the other end of `socket`: it is told what the front end has set.
    pub(crate) fn link(&mut self, socket: OwnedFd, now: Instant) -> Result<(), Useless> {
        self.resting = false;
        self.link = Some(Link::new(socket, self.state.replay(), self.pending.is_some()));
        self.say(now)
    }

    /// The back end is gone.
    pub(crate) fn unlink(&mut self, now: Instant) -> Result<(), End> {
        let during_theirs = self.link.take().is_some_and(|link| link.awaits_theirs());
        let Some(pending) = &mut self.pending else { return Ok(()) };
        if during_theirs {
            pending.deaths += 1;
        }
        if pending.deaths < DEATHS_PER_REQUEST {
            return Ok(());
        }
        let code = pending.code;
        if code == Code::GetConfig {
            return self.answer_alone(now);
        }
        if code.has_content() {
            return Err(End::Fatal(code));
        }
        self.answer(&Answer::Refused, now)
    }

    /// There will be no back end for a while: answers are up to us.
    pub(crate) fn rest(&mut self, now: Instant) -> Result<(), End> {
        self.resting = true;
        if self.pending.is_some() { self.answer_alone(now) } else { Ok(()) }
    }

    /// The configuration has changed: tells the front end.
    pub(crate) fn tell_change(&mut self) {
        if let Some(front) = &mut self.front {
            front.tell_change();
        }
    }

    /// The front end's socket is ready.
    pub(crate) fn front_ready(&mut self, now: Instant) -> Result<(), End> {
        if self.pending.is_some() {
            // Nothing is waited for then, so this can only be that the other end is gone.
            return Err(End::Left);
        }
        if let Some(front) = &mut self.front {
            front.flush().map_err(End::Unreachable)?;
        }
        while self.pending.is_none() {
            let Some(front) = self.front.as_mut().filter(|f| f.interest(false).contains(PollFlags::IN))
            else {
                return Ok(());
            };
            match front.read(now).map_err(End::Misbehaved)? {
                Progress::Message(message) => self.request(message, now)?,
                Progress::NotYet => return Ok(()),
                Progress::Closed => return Err(End::Left),
            }
        }
        Ok(())
    }

    /// The time of a deadline has come.
    pub(crate) fn expire(&mut self, now: Instant) -> Result<(), End> {
        let late = self.front.as_ref().and_then(Front::deadline).is_some_and(|due| now >= due);
        if late { Err(End::TooSlow) } else { Ok(()) }
    }

    /// What the front end asks is answered here, or handed on.
    fn request(&mut self, message: Message, now: Instant) -> Result<(), End> {
        let (number, needs_reply) = (message.code, message.needs_reply());
        let request = Request::parse(message).map_err(End::Misbehaved)?;
        let Some(code) = request.code() else {
            return self.acknowledge(number, needs_reply, &Answer::Refused, now);
        };
        let answer = if let Request::SetProtocolFeatures(chosen) = request {
            self.choose_protocol(chosen)
        } else if let Request::SetBackendReqFd(fd) = request {
            self.take_requests(fd)
        } else if matches!(request, Request::SetOwner | Request::ResetOwner) {
            Answer::Done
        } else {
            self.pending = Some(Pending { request, code, needs_reply, deaths: 0 });
            return self.hand_on(now);
        };
        self.acknowledge(number, needs_reply, &answer, now)
    }

    fn choose_protocol(&mut self, chosen: u64) -> Answer {
        let offered = self.offered.first(Code::GetProtocolFeatures).unwrap_or(0);
        match &mut self.front {
            Some(front) if chosen & !offered == 0 => {
                front.protocol = chosen;
                Answer::Done
            }
            _ => Answer::Refused,
        }
    }

    fn take_requests(&mut self, fd: Arc<OwnedFd>) -> Answer {
        match &mut self.front {
            Some(front) if front.protocol & protocol::BACKEND_REQ != 0 => {
                front.set_requests(fd);
                Answer::Done
            }
            _ => Answer::Refused,
        }
    }

    fn hand_on(&mut self, now: Instant) -> Result<(), End> {
        if self.resting {
            return self.answer_alone(now);
        }
        if let Some(link) = &mut self.link {
            link.push_theirs();
            // A back end that does not take it is dying; the next one gets it.
            let _ = self.say(now);
        }
        Ok(())
    }

    /// Says the next thing to the back end, unless an answer is due.
    fn say(&mut self, now: Instant) -> Result<(), Useless> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.say(self.pending.as_ref().map(|pending| &pending.request), now)?;
        if link.take_restored() {
            self.tell_change();
        }
        Ok(())
    }

    /// The back end's socket is ready. The inner result is the front end's: answering may end it.
    pub(crate) fn link_ready(&mut self, now: Instant) -> Result<Result<(), End>, Useless> {
        loop {
            let Some(link) = &mut self.link else { return Ok(Ok(())) };
            let Some((step, message)) = link.read()? else { return Ok(Ok(())) };
            let end = match step {
                Step::Ours(request) => self.restored(&request, &message).map(|()| Ok(()))?,
                Step::Theirs => self.answered(&message, now)?,
            };
            // Said before a front end's end is told: that ends the back end too.
            self.say(now)?;
            if end.is_err() {
                return Ok(end);
            }
        }
    }

    /// A back end has taken something that it was told anew.
    fn restored(&mut self, request: &Request, message: &Message) -> Result<(), Useless> {
        let Some(code) = request.code() else { return Ok(()) };
        let answer = Answer::parse(code, message).map_err(Useless::Misbehaved)?;
        if answer == Answer::Refused {
            tracing::error!(?code, "the new back end refuses what the one before had taken");
        }
        Ok(())
    }

    /// The back end has answered the front end's request.
    fn answered(&mut self, message: &Message, now: Instant) -> Result<Result<(), End>, Useless> {
        let Some(pending) = &self.pending else { return Ok(Ok(())) };
        let answer = Answer::parse(pending.code, message).map_err(Useless::Misbehaved)?;
        if answer == Answer::Refused {
            self.state.refused(&pending.request);
        } else {
            self.state.record(&pending.request);
        }
        let answer = self.offered.mask(pending.code, answer);
        self.config.keep(&answer);
        Ok(self.answer(&answer, now))
    }

    /// Answers the pending request without a back end. The guest shall be able to go on and to end: what sets
    /// something is acknowledged, what asks is told what it was told before.
    fn answer_alone(&mut self, now: Instant) -> Result<(), End> {
        let Some(pending) = &self.pending else { return Ok(()) };
        let answer = if let Request::GetVringBase { ring } = pending.request {
            Answer::Base { ring, base: 0 }
        } else if let Request::GetConfig { offset, length, flags } = pending.request {
            self.config.read(offset, length, flags)
        } else {
            self.offered.first(pending.code).map_or(Answer::Done, Answer::Number)
        };
        self.answer(&answer, now)
    }

    /// Answers the pending request.
    fn answer(&mut self, answer: &Answer, now: Instant) -> Result<(), End> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        if pending.code.has_content() {
            let Some(front) = &mut self.front else { return Ok(()) };
            return front.answer(pending.code.number(), answer, now).map_err(End::Unreachable);
        }
        self.acknowledge(pending.code.number(), pending.needs_reply, answer, now)
    }

    /// Acknowledges a request, if that was asked for and agreed on.
    fn acknowledge(
        &mut self,
        number: u32,
        needs_reply: bool,
        answer: &Answer,
        now: Instant,
    ) -> Result<(), End> {
        match &mut self.front {
            Some(front) if needs_reply && front.acknowledges() => {
                front.answer(number, answer, now).map_err(End::Unreachable)
            }
            _ => Ok(()),
        }
    }
}
