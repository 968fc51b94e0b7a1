//! The loop.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, bail};
use plimsoll_vhost_user::Polls;
use rustix::event::PollFlags;

use crate::back::Next;
use crate::base::Base;
use crate::sockets;

/// A kind of VM: what its VMM connects to, and what its back ends get.
pub(crate) trait Kind {
    /// What can become ready of its own.
    type Event: Copy;

    /// What happens to the VM while no back end can be kept alive, for the log.
    const RESTING: &str;

    /// What to wait for.
    fn watch<'a>(&'a self, base: &'a Base, polls: &mut Polls<'a, Event<Self::Event>>);

    /// The next moment at which somebody is too slow.
    fn deadline(&self) -> Option<Instant>;

    /// Something became ready.
    fn happened(&mut self, event: Self::Event, base: &mut Base, now: Instant);

    /// The time of a deadline may have come.
    fn expire(&mut self, base: &mut Base, now: Instant);

    /// Starts a back end.
    fn start(&mut self, base: &mut Base, now: Instant) -> anyhow::Result<()>;

    /// The back end is gone.
    fn back_gone(&mut self, base: &mut Base, now: Instant);

    /// There will be no back end for a while. False if nobody would miss it.
    fn rest(&mut self, base: &mut Base, now: Instant) -> bool;

    /// The VMM's process has ended.
    fn vmm_ended(&self, base: &Base);
}

/// What became ready.
#[derive(Clone, Copy)]
pub(crate) enum Event<E> {
    Signal,
    VmmGone,
    BackGone,
    /// Something of this kind of VM's.
    Own(E),
}

/// A keeper of a VM of one kind.
pub(crate) struct Keeper<K> {
    // Goes before the base, and its sockets with it: with the base the folder is unlocked.
    kind: K,
    base: Base,
    signals: UnixStream,
}

impl<K: Kind> Keeper<K> {
    pub(crate) fn new(mut base: Base, kind: K) -> anyhow::Result<Self> {
        base.open_control()?;
        Ok(Self { kind, base, signals: sockets::signals()? })
    }

    /// Keeps until the VMM has ended, or somebody says so.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let args = &self.base.args;
        tracing::info!(vm = %args.name, dir = %args.dir.display(), "keeper is up");
        loop {
            self.start_if_due(Instant::now())?;
            let events = self.wait()?;
            let now = Instant::now();
            for event in events {
                match event {
                    Event::Signal => {
                        tracing::info!("told to end");
                        return Ok(());
                    }
                    Event::VmmGone => {
                        tracing::info!("the VMM has ended");
                        self.kind.vmm_ended(&self.base);
                        return Ok(());
                    }
                    Event::BackGone => self.back_gone(now)?,
                    Event::Own(event) => self.kind.happened(event, &mut self.base, now),
                }
            }
            self.expire(now)?;
        }
    }

    /// Waits until something is ready or a deadline has come.
    fn wait(&self) -> anyhow::Result<Vec<Event<K::Event>>> {
        let mut polls = Polls::default();
        polls.add(self.signals.as_fd(), PollFlags::IN, Event::Signal);
        self.base.watch(&mut polls);
        self.kind.watch(&self.base, &mut polls);
        let deadline = self.kind.deadline().into_iter().chain(self.base.deadline()).min();
        polls.wait(deadline).context("cannot wait for events")
    }

    fn expire(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.base.is_alone(now) {
            bail!("no VMM has connected within {} seconds", self.base.args.connect_timeout);
        }
        self.kind.expire(&mut self.base, now);
        Ok(())
    }

    fn back_gone(&mut self, now: Instant) -> anyhow::Result<()> {
        let Some(dismissed) = self.base.reap(now) else { return Ok(()) };
        self.kind.back_gone(&mut self.base, now);
        if dismissed { Ok(()) } else { self.next_start(now) }
    }

    fn next_start(&mut self, now: Instant) -> anyhow::Result<()> {
        if let Next::At(_) = self.base.next_start(now) {
            return Ok(());
        }
        tracing::error!(
            deaths = self.base.args.give_up_after,
            "the back end dies again and again; {}",
            K::RESTING
        );
        if !self.kind.rest(&mut self.base, now) {
            bail!("the back end cannot be kept alive, and no VMM is connected");
        }
        Ok(())
    }

    fn start_if_due(&mut self, now: Instant) -> anyhow::Result<()> {
        if !self.base.is_start_due(now) {
            return Ok(());
        }
        self.kind.start(&mut self.base, now).or_else(|error| {
            tracing::error!(error = format!("{error:#}"), "no back end");
            self.base.kill_back();
            if self.base.has_back() { Ok(()) } else { self.next_start(now) }
        })
    }
}
