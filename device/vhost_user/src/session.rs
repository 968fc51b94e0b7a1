//! A front end's dealings with one device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use plimsoll_shm::{SharedWords, is_broken};
use rustix::io::Errno;

use crate::layout::MAX_RINGS;
use crate::slot::{Slot, poke};
use crate::wire::{Answer, F_PROTOCOL_FEATURES, F_VERSION_1, Region, Request, protocol};
use crate::{Device, Memory, MemoryError, Outcome, RingError};

/// Why a request was not carried out. The session goes on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No such ring.
    #[error("there is no ring {0}")]
    NoSuchRing(u32),
    /// A size, an address or a base for a ring that runs.
    #[error("ring {0} is running and cannot be changed")]
    Running(u32),
    /// Features that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// The ring cannot be what it is said to be.
    #[error("ring {ring}: {source}")]
    Ring {
        /// Which.
        ring: u32,
        /// Why.
        source: RingError,
    },
    /// The memory table cannot be used; the guest has no memory now.
    #[error("memory table: {0}")]
    Memory(#[from] MemoryError),
    /// Nothing that was offered.
    #[error("request {0} is not known")]
    Unknown(u32),
}

/// One device, its rings, and the guest's memory. One thread owns it, so that a ring which was stopped has no
/// work under way.
#[derive(Debug)]
pub struct Session<D> {
    device: D,
    rings: Vec<Slot>,
    memory: Option<Memory>,
    memory_limit: u64,
    acked: Option<u64>,
    protocol: u64,
    breaks: u64,
}

impl<D: Device> Session<D> {
    /// A session that goes on where these rings' words stand. The guest may have `memory_limit` bytes at
    /// most. There are as many rings as words for them, or as the device has queues.
    pub fn new(device: D, words: impl IntoIterator<Item = SharedWords>, memory_limit: u64) -> Self {
        let queues = usize::from(device.queues()).min(MAX_RINGS);
        Self {
            device,
            rings: words.into_iter().take(queues).map(Slot::new).collect(),
            memory: None,
            memory_limit,
            acked: None,
            protocol: 0,
            breaks: 0,
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The guest's memory, if it was told.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Whether a ring has been started and runs.
    pub fn is_running(&self, ring: u16) -> bool {
        self.rings.get(usize::from(ring)).is_some_and(|slot| slot.ring.is_started())
    }

    /// How often a guest broke a ring.
    pub fn breaks(&self) -> u64 {
        self.breaks
    }

    /// Whether the front end negotiated that requests which ask for it are acknowledged.
    pub fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    /// The features offered, those of the transport included.
    pub fn features(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_PROTOCOL_FEATURES
    }

    /// Carries out a request.
    ///
    /// # Errors
    /// Why it was not carried out. Requests whose answer has content never fail.
    pub fn request(&mut self, request: Request) -> Result<Answer, SessionError> {
        match request {
            Request::GetFeatures => {
                self.stop_plain();
                return Ok(Answer::Number(self.features()));
            }
            Request::GetProtocolFeatures => {
                return Ok(Answer::Number(protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG));
            }
            Request::GetQueueNum => {
                return Ok(Answer::Number(u64::try_from(self.rings.len()).unwrap_or(0)));
            }
            Request::GetVringBase { ring } => return Ok(self.stand(ring)),
            Request::GetConfig { offset, length, flags } => {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                self.device.read_config(offset, &mut bytes);
                return Ok(Answer::Config { offset, flags, bytes });
            }
            Request::SetConfig { offset, bytes, .. } => self.device.write_config(offset, &bytes),
            Request::SetFeatures(acked) => self.set_features(acked)?,
            Request::SetProtocolFeatures(features) => self.protocol = features,
            Request::SetMemTable(table) => self.set_memory(table)?,
            Request::SetVringNum { ring, num } => self.resting(ring)?.set_size(ring, num)?,
            Request::SetVringAddr { ring, at } => self.resting(ring)?.at = Some(at),
            Request::SetVringBase { ring, base } => {
                let slot = self.resting(ring)?;
                slot.ring.set_base(base);
                slot.broken = false;
            }
            Request::SetVringFd { which, ring, fd } => self.slot(ring)?.set_fd(which, fd),
            Request::SetVringEnable { ring, on } => {
                let slot = self.slot(ring)?;
                slot.enabled = Some(on);
                slot.broken = false;
            }
            Request::SetOwner | Request::ResetOwner | Request::SetBackendReqFd(_) => {}
            Request::Unknown(number) => return Err(SessionError::Unknown(number)),
        }
        self.settle();
        Ok(Answer::Done)
    }

    /// The descriptors that announce work, and the rings they belong to.
    pub fn kicks(&self) -> impl Iterator<Item = (u16, BorrowedFd<'_>)> {
        (0u16..).zip(&self.rings).filter(|(_, slot)| slot.ring.is_started()).filter_map(|(ring, slot)| {
            let kick = slot.kick.as_ref()?;
            Some((ring, kick.as_fd()))
        })
    }

    /// The descriptor of a ring is ready: works on the ring. A descriptor that cannot be read is given up.
    pub fn kicked(&mut self, ring: u16) {
        let Some(slot) = self.rings.get_mut(usize::from(ring)) else { return };
        let Some(kick) = &slot.kick else { return };
        match rustix::io::read(kick, &mut [0; 8]) {
            Ok(8) | Err(Errno::AGAIN | Errno::INTR) => self.work(ring),
            // End of file, or an error: it would be ready for ever.
            Ok(_) | Err(_) => {
                slot.kick = None;
                self.settle();
            }
        }
    }

    /// The rings whose last turn ended before their work did. They are to be worked on soon.
    pub fn unfinished(&self) -> Vec<u16> {
        let rings = (0u16..).zip(&self.rings).filter(|(_, slot)| slot.unfinished);
        rings.map(|(ring, _)| ring).collect()
    }

    /// Works on a ring for one turn.
    pub fn work(&mut self, ring: u16) {
        let Self { device, rings, memory, .. } = self;
        let (Some(slot), Some(memory)) = (rings.get_mut(usize::from(ring)), memory) else { return };
        let mut returned = false;
        let end = slot.turn(device, ring, memory, &mut returned);
        if returned {
            poke(slot.call.as_ref());
        }
        if let Err(fault) = end {
            self.broke(ring, fault);
        }
    }

    /// Returns a chain that the device held. False if it was not held, or its driver is gone.
    pub fn complete(&mut self, ring: u16, head: u16, written: u32) -> bool {
        let slot = self.rings.get_mut(usize::from(ring));
        if let Some(slot) = slot.filter(|slot| slot.call.as_ref().is_some_and(is_broken)) {
            // Nobody reads User Mode Linux' call pipe any more, so nobody owns the ring either.
            slot.kick = None;
            self.settle();
        }
        let (Some(slot), Some(memory)) = (self.rings.get_mut(usize::from(ring)), &self.memory) else {
            return false;
        };
        match slot.ring.complete(memory.map_of_guest(), head, written) {
            Ok(true) => {
                poke(slot.call.as_ref());
                true
            }
            Ok(false) => false,
            Err(fault) => {
                self.broke(ring, fault);
                false
            }
        }
    }

    /// What the guest broke since this was last asked, for the log: at most one fault a ring.
    pub fn take_faults(&mut self) -> Vec<(u16, RingError)> {
        let faults = (0u16..).zip(&mut self.rings);
        faults.filter_map(|(ring, slot)| Some((ring, slot.fault.take()?))).collect()
    }

    fn slot(&mut self, ring: u32) -> Result<&mut Slot, SessionError> {
        let index = usize::try_from(ring).unwrap_or(usize::MAX);
        self.rings.get_mut(index).ok_or(SessionError::NoSuchRing(ring))
    }

    /// A ring that may be changed.
    fn resting(&mut self, ring: u32) -> Result<&mut Slot, SessionError> {
        let slot = self.slot(ring)?;
        if slot.ring.is_started() { Err(SessionError::Running(ring)) } else { Ok(slot) }
    }

    fn set_features(&mut self, acked: u64) -> Result<(), SessionError> {
        let foreign = acked & !self.features();
        if foreign != 0 {
            return Err(SessionError::Features(foreign));
        }
        if acked & F_PROTOCOL_FEATURES == 0 {
            // Rings are enabled from now on as soon as they have a kick (vhost-user.rst, "Ring states"). User Mode
            // Linux says its features twice, the second time without bit 30, and relies on this; a ring
            // that its last driver disabled waits for the kick of the next.
            for slot in &mut self.rings {
                if slot.enabled.take() == Some(false) {
                    slot.kick = None;
                }
            }
        }
        self.acked = Some(acked);
        self.device.set_features(acked & !F_PROTOCOL_FEATURES);
        Ok(())
    }

    /// Takes over a memory table. If it cannot be used there is no memory: what the old one said is no longer
    /// true, and discarding by it could hit what is now somebody else's.
    fn set_memory(&mut self, table: Vec<(Region, Arc<OwnedFd>)>) -> Result<(), SessionError> {
        let memory = Memory::map(table, self.memory_limit).and_then(|memory| {
            self.device.set_memory(memory.regions()).map_err(MemoryError::Device)?;
            Ok(memory)
        });
        match memory {
            Ok(memory) => self.memory = Some(memory),
            Err(error) => {
                // Without regions there is nothing to refuse.
                let _ = self.device.set_memory(&[]);
                self.memory = None;
                self.settle();
                return Err(error.into());
            }
        }
        let Some(memory) = &self.memory else { return Ok(()) };
        let mut lost = Vec::new();
        for (ring, slot) in (0u16..).zip(&mut self.rings).filter(|(_, slot)| slot.ring.is_started()) {
            let moved = slot
                .place(memory)
                .ok_or(RingError::Outside)
                .and_then(|place| slot.ring.relocate(place, memory.map_of_guest()));
            lost.extend(moved.err().map(|fault| (ring, fault)));
        }
        lost.into_iter().for_each(|(ring, fault)| self.broke(ring, fault));
        Ok(())
    }

    /// Stops a ring and says where it stands; it starts again only with a new kick descriptor.
    fn stand(&mut self, ring: u32) -> Answer {
        let base = match self.slot(ring) {
            Ok(slot) => {
                slot.kick = None;
                slot.broken = false;
                slot.ring.stands_at()
            }
            Err(_) => 0,
        };
        self.settle();
        Answer::Base { ring, base: u32::from(base) }
    }

    /// Without bit 30 a front end has no word for "stop". User Mode Linux, which always gets there, asks for the features
    /// instead and waits for the answer before it frees its rings (arch/um/drivers/virtio_uml.c, `vu_del_vqs`).
    /// Not to stop would be to write to memory that the guest uses for something else.
    fn stop_plain(&mut self) {
        if self.is_plain() {
            self.rings.iter_mut().for_each(|slot| slot.kick = None);
            self.settle();
        }
    }

    /// Whether the features in force are without bit 30, so that rings are enabled by their kicks alone.
    fn is_plain(&self) -> bool {
        self.acked.is_some_and(|acked| acked & F_PROTOCOL_FEATURES == 0)
    }

    /// Starts what can run and stops what cannot.
    fn settle(&mut self) {
        for ring in 0..u16::try_from(self.rings.len()).unwrap_or(0) {
            let runnable = self.is_runnable(ring);
            if runnable == self.is_running(ring) {
                continue;
            }
            if !runnable {
                self.stop(ring);
            } else if let Err(fault) = self.start(ring) {
                self.broke(ring, fault);
            }
        }
    }

    fn is_runnable(&self, ring: u16) -> bool {
        let Some(slot) = self.rings.get(usize::from(ring)) else { return false };
        let enabled = slot.enabled.unwrap_or(self.is_plain());
        let ready = slot.size != 0 && slot.at.is_some() && slot.kick.is_some() && !slot.broken;
        enabled && ready && self.memory.is_some() && self.acked.is_some()
    }

    /// Starts a ring: first what was in flight when a process before this one was killed, then what has come since;
    /// nobody will announce that again.
    fn start(&mut self, ring: u16) -> Result<(), RingError> {
        let Self { device, rings, memory, .. } = self;
        let (Some(slot), Some(memory)) = (rings.get_mut(usize::from(ring)), memory) else {
            return Ok(());
        };
        let place = slot.place(memory).ok_or(RingError::Outside)?;
        let fresh = slot.ring.is_fresh();
        device.started(ring, fresh && slot.ring.base() == 0);
        let heads = slot.ring.start(place, memory.map_of_guest())?;
        if !heads.is_empty() {
            let (map, scratch) = memory.with_scratch().ok_or(RingError::NoRoom)?;
            for head in heads {
                let chain = slot.ring.recover(head, &map, scratch)?;
                if let Outcome::Complete { written } = device.handle(ring, chain) {
                    slot.ring.complete(&map, head, written)?;
                }
            }
        }
        if !fresh {
            // The process before may have died between returning a chain and saying so.
            poke(slot.call.as_ref());
        }
        self.work(ring);
        Ok(())
    }

    fn stop(&mut self, ring: u16) {
        if let Some(slot) = self.rings.get_mut(usize::from(ring)) {
            slot.ring.stop();
            slot.unfinished = false;
            self.device.stopped(ring);
        }
    }

    /// A guest broke a ring: it rests until it is set up anew.
    fn broke(&mut self, ring: u16, fault: RingError) {
        self.breaks = self.breaks.saturating_add(1);
        self.stop(ring);
        if let Some(slot) = self.rings.get_mut(usize::from(ring)) {
            poke(slot.err.as_ref());
            slot.broken = true;
            slot.fault = Some(fault);
        }
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod test;
