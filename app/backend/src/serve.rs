//! The loop.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use plimsoll_balloon::{Balloon, Features, FileDiscarder, SharedConfig};
use plimsoll_shm::{Notifier, SharedWords};
use plimsoll_units::Bytes;
use plimsoll_vhost_user::handover::Handover;
use plimsoll_vhost_user::layout::Layout;
use plimsoll_vhost_user::wire::{Answer, Code, Framer, Message, Progress, Request};
use plimsoll_vhost_user::{Session, Throttle};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::args::Args;
use crate::control::Control;
use crate::device::BalloonDevice;
use crate::line::Line;
use crate::prepare::{self, CONFIG_WORDS, Prepared};
use crate::vm::Vm;

/// Memory that front ends show beside what the guest is told it has: firmware, video.
const BESIDE: Bytes = Bytes::mib(64);

/// Everything this process has.
pub(crate) struct Server {
    keeper: OwnedFd,
    framer: Framer,
    control: Control,
    vm: Vm,
    faults: Throttle,
    refusals: Throttle,
}

/// What became ready.
#[derive(Clone, Copy)]
enum Event {
    KeeperGone,
    Message,
    Timer,
    Connect,
    Peer(u64),
    Kick(u16),
    Line,
}

impl Server {
    pub(crate) fn new(args: Args, handover: Handover) -> anyhow::Result<Self> {
        let Handover { memory, control, poke, line, devices } = handover;
        let keeper = match <[OwnedFd; 1]>::try_from(devices) {
            Ok([socket]) => socket,
            Err(devices) => bail!("the keeper has {} devices; this back end serves one", devices.len()),
        };
        let words = SharedWords::attach_all(memory).context("cannot use the keeper's shared memory")?;
        let layout = Layout::attach(words).context("cannot use the keeper's shared memory")?;
        let Prepared { private, rings, ledger, anew } = prepare::prepare(&layout, &args)?;
        let config =
            private.piece(0, CONFIG_WORDS).ok_or_else(|| anyhow!("no room for the configuration"))?;
        let config = SharedConfig::new(config).context("cannot take the configuration over")?;
        let balloon = Balloon::new(config, ledger, FileDiscarder::default(), Features::DEFAULT);
        let limit = args.maxmem.plus(BESIDE).0;
        let session = Session::new(BalloonDevice::new(balloon), rings, limit);
        let line = line.map(|socket| Line::new(socket, anew, Instant::now()));
        let vm = Vm::new(args, session, layout, private, Notifier::from_fd(poke), line)?;
        Ok(Self {
            keeper,
            framer: Framer::of_requests(),
            control: Control::new(control),
            vm,
            faults: Throttle::default(),
            refusals: Throttle::default(),
        })
    }

    /// Serves until the keeper is gone.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        tracing::info!(vm = %self.vm.args.name, epoch = self.vm.layout.epoch(), "back end is up");
        loop {
            for event in self.wait()? {
                match event {
                    Event::KeeperGone => return Ok(()),
                    Event::Message => self.messages()?,
                    Event::Timer => self.vm.ask_for_stats(),
                    Event::Connect => self.control.accept(Instant::now()),
                    Event::Peer(id) => self.peer(id),
                    Event::Kick(ring) => self.vm.session.kicked(ring),
                    Event::Line => self.vm.listen(Instant::now()),
                }
            }
            for ring in self.vm.session.unfinished() {
                self.vm.session.work(ring);
            }
            self.answer_waiting();
            self.tell_faults();
        }
    }

    /// Waits until something is ready, or work is left, or a peer's patience ends.
    fn wait(&self) -> anyhow::Result<Vec<Event>> {
        let stdin = std::io::stdin();
        let mut fds = vec![
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&self.keeper, PollFlags::IN),
            PollFd::new(&self.vm.timer, PollFlags::IN),
            PollFd::from_borrowed_fd(self.control.listener(), PollFlags::IN),
        ];
        let mut events = vec![Event::KeeperGone, Event::Message, Event::Timer, Event::Connect];
        for (id, socket, flags) in self.control.connections() {
            fds.push(PollFd::from_borrowed_fd(socket, flags));
            events.push(Event::Peer(id));
        }
        let now = Instant::now();
        if let Some(line) = self.vm.line.as_ref().and_then(|line| line.poll(now)) {
            fds.push(PollFd::from_borrowed_fd(line, PollFlags::IN));
            events.push(Event::Line);
        }
        for (ring, kick) in self.vm.session.kicks() {
            fds.push(PollFd::from_borrowed_fd(kick, PollFlags::IN));
            events.push(Event::Kick(ring));
        }
        let timeout = if self.vm.session.unfinished().is_empty() {
            let line = self.vm.line.as_ref().and_then(|line| line.deadline(now));
            let due = self.control.deadline().into_iter().chain(line).min();
            due.map(|at| at.saturating_duration_since(now))
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout.map(|wait| Timespec::try_from(wait).unwrap_or_default());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for events"),
        }
        Ok(fds
            .iter()
            .zip(events)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .map(|(_, event)| event)
            .collect())
    }

    /// Answers what the keeper has sent.
    fn messages(&mut self) -> anyhow::Result<()> {
        loop {
            match self.framer.read(&self.keeper).context("the keeper sent what is no message")? {
                Progress::Message(message) => self.message(message)?,
                Progress::NotYet => return Ok(()),
                Progress::Closed => bail!("the keeper has hung up"),
            }
        }
    }

    fn message(&mut self, message: Message) -> anyhow::Result<()> {
        let (code, needs_reply) = (message.code, message.needs_reply());
        let request = Request::parse(message).context("the keeper sent what is no request")?;
        let content = request.code().is_some_and(Code::has_content);
        tracing::trace!(?request, needs_reply, "asked");
        let answer = match self.vm.session.request(request) {
            Ok(answer) => answer,
            Err(error) => {
                if let Some(more) = self.refusals.pass(Instant::now()) {
                    tracing::warn!(%error, more, "refused a front end's request");
                }
                Answer::Refused
            }
        };
        if content || (needs_reply && self.vm.session.acknowledges()) {
            answer.message(code).send(&self.keeper).context("cannot answer the keeper")?;
        }
        Ok(())
    }

    /// Answers the peers for whom something has happened, or has not for long enough.
    fn answer_waiting(&mut self) {
        let Self { control, vm, .. } = self;
        let now = Instant::now();
        control.wake(now, |id, op| vm.carry_out(id, op));
        control.expire(now);
    }

    fn peer(&mut self, id: u64) {
        let Self { control, vm, .. } = self;
        control.ready(id, Instant::now(), |id, op| vm.carry_out(id, op));
    }

    /// Writes to the log what the guest broke and what the kernel refused, at a limited rate.
    fn tell_faults(&mut self) {
        let now = Instant::now();
        for (ring, error) in self.vm.session.take_faults() {
            if let Some(more) = self.faults.pass(now) {
                tracing::warn!(ring, %error, more, "the guest broke a ring; it rests until it is set up anew");
            }
        }
        if let Some(error) = self.vm.session.device_mut().balloon_mut().take_discard_error()
            && let Some(more) = self.faults.pass(now)
        {
            tracing::warn!(%error, more, "memory was not given back");
        }
    }
}
