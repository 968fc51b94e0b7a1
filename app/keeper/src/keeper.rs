//! The loop.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use plimsoll_frames::Ledger;
use plimsoll_shm::{Notifier, SharedWords};
use plimsoll_units::Bytes;
use plimsoll_vhost_user::Throttle;
use plimsoll_vhost_user::handover::Handover;
use plimsoll_vhost_user::layout::Layout;
use plimsoll_vhost_user::wire::Region;
use rustix::net::SocketFlags;

use crate::args::Args;
use crate::back::{Back, Deaths, Next};
use crate::device::Device;
use crate::events::Event;
use crate::front::{End, Front};
use crate::leavings;
use crate::link::Useless;
use crate::sockets::{self, Folder, Socket};

/// How much longer than the guest's memory its backing files may be: the ledger counts from a file's beginning. User Mode
/// Linux puts its memory behind a gap as wide as its heap lies away from its program, which on x86-64 is random up
/// to 1 GiB (arch/um/kernel/um_arch.c, `uml_reserved`; arch_randomize_brk). It costs 8 bytes for each 2 MiB, and 128 more
/// of address space.
const BESIDE: Bytes = Bytes::gib(2);

/// The devices of a VM: for now its balloon, at this socket.
const DEVICES: [&str; 1] = ["balloon.sock"];

/// The daemon's way to the back end.
const CONTROL: &str = "control.sock";

/// Everything a keeper keeps.
pub(crate) struct Keeper {
    args: Args,
    folder: Folder,
    memory: OwnedFd,
    layout: Layout,
    ledger_frames: u32,
    control: Option<Socket>,
    /// The host's end of the line from the agent in the guest. Held and handed on, never read.
    line: Option<OwnedFd>,
    pub(crate) poke: Notifier,
    pub(crate) slots: Vec<Slot>,
    pub(crate) back: BackEnd,
    deaths: Deaths,
    /// The process that connected first.
    pub(crate) vmm: Option<OwnedFd>,
    /// When somebody must have connected; none while it is known whom to watch.
    pub(crate) connect_by: Option<Instant>,
    pub(crate) signals: UnixStream,
    log: Throttle,
}

/// A device and its place to connect.
pub(crate) struct Slot {
    pub(crate) socket: Socket,
    pub(crate) device: Device,
    /// Its front end is gone; what belonged to it is cleared as soon as no back end lives.
    clearing: bool,
    /// A front end that may come in after that.
    pub(crate) next: Option<Front>,
    /// The memory of the front end that has gone, until another comes in: its VMM may be about to end.
    left: Vec<(Region, Arc<OwnedFd>)>,
}

/// Whether there is a back end.
pub(crate) enum BackEnd {
    Living(Back),
    /// The next one starts at this moment.
    Due(Instant),
}

impl Keeper {
    /// Makes the sockets and the shared memory.
    pub(crate) fn new(args: Args) -> anyhow::Result<Self> {
        let folder = Folder::claim(&args.dir)?;
        if args.maxmem == Bytes::ZERO {
            bail!("--maxmem is 0; it is what the guest is told it has");
        }
        let ledger_frames = Ledger::frames_for(args.maxmem.plus(BESIDE));
        let ledger = Ledger::words_needed(ledger_frames, ledger_frames)
            .with_context(|| format!("there is no ledger for {} of guest memory", args.maxmem))?;
        let words = Layout::words_needed(DEVICES.len(), ledger)?;
        let (words, memory) = SharedWords::create("plimsoll-keeper", words)?;
        let layout = Layout::format(words, DEVICES.len(), ledger)?;
        let mut slots = Vec::new();
        for name in DEVICES {
            let socket = Socket::listen(&folder, name)?;
            slots.push(Slot {
                socket,
                device: Device::default(),
                clearing: false,
                next: None,
                left: Vec::new(),
            });
        }
        let control = Some(Socket::listen(&folder, CONTROL)?);
        let line = if args.agent_line { Some(sockets::agent_line()?) } else { None };
        let now = Instant::now();
        Ok(Self {
            deaths: Deaths::new(args.give_up_after),
            connect_by: Some(now + Duration::from_secs(args.connect_timeout)),
            args,
            folder,
            memory,
            layout,
            ledger_frames,
            control,
            line,
            poke: Notifier::new()?,
            slots,
            back: BackEnd::Due(now),
            vmm: None,
            signals: sockets::signals()?,
            log: Throttle::default(),
        })
    }

    /// Keeps until the VMM has ended, or somebody says so.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        tracing::info!(vm = %self.args.name, dir = %self.args.dir.display(), "keeper is up");
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
                        self.take_memory_back();
                        return Ok(());
                    }
                    Event::Poke => self.config_changed(),
                    Event::BackGone => self.back_gone(now)?,
                    Event::Connect(index) => self.accept(index, now),
                    Event::Front(index) => self.with_front(index, now, Device::front_ready),
                    Event::Requests(index) => self.with_front(index, now, |device, _| {
                        device.tell_change();
                        Ok(())
                    }),
                    Event::Link(index) => self.link_ready(index, now),
                }
            }
            self.expire(now)?;
        }
    }

    fn expire(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.connect_by.is_some_and(|by| now >= by) {
            bail!("no VMM has connected within {} seconds", self.args.connect_timeout);
        }
        for index in 0..self.slots.len() {
            self.with_front(index, now, Device::expire);
            if self.slots.get(index).is_some_and(|slot| slot.device.is_hung(now)) {
                tracing::error!("the back end does not answer and is killed");
                self.kill_back();
            }
        }
        Ok(())
    }

    /// Somebody connects to a device. One front end at a time; the process that is connected may connect anew, as
    /// User Mode Linux does when its guest reboots.
    fn accept(&mut self, index: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(slot.socket.listener(), flags) else { return };
        let peer = match plimsoll_shm::peer(&socket) {
            Ok(peer) if peer.is_trusted_user() => peer,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a stranger");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "refused a connection");
                return;
            }
        };
        let front = Front::new(socket, peer.pid, now);
        if slot.clearing {
            slot.next = Some(front);
            return;
        }
        match slot.device.front().map(|old| old.pid) {
            None => self.let_in(index, front),
            Some(pid) if pid == peer.pid => {
                slot.next = Some(front);
                self.front_gone(index, now);
            }
            Some(pid) => {
                if let Some(more) = self.log.pass(now) {
                    tracing::warn!(pid = peer.pid, connected = pid, more, "refused a second front end");
                }
            }
        }
    }

    fn let_in(&mut self, index: usize, front: Front) {
        if self.vmm.is_none() {
            match plimsoll_shm::process_handle(front.pid) {
                Ok(handle) => self.vmm = Some(handle),
                // It has ended already, or lives where its number means nothing here: its connection has to do.
                Err(error) => tracing::warn!(pid = front.pid, %error, "cannot watch the VMM"),
            }
        }
        self.connect_by = None;
        tracing::info!(pid = front.pid, "front end connected");
        self.layout.connected(index);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.left.clear();
            slot.device.connect(front);
        }
    }

    /// Does something with a device on behalf of its front end, which may end it.
    fn with_front(
        &mut self,
        index: usize,
        now: Instant,
        act: impl FnOnce(&mut Device, Instant) -> Result<(), End>,
    ) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if let Err(end) = act(&mut slot.device, now) {
            self.front_ended(index, &end, now);
        }
    }

    fn front_ended(&mut self, index: usize, end: &End, now: Instant) {
        if matches!(end, End::Left) {
            tracing::info!("front end left");
        } else if let Some(more) = self.log.pass(now) {
            tracing::warn!(%end, more, "hung up on the front end");
        }
        self.front_gone(index, now);
    }

    /// A front end is gone. The back end has its guest's memory mapped and its rings in hand: it goes too.
    fn front_gone(&mut self, index: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if self.args.memory_ends_with_vmm {
            slot.left = slot.device.memory().to_vec();
        }
        slot.device.disconnect();
        slot.clearing = true;
        if self.vmm.is_none() {
            self.connect_by = Some(now + Duration::from_secs(self.args.connect_timeout));
        }
        match &mut self.back {
            BackEnd::Living(back) => {
                back.dismissed = true;
                back.kill();
            }
            BackEnd::Due(_) => {
                // Another guest, another chance.
                self.clear();
                self.deaths = Deaths::new(self.args.give_up_after);
                self.back = BackEnd::Due(now);
            }
        }
    }

    /// While no back end lives: marks what gone front ends left, and lets in who waits.
    fn clear(&mut self) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.clearing) else { continue };
            slot.clearing = false;
            let next = slot.next.take();
            self.layout.disconnected(index);
            if let Some(front) = next {
                self.let_in(index, front);
            }
        }
    }

    /// The VMM has ended, and what it left of its guest's memory is of use to nobody.
    fn take_memory_back(&self) {
        if self.args.memory_ends_with_vmm {
            let tables = self.slots.iter().flat_map(|slot| [slot.device.memory(), &slot.left]);
            tables.for_each(leavings::discard);
        }
    }

    fn config_changed(&mut self) {
        self.poke.take();
        self.slots.iter_mut().for_each(|slot| slot.device.tell_change());
    }

    fn link_ready(&mut self, index: usize, now: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        match slot.device.link_ready(now) {
            Ok(Ok(())) => {}
            Ok(Err(end)) => self.front_ended(index, &end, now),
            Err(useless) => self.useless(&useless),
        }
    }

    fn useless(&mut self, why: &Useless) {
        tracing::debug!(%why, "the back end is of no use");
        self.kill_back();
    }

    fn kill_back(&mut self) {
        if let BackEnd::Living(back) = &mut self.back {
            back.kill();
        }
    }

    /// The back end's process has ended.
    fn back_gone(&mut self, now: Instant) -> anyhow::Result<()> {
        let BackEnd::Living(back) = &mut self.back else { return Ok(()) };
        let (how, pid, dismissed) = (back.reap(), back.pid(), back.dismissed);
        self.back = BackEnd::Due(now);
        if !dismissed {
            tracing::warn!(%how, pid, "the back end died");
        }
        for index in 0..self.slots.len() {
            self.with_front(index, now, Device::unlink);
        }
        self.clear();
        if dismissed { Ok(()) } else { self.next_start(now) }
    }

    fn next_start(&mut self, now: Instant) -> anyhow::Result<()> {
        match self.deaths.count(now) {
            Next::At(at) => self.back = BackEnd::Due(at),
            Next::Rest(until) => {
                tracing::error!(
                    deaths = self.args.give_up_after,
                    "the back end dies again and again; the VM goes on with the balloon it has, the device rests"
                );
                self.back = BackEnd::Due(until);
                self.control = None;
                for index in 0..self.slots.len() {
                    self.with_front(index, now, Device::rest);
                }
                if self.slots.iter().all(|slot| slot.device.front().is_none() && slot.next.is_none()) {
                    bail!("the back end cannot be kept alive, and no VMM is connected");
                }
            }
        }
        Ok(())
    }

    fn start_if_due(&mut self, now: Instant) -> anyhow::Result<()> {
        if !matches!(self.back, BackEnd::Due(at) if now >= at) {
            return Ok(());
        }
        self.start(now).or_else(|error| {
            tracing::error!(error = format!("{error:#}"), "no back end");
            self.kill_back();
            if matches!(self.back, BackEnd::Living(_)) { Ok(()) } else { self.next_start(now) }
        })
    }

    fn start(&mut self, now: Instant) -> anyhow::Result<()> {
        let control = match &self.control {
            Some(control) => control,
            None => self.control.insert(Socket::listen(&self.folder, CONTROL)?),
        };
        let dup =
            |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context("cannot pass a descriptor on");
        let mut ours = Vec::new();
        let mut devices = Vec::new();
        for _ in &self.slots {
            let (mine, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
            ours.push(OwnedFd::from(mine));
            devices.push(OwnedFd::from(theirs));
        }
        let handover = Handover {
            memory: dup(self.memory.as_fd())?,
            control: dup(control.listener().as_fd())?,
            poke: dup(self.poke.as_fd())?,
            line: self.line.as_ref().map(|line| dup(line.as_fd())).transpose()?,
            devices,
        };
        self.layout.begin_epoch();
        let back = Back::start(&self.args, self.ledger_frames, &handover)?;
        tracing::debug!(pid = back.pid(), epoch = self.layout.epoch(), "started a back end");
        self.back = BackEnd::Living(back);
        for (slot, socket) in self.slots.iter_mut().zip(ours) {
            slot.device.link(socket, now)?;
        }
        Ok(())
    }
}
