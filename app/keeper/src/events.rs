//! Waiting for what happens next.

use std::time::Instant;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::front::Front;
use crate::keeper::{BackEnd, Keeper};

/// What became ready.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Signal,
    VmmGone,
    Poke,
    BackGone,
    Connect(usize),
    Front(usize),
    Requests(usize),
    Link(usize),
}

impl Keeper {
    /// Waits until something is ready or a deadline has come.
    pub(crate) fn wait(&self) -> anyhow::Result<Vec<Event>> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.poke, PollFlags::IN)];
        let mut events = vec![Event::Signal, Event::Poke];
        if let Some(vmm) = &self.vmm {
            fds.push(PollFd::new(vmm, PollFlags::IN));
            events.push(Event::VmmGone);
        }
        if let BackEnd::Living(back) = &self.back {
            fds.push(PollFd::from_borrowed_fd(back.handle(), PollFlags::IN));
            events.push(Event::BackGone);
        }
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.next.is_none() {
                fds.push(PollFd::new(slot.socket.listener(), PollFlags::IN));
                events.push(Event::Connect(index));
            }
            if let Some(link) = slot.device.link_poll() {
                fds.push(PollFd::from_borrowed_fd(link, PollFlags::IN));
                events.push(Event::Link(index));
            }
            if let Some((socket, interest)) = slot.device.front_poll() {
                fds.push(PollFd::from_borrowed_fd(socket, interest));
                events.push(Event::Front(index));
            }
            if let Some(requests) = slot.device.front().and_then(Front::requests_waiting) {
                fds.push(PollFd::from_borrowed_fd(requests, PollFlags::OUT));
                events.push(Event::Requests(index));
            }
        }
        let timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
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

    fn deadline(&self) -> Option<Instant> {
        let due = if let BackEnd::Due(at) = self.back { Some(at) } else { None };
        let devices = self.slots.iter().filter_map(|slot| slot.device.deadline());
        devices.chain(due).chain(self.connect_by).min()
    }
}
