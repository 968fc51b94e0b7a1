//! Serving a VM's memory, populated on demand.
//!
//! The threads of `plimsoll_pager` answer the guest's faults. This one answers the daemon, and does nothing else: what a guest
//! does never keeps it from answering. When a pager's thread has to give up, the process ends, and the next one takes over.
//!
//! Before a VMM has handed its guest's memory over there is nothing to be served, but the target can be set and the status
//! asked for. With the handover comes another process.

mod ledger;
mod memory;
mod news;
mod vm;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use plimsoll_vhost_user::Polls;
use plimsoll_vhost_user::handover::{Mapping, say_serving};
use plimsoll_vhost_user::layout::Layout;
use rustix::event::PollFlags;

use self::memory::Memory;
use self::news::News;
use self::vm::Vm;
use crate::args::Args;
use crate::control::{self, Control};

/// Everything this process has.
pub(crate) struct Server {
    control: Control,
    news: Arc<News>,
    vm: Vm,
}

/// What became ready.
#[derive(Clone, Copy)]
enum Event {
    KeeperGone,
    News,
    Control(control::Event),
}

impl Server {
    /// Takes the guest's memory over, if a VMM has it mapped, and serves its faults from then on.
    pub(crate) fn new(
        args: Args,
        layout: Layout,
        control: Control,
        guest: OwnedFd,
        vmm: Option<Mapping>,
    ) -> anyhow::Result<Self> {
        let private = layout.private(vm::MEMORY).context("shared memory has no room for a guest's memory")?;
        let news = Arc::new(News::new(layout.epoch(), private)?);
        let memory = Memory::new(&args, &layout, guest, vmm, &news)?;
        let vm = Vm::new(args, layout, memory, Arc::clone(&news));
        Ok(Self { control, news, vm })
    }

    /// Serves until the keeper is gone.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        say_serving(std::io::stdin()).context("cannot tell the keeper that the guest is served")?;
        self.vm.tell_start();
        loop {
            for event in self.wait()? {
                match event {
                    Event::KeeperGone => return Ok(()),
                    Event::News => self.news.take(),
                    Event::Control(event) => {
                        let Self { control, vm, .. } = self;
                        control.happened(event, Instant::now(), |id, op| vm.carry_out(id, op));
                    }
                }
            }
            if let Some(reason) = self.news.failure() {
                bail!("the guest's faults can no longer be served: {reason}");
            }
            let Self { control, vm, .. } = self;
            let now = Instant::now();
            control.wake(now, |id, op| vm.carry_out(id, op));
            control.expire(now);
        }
    }

    fn wait(&self) -> anyhow::Result<Vec<Event>> {
        let stdin = std::io::stdin();
        let mut polls = Polls::default();
        polls.add(stdin.as_fd(), PollFlags::IN, Event::KeeperGone);
        polls.add(self.news.as_fd(), PollFlags::IN, Event::News);
        self.control.watch(&mut polls, Event::Control);
        polls.wait(self.control.deadline()).context("cannot wait for events")
    }
}
