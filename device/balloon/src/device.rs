//! The device: features, chains, statistics, resets.

use std::ops::Deref;
use std::sync::atomic::AtomicU64;

use plimsoll_frames::{Extent, Ledger, Reuse, SpaceKey};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestMemory};

use crate::config::{Accepted, SharedConfig};
use crate::counters::{Counters, add};
use crate::discard::{DiscardError, Discarder};
use crate::engine::{Engine, Event};
use crate::features::{Features, Role, queue_role};
use crate::memory::MemoryMap;
use crate::pages::{Gathered, More};
use crate::stats::{ENTRY, MAX_ENTRIES, Stats};

/// What is to become of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Put it on the used ring.
    Complete {
        /// Bytes written into it, the used element's length. The balloon never writes: always 0.
        written: u32,
    },
    /// Keep it until [`Balloon::take_held`] names it.
    Hold,
}

const DONE: Outcome = Outcome::Complete { written: 0 };

/// A virtio balloon for one guest. See the crate's documentation.
pub struct Balloon<W, D> {
    config: SharedConfig<W>,
    engine: Engine<W, D>,
    offered: Features,
    /// `None` until the driver, or a back end that takes over from another, says.
    acked: Option<Features>,
    memory: MemoryMap,
    /// The head of the statistics buffer that is held.
    held: Option<u16>,
    stats: Stats,
    gathered: Gathered,
}

impl<W: AsRef<[AtomicU64]>, D: Discarder> Balloon<W, D> {
    /// A device over a ledger and a configuration, fresh or taken over. `offer` is what it offers to the driver; bits that it does not
    /// implement are left out. It has no memory until a map is set.
    pub fn new(config: SharedConfig<W>, ledger: Ledger<W>, discarder: D, offer: Features) -> Self {
        Self {
            config,
            engine: Engine::new(ledger, discarder),
            offered: offer.both(Features::DEFAULT) | Features::VERSION_1,
            acked: None,
            memory: MemoryMap::default(),
            held: None,
            stats: Stats::default(),
            gathered: Gathered::default(),
        }
    }

    /// The device's features. The transport adds its own: those of the rings, and vhost-user's bit 30.
    pub fn offered_features(&self) -> Features {
        self.offered
    }

    /// What the driver accepted. May come several times; bits that are not this device's are ignored.
    ///
    /// If the driver promises `MUST_TELL_HOST` after it ran without, the ledger is reset: what it says of
    /// earlier pages was not promised.
    pub fn set_acked_features(&mut self, acked: u64) {
        let acked = Features(acked).both(self.offered);
        let promised_before = self.acked.is_none_or(|before| before.contains(Features::MUST_TELL_HOST));
        if acked.contains(Features::MUST_TELL_HOST) && !promised_before {
            self.reset();
        }
        self.acked = Some(acked);
    }

    /// The features in force.
    pub fn acked_features(&self) -> Features {
        self.acked.unwrap_or_default()
    }

    /// What a queue is for, by the features in force.
    pub fn role(&self, queue: u16) -> Option<Role> {
        queue_role(queue, self.acked_features().0)
    }

    /// Replaces the guest's memory by regions whose spaces the ledger and the discarder know already. Spaces that are no
    /// longer named are forgotten by both; I/O on them must be over.
    pub fn set_memory(&mut self, memory: MemoryMap) {
        let named: Vec<_> = memory.regions().iter().map(|region| region.space).collect();
        let keys: Vec<_> = self.engine.ledger.spaces().filter(|(id, ..)| named.contains(id)).collect();
        self.engine.keep_spaces(|key| keys.iter().any(|(_, kept, _)| *kept == key));
        self.memory = memory;
    }

    /// Replaces the map alone.
    pub(crate) fn set_map(&mut self, memory: MemoryMap) {
        self.memory = memory;
    }

    pub(crate) fn keep_spaces(&mut self, keep: impl Fn(SpaceKey) -> bool) {
        self.engine.keep_spaces(keep);
    }

    /// The guest's memory as it is known.
    pub fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    /// The configuration space and the fields in it.
    pub fn config(&self) -> &SharedConfig<W> {
        &self.config
    }

    /// The guest reads its configuration: any offset, any length.
    pub fn read_config(&self, offset: u32, buf: &mut [u8]) {
        self.config.read(offset, buf);
    }

    /// The guest writes its configuration: see [`SharedConfig::write`].
    pub fn write_config(&self, offset: u32, bytes: &[u8]) -> Accepted {
        self.config.write(offset, bytes)
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger<W> {
        &self.engine.ledger
    }

    /// The ledger, to add spaces to it.
    pub fn ledger_mut(&mut self) -> &mut Ledger<W> {
        &mut self.engine.ledger
    }

    /// The discarder, to tell it of spaces.
    pub fn discarder_mut(&mut self) -> &mut D {
        &mut self.engine.discarder
    }

    /// The latest statistics.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.engine.counters
    }

    /// The latest discard that failed, once: for the log.
    pub fn take_discard_error(&mut self) -> Option<DiscardError> {
        self.engine.error.take()
    }

    /// Gives back the statistics buffer, if one is held: the transport puts the chain with this head on the used ring with
    /// length 0, and the driver answers with fresh statistics.
    pub fn take_held(&mut self) -> Option<u16> {
        self.held.take()
    }

    /// Whether a statistics buffer is held.
    pub fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    /// The transport stopped a queue. A held statistics buffer is dropped with its queue; with the inflate queue the balloon is: after
    /// a stop the guest may have rebooted and use all its memory, and nothing tells that from a pause. Counting too little
    /// as given up discards nothing wrongly.
    pub fn on_ring_stop(&mut self, role: Role) {
        match role {
            Role::Stats => self.held = None,
            Role::Inflate => {
                self.config.reset_actual();
                self.engine.ledger.reset();
            }
            Role::Deflate | Role::Reporting => {}
        }
    }

    /// The device was reset: no buffer is held, the balloon is empty, all memory is the guest's. What the guest is
    /// asked for (`num_pages`) stays.
    pub fn reset(&mut self) {
        self.held = None;
        self.config.reset_actual();
        self.engine.ledger.reset();
    }

    /// I/O on these pages begins, see [`Ledger::pin`].
    pub fn pin(&mut self, extent: Extent) {
        self.engine.ledger.pin(extent);
    }

    /// I/O on these pages is over: discards that waited for it are carried out, see [`Ledger::unpin`].
    pub fn unpin(&mut self, extent: Extent) {
        self.engine.unpin(extent, self.reuse());
    }

    fn reuse(&self) -> Reuse {
        if self.acked_features().contains(Features::MUST_TELL_HOST) {
            Reuse::TellsFirst
        } else {
            Reuse::AtOnce
        }
    }

    /// Carries out what a chain asks, and says what is to become of it. Whatever a chain holds is borne.
    pub fn handle<M>(&mut self, role: Role, chain: DescriptorChain<M>) -> Outcome
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        match role {
            Role::Inflate => self.handle_pfns(Event::Inflate(self.reuse()), &chain),
            Role::Deflate => self.handle_pfns(Event::Deflate, &chain),
            Role::Reporting => self.handle_report(Event::Report(self.reuse()), &chain),
            Role::Stats => self.handle_stats(&chain),
        }
    }

    fn handle_pfns<M>(&mut self, event: Event, chain: &DescriptorChain<M>) -> Outcome
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        self.gathered.begin(&self.memory);
        for descriptor in chain.clone() {
            if descriptor.is_write_only() {
                add(&mut self.engine.counters.wrong_direction, 1);
                continue;
            }
            let memory = (chain.memory(), &self.memory);
            if self.gathered.read_pfns(memory, &descriptor, event, &mut self.engine) == More::No {
                break;
            }
        }
        self.finish(event)
    }

    fn handle_report<M>(&mut self, event: Event, chain: &DescriptorChain<M>) -> Outcome
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        if self.guest_expects_poison() {
            add(&mut self.engine.counters.poisoned_reports, 1);
            return DONE;
        }
        self.gathered.begin(&self.memory);
        for descriptor in chain.clone() {
            if !descriptor.is_write_only() {
                add(&mut self.engine.counters.wrong_direction, 1);
                continue;
            }
            let more = self.gathered.read_range(&self.memory, &descriptor, event, &mut self.engine);
            if more == More::No {
                break;
            }
        }
        self.finish(event)
    }

    fn finish(&mut self, event: Event) -> Outcome {
        self.gathered.hand_on(event, &mut self.engine);
        if event == Event::Deflate && self.gathered.cut {
            // The guest will take the answer for all the pages it named, and use them. Since nobody knows which they
            // were, none may be thought to be in the balloon: a frame joined with one of them would be lost to it.
            self.engine.ledger.reset();
        }
        add(&mut self.engine.counters.empty_chains, u64::from(!self.gathered.any));
        DONE
    }

    /// Whether a discarded page, which reads as zeros, would be a changed one to the guest: a reported page must keep
    /// `poison_val` once `PAGE_POISON` is negotiated (virtio 1.3, 5.5.6, Free Page Reporting, device requirements). Inflated
    /// pages may be discarded all the same, since the driver initialises them when it takes them back (ibid., Page Poison).
    fn guest_expects_poison(&self) -> bool {
        self.acked_features().contains(Features::PAGE_POISON) && self.config.poison_val() != 0
    }

    fn handle_stats<M>(&mut self, chain: &DescriptorChain<M>) -> Outcome
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        let bytes = self.read_stats(chain);
        let counters = &mut self.engine.counters;
        add(&mut counters.stats_buffers, 1);
        add(&mut counters.empty_chains, u64::from(bytes.is_empty()));
        add(&mut counters.ragged, u64::from(!bytes.len().is_multiple_of(ENTRY)));
        add(&mut counters.unknown_tags, self.stats.update(&bytes));
        if self.held.is_some() {
            // A driver has one statistics buffer (virtio 1.3, 5.5.6.3). Two cannot be held, so this one goes back.
            add(&mut counters.extra_stats_buffers, 1);
            return DONE;
        }
        self.held = Some(chain.head_index());
        Outcome::Hold
    }

    /// The entries of a chain, which may begin in one descriptor and end in the next, up to a bound.
    fn read_stats<M>(&mut self, chain: &DescriptorChain<M>) -> Vec<u8>
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        const LIMIT: usize = ENTRY * MAX_ENTRIES;
        let counters = &mut self.engine.counters;
        let mut bytes = Vec::new();
        for descriptor in chain.clone() {
            if descriptor.is_write_only() {
                add(&mut counters.wrong_direction, 1);
                continue;
            }
            let room = LIMIT.saturating_sub(bytes.len());
            let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            let mut piece = vec![0; len.min(room)];
            if chain.memory().read_slice(&mut piece, descriptor.addr()).is_err() {
                add(&mut counters.unreadable, 1);
                continue;
            }
            bytes.append(&mut piece);
            if len > room {
                add(&mut counters.stats_overlong, 1);
                break;
            }
        }
        bytes
    }
}
