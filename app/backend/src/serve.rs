//! The loop.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use plimsoll_api::control::{ErrorKind, Op, Reply};
use plimsoll_balloon::{Balloon, Features, FileDiscarder, SharedConfig};
use plimsoll_shm::{Notifier, SharedWords};
use plimsoll_units::{BalloonSize, Bytes};
use plimsoll_vhost_user::handover::Handover;
use plimsoll_vhost_user::layout::Layout;
use plimsoll_vhost_user::wire::{Answer, Code, Framer, Message, Progress, Request};
use plimsoll_vhost_user::{Session, Throttle};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use crate::args::Args;
use crate::control::Control;
use crate::device::BalloonDevice;
use crate::prepare::{self, CONFIG_WORDS, Prepared, STATS_INTERVAL};
use crate::status::status;

/// Memory that front ends show beside what the guest is told it has: firmware, video.
const BESIDE: Bytes = Bytes::mib(64);

/// How often the guest is asked for statistics unless somebody says otherwise, in milliseconds.
const STATS_DEFAULT_MS: u32 = 1000;

/// The intervals that may be asked for, in milliseconds; 0 stops asking.
const STATS_RANGE_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// Everything this process has.
pub(crate) struct Server {
    args: Args,
    keeper: OwnedFd,
    framer: Framer,
    session: Session<BalloonDevice>,
    layout: Layout,
    private: SharedWords,
    control: Control,
    poke: Notifier,
    timer: OwnedFd,
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
}

impl Server {
    pub(crate) fn new(args: Args, handover: Handover) -> anyhow::Result<Self> {
        let Handover { memory, control, poke, devices } = handover;
        let keeper = match <[OwnedFd; 1]>::try_from(devices) {
            Ok([socket]) => socket,
            Err(devices) => bail!("the keeper has {} devices; this back end serves one", devices.len()),
        };
        let words = SharedWords::attach_all(memory).context("cannot use the keeper's shared memory")?;
        let layout = Layout::attach(words).context("cannot use the keeper's shared memory")?;
        let Prepared { private, rings, ledger } = prepare::prepare(&layout, &args)?;
        let config =
            private.piece(0, CONFIG_WORDS).ok_or_else(|| anyhow!("no room for the configuration"))?;
        let config = SharedConfig::new(config).context("cannot take the configuration over")?;
        let balloon = Balloon::new(config, ledger, FileDiscarder::default(), Features::DEFAULT);
        let limit = args.maxmem.plus(BESIDE).0;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .context("cannot create a timer")?;
        let server = Self {
            args,
            keeper,
            framer: Framer::of_requests(),
            session: Session::new(BalloonDevice::new(balloon), rings, limit),
            layout,
            private,
            control: Control::new(control),
            poke: Notifier::from_fd(poke),
            timer,
            faults: Throttle::default(),
            refusals: Throttle::default(),
        };
        server.set_timer()?;
        Ok(server)
    }

    /// Serves until the keeper is gone.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        tracing::info!(vm = %self.args.name, epoch = self.layout.epoch(), "back end is up");
        loop {
            for event in self.wait()? {
                match event {
                    Event::KeeperGone => return Ok(()),
                    Event::Message => self.messages()?,
                    Event::Timer => self.ask_for_stats(),
                    Event::Connect => self.control.accept(Instant::now()),
                    Event::Peer(id) => self.peer(id),
                    Event::Kick(ring) => self.session.kicked(ring),
                }
            }
            for ring in self.session.unfinished() {
                self.session.work(ring);
            }
            self.control.expire(Instant::now());
            self.tell_faults();
        }
    }

    /// Waits until something is ready, or work is left, or a peer's patience ends.
    fn wait(&self) -> anyhow::Result<Vec<Event>> {
        let stdin = std::io::stdin();
        let mut fds = vec![
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&self.keeper, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::from_borrowed_fd(self.control.listener(), PollFlags::IN),
        ];
        let mut events = vec![Event::KeeperGone, Event::Message, Event::Timer, Event::Connect];
        for (id, socket, flags) in self.control.connections() {
            fds.push(PollFd::from_borrowed_fd(socket, flags));
            events.push(Event::Peer(id));
        }
        for (ring, kick) in self.session.kicks() {
            fds.push(PollFd::from_borrowed_fd(kick, PollFlags::IN));
            events.push(Event::Kick(ring));
        }
        let timeout = if self.session.unfinished().is_empty() {
            self.control.deadline().map(|at| at.saturating_duration_since(Instant::now()))
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
        let answer = match self.session.request(request) {
            Ok(answer) => answer,
            Err(error) => {
                if let Some(more) = self.refusals.pass(Instant::now()) {
                    tracing::warn!(%error, more, "refused a front end's request");
                }
                Answer::Refused
            }
        };
        if content || (needs_reply && self.session.acknowledges()) {
            answer.message(code).send(&self.keeper).context("cannot answer the keeper")?;
        }
        Ok(())
    }

    /// Returns the statistics buffer, which asks the guest to fill it anew.
    fn ask_for_stats(&mut self) {
        // Nobody is interested in how many ticks have passed.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        if let Some((ring, head)) = self.session.device_mut().take_held() {
            self.session.complete(ring, head, 0);
        }
    }

    fn interval_ms(&self) -> u32 {
        let word = self.private[STATS_INTERVAL].load(SeqCst);
        word.checked_sub(1).and_then(|ms| u32::try_from(ms).ok()).unwrap_or(STATS_DEFAULT_MS)
    }

    fn set_timer(&self) -> anyhow::Result<()> {
        let every = Duration::from_millis(u64::from(self.interval_ms()));
        let every = Timespec::try_from(every).unwrap_or_default();
        let setting = Itimerspec { it_interval: every, it_value: every };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)
            .context("cannot set the timer for statistics")?;
        Ok(())
    }

    fn peer(&mut self, id: u64) {
        let Self { args, session, layout, private, control, poke, .. } = self;
        let mut new_interval = false;
        control.ready(id, Instant::now(), |id, op| {
            match op {
                Op::Status => {}
                Op::SetBalloon { pages } if pages.0.bytes() > args.maxmem => {
                    return out_of_range(id, too_many(pages, args.maxmem));
                }
                Op::SetBalloon { pages } => {
                    if session.device_mut().balloon_mut().config().set_num_pages(pages) {
                        poke.poke();
                    }
                }
                Op::StatsInterval { ms } if ms != 0 && !STATS_RANGE_MS.contains(&ms) => {
                    let message = format!("{ms} ms is no interval; it is 100 to 60000, or 0 to stop asking");
                    return out_of_range(id, message);
                }
                Op::StatsInterval { ms } => {
                    private[STATS_INTERVAL].store(u64::from(ms) + 1, SeqCst);
                    new_interval = true;
                }
            }
            Reply::ok(id, status(session, layout, args.maxmem))
        });
        if new_interval && let Err(error) = self.set_timer() {
            tracing::warn!(%error, "the interval of statistics stays as it was");
        }
    }

    /// Writes to the log what the guest broke and what the kernel refused, at a limited rate.
    fn tell_faults(&mut self) {
        let now = Instant::now();
        for (ring, error) in self.session.take_faults() {
            if let Some(more) = self.faults.pass(now) {
                tracing::warn!(ring, %error, more, "the guest broke a ring; it rests until it is set up anew");
            }
        }
        if let Some(error) = self.session.device_mut().balloon_mut().take_discard_error()
            && let Some(more) = self.faults.pass(now)
        {
            tracing::warn!(%error, more, "memory was not given back");
        }
    }
}

fn out_of_range(id: u64, message: String) -> Reply {
    Reply::error(id, ErrorKind::OutOfRange, message)
}

fn too_many(pages: BalloonSize, maxmem: Bytes) -> String {
    let have = maxmem.pages_floor().0;
    format!("a balloon of {} pages is larger than the guest, which has {have}", pages.0.0)
}
