//! Serving a VM's devices, over vhost-user.
//!
//! One thread, one poll loop: the keeper's socket (vhost-user messages), the rings' kicks, the control socket, a timer that
//! asks the guest for statistics, the line from the agent in the guest. One thread owns everything, so a ring that
//! was stopped has no work under way.

mod device;
mod line;
mod prepare;
mod status;
mod vm;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use plimsoll_balloon::{Balloon, Features, FileDiscarder, SharedConfig};
use plimsoll_shm::Notifier;
use plimsoll_units::Bytes;
use plimsoll_vhost_user::layout::Layout;
use plimsoll_vhost_user::wire::{Answer, Code, Framer, Message, Progress, Request};
use plimsoll_vhost_user::{Polls, Session, Throttle};
use rustix::event::PollFlags;

use self::device::BalloonDevice;
use self::line::Line;
use self::prepare::{CONFIG_WORDS, Prepared};
use self::vm::Vm;
use crate::args::Args;
use crate::control::{self, Control};

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
    Control(control::Event),
    Kick(u16),
    Line,
}

/// What a keeper hands over for devices.
pub(crate) struct Devices {
    pub(crate) poke: OwnedFd,
    pub(crate) line: Option<OwnedFd>,
    pub(crate) sockets: Vec<OwnedFd>,
}

impl Server {
    pub(crate) fn new(args: Args, layout: Layout, control: Control, given: Devices) -> anyhow::Result<Self> {
        let Devices { poke, line, sockets } = given;
        let keeper = match <[OwnedFd; 1]>::try_from(sockets) {
            Ok([socket]) => socket,
            Err(sockets) => bail!("the keeper has {} devices; this back end serves one", sockets.len()),
        };
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
            control,
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
                    Event::Control(event) => self.control(event),
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
        let mut polls = Polls::default();
        polls.add(stdin.as_fd(), PollFlags::IN, Event::KeeperGone);
        polls.add(self.keeper.as_fd(), PollFlags::IN, Event::Message);
        polls.add(self.vm.timer.as_fd(), PollFlags::IN, Event::Timer);
        self.control.watch(&mut polls, Event::Control);
        let now = Instant::now();
        if let Some(line) = self.vm.line.as_ref().and_then(|line| line.poll(now)) {
            polls.add(line, PollFlags::IN, Event::Line);
        }
        for (ring, kick) in self.vm.session.kicks() {
            polls.add(kick, PollFlags::IN, Event::Kick(ring));
        }
        let due = if self.vm.session.unfinished().is_empty() {
            let line = self.vm.line.as_ref().and_then(|line| line.deadline(now));
            self.control.deadline().into_iter().chain(line).min()
        } else {
            Some(now)
        };
        polls.wait(due).context("cannot wait for events")
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

    fn control(&mut self, event: control::Event) {
        let Self { control, vm, .. } = self;
        control.happened(event, Instant::now(), |id, op| vm.carry_out(id, op));
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
