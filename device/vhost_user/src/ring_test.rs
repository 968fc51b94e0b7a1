//! A driver, a device, and death at every store.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::layout::RING_WORDS;

thread_local! {
    /// How many stores the process has yet to live; none: for ever.
    static LIFE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The end of the process, as an unwinding that no panic hook reports.
struct Killed;

pub(super) fn cut_here() {
    LIFE.with(|life| match life.get() {
        Some(0) => {
            life.set(None);
            resume_unwind(Box::new(Killed));
        }
        Some(left) => life.set(Some(left - 1)),
        None => {}
    });
}

const SIZE: u16 = 8;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED_RING: u64 = 0x3000;
const SCRATCH: u64 = 0x8000;

fn place() -> RingPlace {
    RingPlace {
        descriptors: GuestAddress(DESCRIPTORS),
        available: GuestAddress(AVAILABLE),
        used: GuestAddress(USED_RING),
        size: SIZE,
    }
}

/// A driver as Linux's: posts chains with a token in the descriptor's address, takes them back.
struct Driver {
    memory: GuestMemoryMmap,
    free: Vec<u16>,
    available: u16,
    used: u16,
    posted: BTreeMap<u16, u64>,
    next_token: u64,
    completed: Vec<u64>,
}

impl Driver {
    fn new(first: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        memory.write_obj(first, GuestAddress(AVAILABLE + 2)).unwrap();
        memory.write_obj(first, GuestAddress(USED_RING + 2)).unwrap();
        Self {
            memory,
            free: (0..SIZE).collect(),
            available: first,
            used: first,
            posted: BTreeMap::new(),
            next_token: 0,
            completed: Vec::new(),
        }
    }

    fn post(&mut self, which: usize) {
        if self.free.is_empty() {
            return;
        }
        let head = self.free.remove(which % self.free.len());
        self.memory.write_obj(self.next_token, GuestAddress(DESCRIPTORS + 16 * u64::from(head))).unwrap();
        self.memory.write_obj(4u64, GuestAddress(DESCRIPTORS + 16 * u64::from(head) + 8)).unwrap();
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(AVAILABLE + 2)).unwrap();
        self.posted.insert(head, self.next_token);
        self.next_token += 1;
    }

    /// Takes back what the used ring has. Fails if it has what is not with the device.
    fn reap(&mut self) {
        let index: u16 = self.memory.read_obj(GuestAddress(USED_RING + 2)).unwrap();
        assert!(index.wrapping_sub(self.used) <= SIZE, "the used index jumped");
        while self.used != index {
            let slot = USED_RING + 4 + 8 * u64::from(self.used % SIZE);
            let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let head = u16::try_from(head).unwrap();
            let token = self.posted.remove(&head).expect("completed what was not with the device");
            self.completed.push(token);
            self.free.push(head);
            self.used = self.used.wrapping_add(1);
        }
    }
}

/// A device that notes what it executes and holds some of it.
struct World {
    driver: Driver,
    words: Arc<[AtomicU64]>,
    executed: Vec<u64>,
}

impl World {
    fn new(base: u16) -> Self {
        let words: Arc<[AtomicU64]> = (0..RING_WORDS).map(|_| AtomicU64::new(0)).collect();
        Ring::attach(Arc::clone(&words)).set_base(base);
        Self { driver: Driver::new(base), words, executed: Vec::new() }
    }

    fn execute(&mut self, chain: DescriptorChain<&GuestMemoryMmap>) -> u64 {
        let token = chain.into_iter().next().unwrap().addr().0;
        self.driver.reap();
        assert!(!self.driver.completed.contains(&token), "executed again what the guest has back");
        self.executed.push(token);
        token
    }

    /// A process: recovers, then works until it is killed or `rounds` are over.
    fn process(&mut self, plan: &[u8]) {
        let memory = self.driver.memory.clone();
        let mut ring = Ring::attach(Arc::clone(&self.words));
        let mut held = Vec::new();
        for head in ring.start(place(), &memory).unwrap() {
            let chain = ring.recover(head, &memory, GuestAddress(SCRATCH)).unwrap();
            assert_eq!(chain.head_index(), head);
            self.execute(chain);
            held.push(head);
        }
        for step in plan {
            match step % 4 {
                0 | 1 => self.driver.post(usize::from(step / 4)),
                2 => {
                    if let Some(chain) = ring.pop(&memory).unwrap() {
                        let head = chain.head_index();
                        self.execute(chain);
                        if step & 4 == 0 {
                            held.push(head);
                        } else {
                            assert!(ring.complete(&memory, head, 0).unwrap());
                        }
                    }
                }
                _ => {
                    if !held.is_empty() {
                        let head = held.remove(usize::from(step / 4) % held.len());
                        assert!(ring.complete(&memory, head, 0).unwrap());
                    }
                }
            }
            assert_eq!(usize::from(ring.in_flight()), held.len());
        }
    }

    /// The last process: completes everything.
    fn drain(&mut self) {
        let memory = self.driver.memory.clone();
        let mut ring = Ring::attach(Arc::clone(&self.words));
        for head in ring.start(place(), &memory).unwrap() {
            let chain = ring.recover(head, &memory, GuestAddress(SCRATCH)).unwrap();
            self.execute(chain);
            assert!(ring.complete(&memory, head, 0).unwrap());
        }
        while let Some(chain) = ring.pop(&memory).unwrap() {
            let head = chain.head_index();
            self.execute(chain);
            assert!(ring.complete(&memory, head, 0).unwrap());
        }
        self.driver.reap();
        assert!(self.driver.posted.is_empty(), "{:?} never came back", self.driver.posted);
        let mut completed = self.driver.completed.clone();
        completed.sort_unstable();
        assert_eq!(completed, (0..self.driver.next_token).collect::<Vec<_>>(), "each exactly once");
        for token in 0..self.driver.next_token {
            assert!(self.executed.contains(&token), "{token} was completed and never executed");
        }
    }
}

/// Runs `work`; true if it was killed on the way.
fn lives(stores: u64, work: impl FnOnce()) -> bool {
    LIFE.with(|life| life.set(Some(stores)));
    let end = catch_unwind(AssertUnwindSafe(work));
    LIFE.with(|life| life.set(None));
    match end {
        Ok(()) => false,
        Err(payload) if payload.is::<Killed>() => true,
        Err(payload) => resume_unwind(payload),
    }
}

proptest! {
    #[test]
    fn every_chain_is_executed_and_completed_once(
        base in any::<u16>(),
        processes in prop::collection::vec((0u64..120, prop::collection::vec(any::<u8>(), 0..60)), 1..8),
    ) {
        let mut world = World::new(base);
        for (stores, plan) in &processes {
            lives(*stores, || world.process(plan));
        }
        world.drain();
    }
}

#[test]
fn death_at_each_single_store_is_survived() {
    // Post, take, complete, hold, wrap around: one plan, killed at its first store, its second, and so on.
    let plan: Vec<u8> = [0, 0, 2, 6, 0, 6, 3, 2, 1, 6, 3, 3].repeat(6);
    let mut deaths = 0;
    for stores in 0.. {
        let mut world = World::new(u16::MAX - 3);
        let killed = lives(stores, || world.process(&plan));
        // The successor dies too, at its first few stores.
        for again in 0..4 {
            lives(again, || world.process(&[]));
        }
        world.drain();
        if !killed {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 100, "only {deaths} stores were cut");
}

#[test]
fn a_guest_that_lies_about_the_used_index_is_not_believed() {
    let mut world = World::new(0);
    world.process(&[0, 0, 0, 2, 6]);
    for lie in [0u16, 3, 5000, u16::MAX] {
        world.driver.memory.write_obj(lie, GuestAddress(USED_RING + 2)).unwrap();
        let mut ring = Ring::attach(Arc::clone(&world.words));
        let heads = ring.start(place(), &world.driver.memory).unwrap();
        assert_eq!((heads.len(), ring.in_flight(), ring.stands_at()), (1, 1, 1));
    }
}

#[test]
fn broken_rings_are_refused() {
    let world = World::new(0);
    let memory = &world.driver.memory;
    let mut ring = Ring::attach(Arc::clone(&world.words));
    for bad in [
        RingPlace { descriptors: GuestAddress(0xfff0), ..place() },
        RingPlace { available: GuestAddress(u64::MAX - 1), ..place() },
        RingPlace { used: GuestAddress(0x1_0000), ..place() },
        RingPlace { size: 0, ..place() },
        RingPlace { size: 7, ..place() },
        RingPlace { size: 512, ..place() },
    ] {
        ring.start(bad, memory).unwrap_err();
        assert!(!ring.is_started());
    }
    ring.start(place(), memory).unwrap();
    // An index further ahead than there are entries.
    memory.write_obj(SIZE + 1, GuestAddress(AVAILABLE + 2)).unwrap();
    assert!(matches!(ring.pop(memory), Err(RingError::Available(_))));
    // A head outside the table, then one that is in flight already.
    memory.write_obj(1u16, GuestAddress(AVAILABLE + 2)).unwrap();
    memory.write_obj(SIZE, GuestAddress(AVAILABLE + 4)).unwrap();
    assert!(matches!(ring.pop(memory), Err(RingError::Head(SIZE))));
    let mut ring = Ring::attach(Arc::clone(&world.words));
    ring.start(place(), memory).unwrap();
    memory.write_obj(2u16, GuestAddress(AVAILABLE + 2)).unwrap();
    memory.write_obj(3u16, GuestAddress(AVAILABLE + 4)).unwrap();
    memory.write_obj(3u16, GuestAddress(AVAILABLE + 6)).unwrap();
    assert_eq!(ring.pop(memory).unwrap().unwrap().head_index(), 3);
    assert!(matches!(ring.pop(memory), Err(RingError::Head(3))));
    assert!(!ring.complete(memory, 4, 0).unwrap(), "not in flight");
    assert!(!ring.complete(memory, SIZE, 0).unwrap(), "no descriptor");
}

#[test]
fn a_stopped_ring_begins_again_before_what_it_held() {
    let mut world = World::new(7);
    world.driver.post(0);
    world.driver.post(0);
    let memory = world.driver.memory.clone();
    let mut ring = Ring::attach(Arc::clone(&world.words));
    ring.start(place(), &memory).unwrap();
    let first = ring.pop(&memory).unwrap().unwrap().head_index();
    assert!(ring.complete(&memory, first, 0).unwrap());
    let held = ring.pop(&memory).unwrap().unwrap().head_index();
    let base = ring.stop();
    assert_eq!(base, 8);
    assert!(ring.pop(&memory).unwrap().is_none(), "a stopped ring gives nothing");
    ring.set_base(base);
    assert!(ring.is_fresh());
    assert_eq!(ring.start(place(), &memory).unwrap(), Vec::<u16>::new());
    assert_eq!(ring.pop(&memory).unwrap().unwrap().head_index(), held, "taken again");
}

#[test]
fn recovery_keeps_the_order_of_arrival_and_a_base_apart_from_the_used_index() {
    // The driver's next entry is 7, while the used ring stands at 4: three buffers were never returned.
    let mut world = World::new(7);
    let memory = world.driver.memory.clone();
    memory.write_obj(4u16, GuestAddress(USED_RING + 2)).unwrap();
    for which in [5, 0, 3] {
        world.driver.post(which);
    }
    let mut ring = Ring::attach(Arc::clone(&world.words));
    ring.start(place(), &memory).unwrap();
    let mut heads = Vec::new();
    while let Some(chain) = ring.pop(&memory).unwrap() {
        heads.push(chain.head_index());
    }
    assert_eq!(heads, [5, 0, 4]);
    assert!(ring.complete(&memory, 0, 0).unwrap());

    let mut ring = Ring::attach(Arc::clone(&world.words));
    assert_eq!(ring.start(place(), &memory).unwrap(), [5, 4], "not by number");
    assert!(ring.pop(&memory).unwrap().is_none(), "all three were taken before");
    world.driver.post(0);
    assert!(ring.pop(&memory).unwrap().is_some());
}
