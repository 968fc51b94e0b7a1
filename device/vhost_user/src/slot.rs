//! A ring with everything the front end said of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use plimsoll_shm::{SharedWords, is_ready};
use rustix::event::PollFlags;
use rustix::fs::OFlags;

use crate::layout::MAX_RING_SIZE;
use crate::wire::{Code, RingAddresses};
use crate::{Device, Memory, Outcome, Ring, RingError, RingPlace, SessionError};

/// Chains of one ring that are worked on before others have their turn.
const TURN: u32 = 16;

/// A ring and what the front end said of it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) ring: Ring<SharedWords>,
    pub(crate) size: u16,
    pub(crate) at: Option<RingAddresses>,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    pub(crate) call: Option<Arc<OwnedFd>>,
    pub(crate) err: Option<Arc<OwnedFd>>,
    pub(crate) enabled: Option<bool>,
    /// Its last turn ended before its work did.
    pub(crate) unfinished: bool,
    /// The guest broke it; it rests until it is set up anew.
    pub(crate) broken: bool,
    /// How, until somebody asks.
    pub(crate) fault: Option<RingError>,
}

impl Slot {
    /// A ring that these words tell of, of which the front end has said nothing yet.
    pub(crate) fn new(words: SharedWords) -> Self {
        Self {
            ring: Ring::attach(words),
            size: 0,
            at: None,
            kick: None,
            call: None,
            err: None,
            enabled: None,
            unfinished: false,
            broken: false,
            fault: None,
        }
    }

    pub(crate) fn set_size(&mut self, ring: u32, num: u32) -> Result<(), SessionError> {
        let size = u16::try_from(num).ok().filter(|size| *size <= MAX_RING_SIZE && size.is_power_of_two());
        self.size = size.ok_or(SessionError::Ring { ring, source: RingError::Size(num) })?;
        Ok(())
    }

    pub(crate) fn set_fd(&mut self, which: Code, fd: Option<Arc<OwnedFd>>) {
        if let Some(fd) = &fd {
            // The front end may give a descriptor on which reading or writing waits. Where this is refused, the
            // checks before each read and write have to do.
            let _ =
                rustix::fs::fcntl_getfl(fd).and_then(|f| rustix::fs::fcntl_setfl(fd, f | OFlags::NONBLOCK));
        }
        if which == Code::SetVringKick {
            self.kick = fd;
        } else if which == Code::SetVringCall {
            self.call = fd;
        } else {
            self.err = fd;
        }
    }

    pub(crate) fn place(&self, memory: &Memory) -> Option<RingPlace> {
        let at = self.at?;
        Some(RingPlace {
            descriptors: memory.guest_address(at.descriptors)?,
            available: memory.guest_address(at.available)?,
            used: memory.guest_address(at.used)?,
            size: self.size,
        })
    }

    pub(crate) fn turn(
        &mut self,
        device: &mut impl Device,
        ring: u16,
        memory: &Memory,
        returned: &mut bool,
    ) -> Result<(), RingError> {
        let map = memory.map_of_guest();
        self.unfinished = false;
        for _ in 0..TURN {
            let Some(chain) = self.ring.pop(map)? else { return Ok(()) };
            let head = chain.head_index();
            if let Outcome::Complete { written } = device.handle(ring, chain) {
                *returned |= self.ring.complete(map, head, written)?;
            }
        }
        self.unfinished = true;
        Ok(())
    }
}

/// Tells the front end by a descriptor of its own, which may be full, closed, or no event counter at all.
pub(crate) fn poke(fd: Option<&Arc<OwnedFd>>) {
    if let Some(fd) = fd
        && is_ready(fd, PollFlags::OUT)
    {
        // Full means that it has yet to look; closed (User Mode Linux closes its end first) that it never will.
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }
}
