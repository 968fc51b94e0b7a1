//! A VM whose devices are served: front ends connect to a socket each, a back end serves them all.

mod device;
mod front;
mod link;
mod offered;
mod state;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use plimsoll_shm::Notifier;
use plimsoll_units::Bytes;
use plimsoll_vhost_user::Polls;
use plimsoll_vhost_user::handover::Work;
use plimsoll_vhost_user::wire::Region;
use rustix::event::PollFlags;
use rustix::net::SocketFlags;

use self::device::Device;
use self::front::{End, Front};
use self::link::Useless;
use crate::args::Args;
use crate::base::{Base, copy};
use crate::keeper;
use crate::sockets::{self, Socket};

/// How much longer than the guest's memory its backing files may be: the ledger counts from a file's beginning. User Mode
/// Linux puts its memory behind a gap as wide as its heap lies away from its program, which on x86-64 is random up
/// to 1 GiB (arch/um/kernel/um_arch.c, `uml_reserved`; arch_randomize_brk). It costs 8 bytes for each 2 MiB, and 128 more
/// of address space.
const BESIDE: Bytes = Bytes::gib(2);

/// The devices of a VM: for now its balloon, at this socket.
const DEVICES: [&str; 1] = ["balloon.sock"];

/// How long the devices rest whose back ends die again and again. Never for ever: a guest that shuts down waits until its
/// balloon is empty, and somebody has to answer.
const REST: Duration = Duration::from_secs(30);

/// A VM's devices.
pub(crate) struct Devices {
    slots: Vec<Slot>,
    poke: Notifier,
    /// The host's end of the line from the agent in the guest. Held and handed on, never read.
    line: Option<OwnedFd>,
}

/// A device and its place to connect.
struct Slot {
    socket: Socket,
    device: Device,
    /// Its front end is gone; what belonged to it is cleared as soon as no back end lives.
    clearing: bool,
    /// A front end that may come in after that.
    next: Option<Front>,
    /// The memory of the front end that has gone, until another comes in: its VMM may be about to end.
    left: Vec<(Region, Arc<OwnedFd>)>,
}

/// What became ready.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Poke,
    Connect(usize),
    Front(usize),
    Requests(usize),
    Link(usize),
}

impl Devices {
    /// Makes the sockets and the shared memory.
    pub(crate) fn new(args: Args) -> anyhow::Result<(Base, Self)> {
        if args.maxmem == Bytes::ZERO {
            bail!("--maxmem is 0; it is what the guest is told it has");
        }
        let files = args.maxmem.plus(BESIDE);
        let line = args.agent_line;
        let base = Base::new(args, DEVICES.len(), files, REST)?;
        let mut slots = Vec::new();
        for name in DEVICES {
            let socket = Socket::listen(base.folder(), name)?;
            slots.push(Slot {
                socket,
                device: Device::default(),
                clearing: false,
                next: None,
                left: Vec::new(),
            });
        }
        let line = if line { Some(sockets::agent_line()?) } else { None };
        Ok((base, Self { slots, poke: Notifier::new()?, line }))
    }

    /// Somebody connects to a device. One front end at a time; the process that is connected may connect anew, as
    /// User Mode Linux does when its guest reboots.
    fn accept(&mut self, index: usize, base: &mut Base, now: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(slot.socket.listener(), flags) else { return };
        let Some(pid) = sockets::trusted_peer(&socket) else { return };
        let front = Front::new(socket, pid, now);
        if slot.clearing {
            slot.next = Some(front);
            return;
        }
        match slot.device.front().map(|old| old.pid) {
            None => self.let_in(index, front, base),
            Some(old) if old == pid => {
                slot.next = Some(front);
                self.front_gone(index, base, now);
            }
            Some(connected) => {
                if let Some(more) = base.log.pass(now) {
                    tracing::warn!(pid, connected, more, "refused a second front end");
                }
            }
        }
    }

    fn let_in(&mut self, index: usize, front: Front, base: &mut Base) {
        if let Err(error) = base.connected(front.pid) {
            // Its connection has to do.
            tracing::warn!(pid = front.pid, %error, "cannot watch the VMM");
        }
        tracing::info!(pid = front.pid, "front end connected");
        base.layout.connected(index);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.left.clear();
            slot.device.connect(front);
        }
    }

    /// Does something with a device on behalf of its front end, which may end it.
    fn with_front(
        &mut self,
        index: usize,
        base: &mut Base,
        now: Instant,
        act: impl FnOnce(&mut Device, Instant) -> Result<(), End>,
    ) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if let Err(end) = act(&mut slot.device, now) {
            self.front_ended(index, &end, base, now);
        }
    }

    fn front_ended(&mut self, index: usize, end: &End, base: &mut Base, now: Instant) {
        if matches!(end, End::Left) {
            tracing::info!("front end left");
        } else if let Some(more) = base.log.pass(now) {
            tracing::warn!(%end, more, "hung up on the front end");
        }
        self.front_gone(index, base, now);
    }

    /// A front end is gone. The back end has its guest's memory mapped and its rings in hand: it goes too.
    fn front_gone(&mut self, index: usize, base: &mut Base, now: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if base.args.memory_ends_with_vmm {
            slot.left = slot.device.memory().to_vec();
        }
        slot.device.disconnect();
        slot.clearing = true;
        base.disconnected(now);
        if base.replace_back(now) {
            self.clear(base);
        }
    }

    /// While no back end lives: marks what gone front ends left, and lets in who waits.
    fn clear(&mut self, base: &mut Base) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.clearing) else { continue };
            slot.clearing = false;
            let next = slot.next.take();
            base.layout.disconnected(index);
            if let Some(front) = next {
                self.let_in(index, front, base);
            }
        }
    }

    fn link_ready(&mut self, index: usize, base: &mut Base, now: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        match slot.device.link_ready(now) {
            Ok(Ok(())) => {}
            Ok(Err(end)) => self.front_ended(index, &end, base, now),
            Err(useless) => dismiss_useless(&useless, base),
        }
    }
}

fn dismiss_useless(why: &Useless, base: &mut Base) {
    tracing::debug!(%why, "the back end is of no use");
    base.kill_back();
}

impl keeper::Kind for Devices {
    type Event = Event;

    const RESTING: &str = "the VM goes on with the balloon it has, the device rests";

    fn watch<'a>(&'a self, _: &'a Base, polls: &mut Polls<'a, keeper::Event<Event>>) {
        polls.add(self.poke.as_fd(), PollFlags::IN, keeper::Event::Own(Event::Poke));
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.next.is_none() {
                let event = keeper::Event::Own(Event::Connect(index));
                polls.add(slot.socket.listener(), PollFlags::IN, event);
            }
            if let Some(link) = slot.device.link_poll() {
                polls.add(link, PollFlags::IN, keeper::Event::Own(Event::Link(index)));
            }
            if let Some((socket, interest)) = slot.device.front_poll() {
                polls.add(socket, interest, keeper::Event::Own(Event::Front(index)));
            }
            if let Some(requests) = slot.device.front().and_then(Front::requests_waiting) {
                polls.add(requests, PollFlags::OUT, keeper::Event::Own(Event::Requests(index)));
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.device.deadline()).min()
    }

    fn happened(&mut self, event: Event, base: &mut Base, now: Instant) {
        match event {
            Event::Poke => {
                self.poke.take();
                self.slots.iter_mut().for_each(|slot| slot.device.tell_change());
            }
            Event::Connect(index) => self.accept(index, base, now),
            Event::Front(index) => self.with_front(index, base, now, Device::front_ready),
            Event::Requests(index) => self.with_front(index, base, now, |device, _| {
                device.tell_change();
                Ok(())
            }),
            Event::Link(index) => self.link_ready(index, base, now),
        }
    }

    fn expire(&mut self, base: &mut Base, now: Instant) {
        for index in 0..self.slots.len() {
            self.with_front(index, base, now, Device::expire);
            if self.slots.get(index).is_some_and(|slot| slot.device.is_hung(now)) {
                tracing::error!("the back end does not answer and is killed");
                base.kill_back();
            }
        }
    }

    fn start(&mut self, base: &mut Base, now: Instant) -> anyhow::Result<()> {
        let mut ours = Vec::new();
        let mut sockets = Vec::new();
        for _ in &self.slots {
            let (mine, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
            ours.push(OwnedFd::from(mine));
            sockets.push(OwnedFd::from(theirs));
        }
        let line = self.line.as_ref().map(|line| copy(line.as_fd())).transpose()?;
        base.start_back(Work::Devices { poke: copy(self.poke.as_fd())?, line, sockets })?;
        for (slot, socket) in self.slots.iter_mut().zip(ours) {
            slot.device.link(socket, now)?;
        }
        Ok(())
    }

    fn back_gone(&mut self, base: &mut Base, now: Instant) {
        for index in 0..self.slots.len() {
            self.with_front(index, base, now, Device::unlink);
        }
        self.clear(base);
    }

    fn rest(&mut self, base: &mut Base, now: Instant) -> bool {
        for index in 0..self.slots.len() {
            self.with_front(index, base, now, Device::rest);
        }
        self.slots.iter().any(|slot| slot.device.front().is_some() || slot.next.is_some())
    }

    /// What it left of its guest's memory is of use to nobody.
    fn vmm_ended(&self, base: &Base) {
        if base.args.memory_ends_with_vmm {
            let tables = self.slots.iter().flat_map(|slot| [slot.device.memory(), &slot.left]);
            tables.for_each(crate::leavings::discard);
        }
    }
}
