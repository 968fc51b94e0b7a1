//! A virtqueue that goes on where a killed process left it.
//!
//! A chain is *executed* at least once and *completed* exactly once, whatever store the process is killed
//! at. To that end a few words outside the guest's reach say how far the ring has come, in the order of the
//! vhost-user in-flight chapter:
//!
//! 1. the chain's head is marked in flight, with a number that keeps the order of arrival;
//! 2. the device executes the chain;
//! 3. the head is noted as the last one completed, and put into the used ring: the guest sees it;
//! 4. the mark is taken away; 5. the words' own used index follows the ring's.
//!
//! A successor finds the ring's used index one ahead of the words' own if death came between 3 and 5: then it
//! finishes 4 and 5. Whatever is still marked is executed again. Nothing else is: re-running a chain that the
//! guest has back would discard memory which the guest uses again.
//!
//! The ring's own used index lies in the guest's memory. A guest that changes it is not believed.

use std::num::Wrapping;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::layout::MAX_RING_SIZE;

/// Positions of a ring's words. The heads in flight follow from [`IN_FLIGHT`] on, one word each: 0, or twice the
/// number of arrival plus 1.
const STATE: usize = 0;
const USED: usize = 1;
const LAST: usize = 2;
const IN_FLIGHT: usize = 8;

/// [`STATE`]: in the upper half [`RUNNING`] or not; in the lower half the base to begin from, or for a running
/// ring by how much the next available entry is ahead of used and in flight together.
const RUNNING: u64 = 1 << 32;

/// Why a ring cannot go on. The guest has broken it, and has to set it up anew.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Its parts are not in the guest's memory.
    #[error("the ring is not inside the guest's memory")]
    Outside,
    /// A size that no ring has: not a power of two, or more than 256.
    #[error("a ring of {0} descriptors is not possible; it has a power of two, at most 256")]
    Size(u32),
    /// The available index is further ahead than the ring has entries.
    #[error("the available ring cannot be followed: {0}")]
    Available(virtio_queue::Error),
    /// A head that is no descriptor, or is with the device already.
    #[error("descriptor {0} was made available, but is outside the table or already in flight")]
    Head(u16),
    /// The used ring could not be written.
    #[error("descriptor {head} cannot be returned: {source}")]
    Used {
        /// The chain's head.
        head: u16,
        /// Why.
        source: virtio_queue::Error,
    },
    /// There is no place in the address space from which to recover a chain.
    #[error("the guest's memory leaves no room to recover the ring")]
    NoRoom,
}

/// Where a ring is in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// The available ring.
    pub available: GuestAddress,
    /// The used ring.
    pub used: GuestAddress,
    /// How many descriptors.
    pub size: u16,
}

/// See the module's documentation. `W` is [`crate::layout::RING_WORDS`] words, all zero before their first use.
#[derive(Debug)]
pub struct Ring<W> {
    words: W,
    queue: Queue,
    place: Option<RingPlace>,
    in_flight: u16,
    arrivals: u64,
}

impl<W: AsRef<[AtomicU64]>> Ring<W> {
    /// The ring that these words tell of, not yet started.
    pub fn attach(words: W) -> Self {
        // Queue::new refuses only sizes that are no power of two; the default has a size of 0, and every use of
        // it fails until `start` has set it up.
        let queue = Queue::new(MAX_RING_SIZE).unwrap_or_default();
        Self { words, queue, place: None, in_flight: 0, arrivals: 0 }
    }

    /// Whether the next start begins at a base that was set, and not where the ring stood.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.word(STATE) & RUNNING == 0
    }

    /// The base that a fresh ring begins from.
    #[must_use]
    pub fn base(&self) -> u16 {
        low16(self.word(STATE))
    }

    /// Whether it has been started and not stopped.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.place.is_some()
    }

    /// Chains that the device has, held ones included.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Begin anew from this entry of the available ring at the next start, forgetting what was in flight. The
    /// ring is stopped.
    pub fn set_base(&mut self, base: u16) {
        self.put(STATE, u64::from(base));
    }

    /// Starts the ring, anew or where it stood. Returns the heads in flight, in order of arrival: each has to
    /// be executed again, with the chain that [`Ring::recover`] gives.
    ///
    /// # Errors
    /// When it is not inside the memory.
    pub fn start<M: GuestMemory>(&mut self, place: RingPlace, memory: &M) -> Result<Vec<u16>, RingError> {
        let mut queue = set_up(place, memory)?;
        let seen = queue.used_idx(memory, SeqCst).map_err(|_| RingError::Outside)?.0;
        let heads = if self.is_fresh() { self.begin(seen) } else { self.resume(seen, place.size) };
        let used = low16(self.word(USED));
        self.in_flight = u16::try_from(heads.len()).unwrap_or(MAX_RING_SIZE);
        let next = Wrapping(used) + Wrapping(self.in_flight) + Wrapping(low16(self.word(STATE)));
        queue.set_next_used(used);
        queue.set_next_avail(next.0);
        self.queue = queue;
        self.place = Some(place);
        Ok(heads)
    }

    /// The guest's memory was replaced: goes on in the new one.
    ///
    /// # Errors
    /// When the ring is not inside it. It must then be stopped.
    pub fn relocate<M: GuestMemory>(&mut self, place: RingPlace, memory: &M) -> Result<(), RingError> {
        let mut queue = set_up(place, memory)?;
        queue.set_next_used(self.queue.next_used());
        queue.set_next_avail(self.queue.next_avail());
        self.queue = queue;
        self.place = Some(place);
        Ok(())
    }

    /// A fresh start. Only the last store makes it one: death before it means that it is done again.
    fn begin(&mut self, used: u16) -> Vec<u16> {
        for head in 0..usize::from(MAX_RING_SIZE) {
            if self.word(IN_FLIGHT + head) != 0 {
                self.put(IN_FLIGHT + head, 0);
            }
        }
        self.put(USED, u64::from(used));
        let ahead = Wrapping(self.base()) - Wrapping(used);
        self.put(STATE, RUNNING | u64::from(ahead.0));
        self.arrivals = 0;
        Vec::new()
    }

    /// Finishes the completion that death interrupted, if any, and lists what is in flight.
    fn resume(&mut self, seen: u16, size: u16) -> Vec<u16> {
        let used = Wrapping(low16(self.word(USED)));
        if Wrapping(seen) == used + Wrapping(1) {
            let last = usize::from(low16(self.word(LAST)));
            self.put(IN_FLIGHT + last, 0);
            self.put(USED, u64::from(seen));
        }
        let mut heads: Vec<(u64, u16)> = (0..size)
            .map(|head| (self.word(IN_FLIGHT + usize::from(head)), head))
            .filter(|(mark, _)| *mark != 0)
            .collect();
        heads.sort_unstable();
        self.arrivals = heads.last().map_or(0, |(mark, _)| (mark >> 1).saturating_add(1));
        heads.into_iter().map(|(_, head)| head).collect()
    }

    /// The chain of a head that was in flight when the ring was started. `memory` is the guest's with a page of
    /// our own added at `scratch`, where no region of the guest's is: chains can only be had from an
    /// available ring, and the guest's may have been written over since.
    ///
    /// # Errors
    /// When the scratch page is not there.
    pub fn recover<M>(
        &self,
        head: u16,
        memory: M,
        scratch: GuestAddress,
    ) -> Result<DescriptorChain<M>, RingError>
    where
        M: Clone + Deref,
        M::Target: GuestMemory,
    {
        let place = self.place.ok_or(RingError::Outside)?;
        // An available ring of one entry: flags, index 1, the head.
        for (index, field) in [0u16, 1, head].into_iter().enumerate() {
            let at = scratch.0.checked_add(u64::try_from(index * 2).unwrap_or(0)).ok_or(RingError::NoRoom)?;
            memory.write_obj(field.to_le(), GuestAddress(at)).map_err(|_| RingError::NoRoom)?;
        }
        let mut queue = Queue::new(MAX_RING_SIZE).map_err(|_| RingError::NoRoom)?;
        queue.try_set_size(place.size).map_err(|_| RingError::NoRoom)?;
        queue.try_set_desc_table_address(place.descriptors).map_err(|_| RingError::Outside)?;
        queue.try_set_avail_ring_address(scratch).map_err(|_| RingError::NoRoom)?;
        queue.set_ready(true);
        let mut entries = queue.iter(memory).map_err(RingError::Available)?;
        entries.next().ok_or(RingError::NoRoom)
    }

    /// The next chain that the guest has made available, now in flight; none if there is none.
    ///
    /// # Errors
    /// When the guest broke the ring. It must then be stopped.
    pub fn pop<M>(&mut self, memory: M) -> Result<Option<DescriptorChain<M>>, RingError>
    where
        M: Clone + Deref,
        M::Target: GuestMemory,
    {
        let Some(place) = self.place else { return Ok(None) };
        let next = self.queue.iter(memory).map_err(RingError::Available)?.next();
        let Some(chain) = next else { return Ok(None) };
        let head = chain.head_index();
        let at = IN_FLIGHT + usize::from(head);
        if head >= place.size || self.word(at) != 0 {
            return Err(RingError::Head(head));
        }
        self.put(at, self.arrivals << 1 | 1);
        self.arrivals = self.arrivals.saturating_add(1);
        self.in_flight = self.in_flight.saturating_add(1);
        Ok(Some(chain))
    }

    /// Returns a chain to the guest, into which `written` bytes were written. False if the head is not in flight:
    /// nothing is done then.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete<M: GuestMemory>(
        &mut self,
        memory: &M,
        head: u16,
        written: u32,
    ) -> Result<bool, RingError> {
        let at = IN_FLIGHT + usize::from(head);
        let inside = self.place.is_some_and(|place| head < place.size);
        if !inside || self.word(at) == 0 {
            return Ok(false);
        }
        self.put(LAST, u64::from(head));
        cut();
        self.queue.add_used(memory, head, written).map_err(|source| RingError::Used { head, source })?;
        self.put(at, 0);
        self.put(USED, u64::from(self.queue.next_used()));
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(true)
    }

    /// Stops the ring and says where it stands: the entry of the available ring from which to begin again. What
    /// is in flight counts as not taken, which is right as long as nothing that came later was completed
    /// before it, as with a balloon's one held buffer.
    pub fn stop(&mut self) -> u16 {
        let base = self.stands_at();
        self.place = None;
        base
    }

    /// What [`Ring::stop`] would say.
    #[must_use]
    pub fn stands_at(&self) -> u16 {
        let state = self.word(STATE);
        if state & RUNNING == 0 {
            return low16(state);
        }
        (Wrapping(low16(self.word(USED))) + Wrapping(low16(state))).0
    }

    fn word(&self, index: usize) -> u64 {
        self.words.as_ref().get(index).map_or(0, |word| word.load(SeqCst))
    }

    /// The only place that stores.
    fn put(&self, index: usize, value: u64) {
        cut();
        if let Some(word) = self.words.as_ref().get(index) {
            word.store(value, SeqCst);
        }
    }
}

/// A queue at this place, if all of it is inside the memory.
fn set_up<M: GuestMemory>(place: RingPlace, memory: &M) -> Result<Queue, RingError> {
    let size = u32::from(place.size);
    if place.size == 0 || place.size > MAX_RING_SIZE || !place.size.is_power_of_two() {
        return Err(RingError::Size(size));
    }
    let mut queue = Queue::new(MAX_RING_SIZE).map_err(|_| RingError::Size(size))?;
    queue.try_set_size(place.size).map_err(|_| RingError::Size(size))?;
    queue.try_set_desc_table_address(place.descriptors).map_err(|_| RingError::Outside)?;
    queue.try_set_avail_ring_address(place.available).map_err(|_| RingError::Outside)?;
    queue.try_set_used_ring_address(place.used).map_err(|_| RingError::Outside)?;
    queue.set_ready(true);
    if !queue.is_valid(memory) {
        return Err(RingError::Outside);
    }
    Ok(queue)
}

fn low16(word: u64) -> u16 {
    u16::try_from(word & 0xffff).unwrap_or(0)
}

/// Before every store that outlives the process: where a test kills it.
fn cut() {
    #[cfg(test)]
    test::cut_here();
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod test;
