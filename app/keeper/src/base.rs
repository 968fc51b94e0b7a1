//! What keepers of both kinds of VM have: the folder, the shared memory, the back end, the VMM's process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use plimsoll_frames::Ledger;
use plimsoll_shm::{SharedWords, ShmError};
use plimsoll_units::Bytes;
use plimsoll_vhost_user::handover::{Handover, HandoverError, Work, hears_serving};
use plimsoll_vhost_user::layout::Layout;
use plimsoll_vhost_user::{Polls, Throttle};
use rustix::event::PollFlags;

use crate::args::Args;
use crate::back::{Back, Deaths, Next};
use crate::keeper::Event;
use crate::sockets::{Folder, Socket};

/// The daemon's way to the back end.
const CONTROL: &str = "control.sock";

/// What every keeper keeps.
pub(crate) struct Base {
    pub(crate) args: Args,
    pub(crate) layout: Layout,
    pub(crate) log: Throttle,
    memory: OwnedFd,
    ledger_frames: u32,
    control: Option<Socket>,
    back: BackEnd,
    deaths: Deaths,
    /// The process that connected first.
    vmm: Option<OwnedFd>,
    /// When somebody must have connected; none while it is known whom to watch.
    connect_by: Option<Instant>,
    /// Goes last: until then no other keeper takes the places of these sockets.
    folder: Folder,
}

/// Whether there is a back end.
enum BackEnd {
    Living(Back),
    /// The next one starts at this moment.
    Due(Instant),
}

impl Base {
    /// Claims the folder, and lays out shared memory for so many devices and a ledger of files of so many bytes together. After
    /// too many deaths there is no back end for the time of `rest`.
    pub(crate) fn new(args: Args, n_devices: usize, files: Bytes, rest: Duration) -> anyhow::Result<Self> {
        let folder = Folder::claim(&args.dir)?;
        let ledger_frames = Ledger::frames_for(files);
        let ledger = Ledger::words_needed(ledger_frames, ledger_frames)
            .with_context(|| format!("there is no ledger for {} of guest memory", args.maxmem))?;
        let words = Layout::words_needed(n_devices, ledger)?;
        let (words, memory) = SharedWords::create("plimsoll-keeper", words)?;
        let layout = Layout::format(words, n_devices, ledger)?;
        let now = Instant::now();
        Ok(Self {
            deaths: Deaths::new(args.give_up_after, rest),
            connect_by: Some(now + Duration::from_secs(args.connect_timeout)),
            args,
            layout,
            log: Throttle::default(),
            memory,
            ledger_frames,
            control: None,
            back: BackEnd::Due(now),
            vmm: None,
            folder,
        })
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Listens for the daemon, from now on and also while no back end lives.
    pub(crate) fn open_control(&mut self) -> anyhow::Result<BorrowedFd<'_>> {
        let control = match self.control.take() {
            Some(control) => control,
            None => Socket::listen(&self.folder, CONTROL)?,
        };
        Ok(self.control.insert(control).listener())
    }

    /// What to wait for.
    pub(crate) fn watch<'a, E>(&'a self, polls: &mut Polls<'a, Event<E>>) {
        if let Some(vmm) = &self.vmm {
            polls.add(vmm.as_fd(), PollFlags::IN, Event::VmmGone);
        }
        if let BackEnd::Living(back) = &self.back {
            polls.add(back.handle(), PollFlags::IN, Event::BackGone);
        }
    }

    /// What to wait for until the back end has said that it serves, see [`Base::hears_serving`].
    pub(crate) fn serving_poll(&self) -> Option<BorrowedFd<'_>> {
        if let BackEnd::Living(back) = &self.back { Some(back.input()) } else { None }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let due = if let BackEnd::Due(at) = self.back { Some(at) } else { None };
        due.into_iter().chain(self.connect_by).min()
    }

    /// Nobody has connected, and should have.
    pub(crate) fn is_alone(&self, now: Instant) -> bool {
        self.connect_by.is_some_and(|by| now >= by)
    }

    /// A process has connected: if it is the first, it is the VMM, with whom all ends.
    ///
    /// # Errors
    /// It has ended already, or lives where its number means nothing here. It is not waited for any more all the same.
    pub(crate) fn connected(&mut self, pid: u32) -> Result<(), ShmError> {
        self.connect_by = None;
        if self.vmm.is_none() {
            self.vmm = Some(plimsoll_shm::process_handle(pid)?);
        }
        Ok(())
    }

    /// Whoever was connected is not any more. If no process is watched, another has to connect.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        if self.vmm.is_none() {
            self.connect_by = Some(now + Duration::from_secs(self.args.connect_timeout));
        }
    }

    /// The back end, if there is one, holds what is not to be served any longer: it goes, and another comes. True if there was none; what
    /// belonged to it can be cleared then.
    pub(crate) fn replace_back(&mut self, now: Instant) -> bool {
        match &mut self.back {
            BackEnd::Living(back) => {
                back.dismiss();
                false
            }
            BackEnd::Due(_) => {
                // Another guest, another chance.
                self.deaths.forget();
                self.back = BackEnd::Due(now);
                true
            }
        }
    }

    pub(crate) fn kill_back(&mut self) {
        if let BackEnd::Living(back) = &mut self.back {
            back.kill();
        }
    }

    /// The back end's process has ended. Returns whether that was our doing, if there was one.
    pub(crate) fn reap(&mut self, now: Instant) -> Option<bool> {
        let BackEnd::Living(back) = &mut self.back else { return None };
        let (how, pid, dismissed) = (back.reap(), back.pid(), back.is_dismissed());
        self.back = BackEnd::Due(now);
        if !dismissed {
            tracing::warn!(%how, pid, "the back end died");
        }
        Some(dismissed)
    }

    /// A back end has died: when the next one comes. The control socket is gone while none does.
    pub(crate) fn next_start(&mut self, now: Instant) -> Next {
        let next = self.deaths.count(now);
        match next {
            Next::At(at) => self.back = BackEnd::Due(at),
            Next::Rest(until) => {
                self.back = BackEnd::Due(until);
                self.control = None;
            }
        }
        next
    }

    pub(crate) fn is_start_due(&self, now: Instant) -> bool {
        matches!(self.back, BackEnd::Due(at) if now >= at)
    }

    pub(crate) fn has_back(&self) -> bool {
        matches!(self.back, BackEnd::Living(_))
    }

    /// Starts a back end for this work.
    pub(crate) fn start_back(&mut self, work: Work) -> anyhow::Result<()> {
        let control = copy(self.open_control()?)?;
        let handover = Handover { memory: copy(self.memory.as_fd())?, control, work };
        self.layout.begin_epoch();
        let back = Back::start(&self.args, self.ledger_frames, &handover)?;
        tracing::debug!(pid = back.pid(), epoch = self.layout.epoch(), "started a back end");
        self.back = BackEnd::Living(back);
        Ok(())
    }

    /// Whether the back end has said that it serves.
    pub(crate) fn hears_serving(&self) -> Result<bool, HandoverError> {
        if let BackEnd::Living(back) = &self.back { hears_serving(back.input()) } else { Ok(false) }
    }
}

/// Another descriptor of the same, for a back end.
pub(crate) fn copy(fd: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    fd.try_clone_to_owned().context("cannot pass a descriptor on")
}
