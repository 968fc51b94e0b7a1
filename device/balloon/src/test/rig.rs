//! A guest: rings and buffers in memory of its own, and memory that can be ballooned in a memfd full of a pattern.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use plimsoll_frames::Ledger;
use plimsoll_units::{Bytes, Gpa, PAGE_SIZE};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::{Balloon, Features, FileDiscarder, FileRegion, Outcome, Role, SharedConfig};

pub(super) type Words = Arc<[AtomicU64]>;
pub(super) type Device = Balloon<Words, FileDiscarder>;

/// `VRING_DESC_F_NEXT` and `VRING_DESC_F_WRITE` (virtio 1.3, 2.7.5).
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;

/// Where the rings lie.
const RINGS: u64 = 1 << 40;
/// Where drivers' buffers lie.
pub(super) const BUFFERS: u64 = RINGS + 0x10_0000;
/// The end of the memory that has rings and buffers.
pub(super) const BUFFERS_END: u64 = RINGS + 0x20_0000;
/// Where the memory begins that can be ballooned.
pub(super) const RAM: u64 = 1 << 30;
/// Where it begins in its file.
pub(super) const RAM_OFFSET: u64 = 2 << 20;

const QUEUE: u16 = 64;

pub(super) fn words(len: usize) -> Words {
    (0..len).map(|_| AtomicU64::new(0)).collect()
}

/// What a page holds as long as nobody discards it.
fn pattern(page: u64) -> Vec<u8> {
    let word = (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    word.iter().copied().cycle().take(4096).collect()
}

pub(super) struct Rig {
    pub(super) device: Device,
    pub(super) file: File,
    pub(super) memory: Arc<GuestMemoryMmap>,
    /// The words of ledger and configuration, which outlive a device.
    pub(super) ledger: Words,
    pub(super) config: Words,
    /// What every page should hold.
    patterns: Vec<Vec<u8>>,
}

/// A memfd of this many pages, none of them there yet.
pub(super) fn memfd(pages: u64) -> File {
    let file = File::from(
        memfd_create("plimsoll-balloon-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap(),
    );
    file.set_len(pages * PAGE_SIZE).unwrap();
    file
}

impl Rig {
    /// A guest with this many pages that can be ballooned, and a driver that accepted these features.
    pub(super) fn new(pages: u64, features: Features) -> Self {
        Self::at(RAM, RAM_OFFSET, pages, features)
    }

    /// The same, with memory at another address and file offset.
    pub(super) fn at(gpa: u64, offset: u64, pages: u64, features: Features) -> Self {
        let in_file = offset.div_ceil(PAGE_SIZE) + pages;
        let file = memfd(in_file);
        let len = usize::try_from(pages * PAGE_SIZE).unwrap();
        let ram = FileOffset::new(file.try_clone().unwrap(), offset);
        let rings = (GuestAddress(RINGS), usize::try_from(BUFFERS_END - RINGS).unwrap(), None);
        let ranges = [(GuestAddress(gpa), len, Some(ram)), rings];
        let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap());
        let frames = Ledger::frames_for(Bytes(in_file * PAGE_SIZE));
        let ledger = words(Ledger::words_needed(frames, frames).unwrap());
        let config = words(SharedConfig::WORDS);
        let device = Balloon::new(
            SharedConfig::new(Arc::clone(&config)).unwrap(),
            Ledger::format(Arc::clone(&ledger), frames, frames).unwrap(),
            FileDiscarder::default(),
            Features::DEFAULT,
        );
        let mut rig =
            Self { device, file, memory, ledger, config, patterns: (0..in_file).map(pattern).collect() };
        let region = rig.region(gpa, offset, pages * PAGE_SIZE);
        rig.device.replace_memory(vec![region]).unwrap();
        rig.device.set_acked_features(features.0);
        for page in 0..in_file {
            rig.refill(page);
        }
        rig
    }

    pub(super) fn region(&self, gpa: u64, offset: u64, len: u64) -> FileRegion {
        let file = self.file.try_clone().unwrap().into();
        FileRegion { gpa: Gpa(gpa), len: Bytes(len), offset: Bytes(offset), file }
    }

    /// The guest writes the page again.
    pub(super) fn refill(&self, page: u64) {
        let pattern = &self.patterns[usize::try_from(page).unwrap()];
        self.file.write_all_at(pattern, page * PAGE_SIZE).unwrap();
    }

    /// Pages of the file that hold something else than they should. Reading with pread fills no holes.
    pub(super) fn lost(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.patterns.len() * 4096];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let found = bytes.as_chunks::<4096>().0.iter().zip(&self.patterns);
        (0..)
            .zip(found)
            .filter(|(_, (found, wanted))| found[..] != wanted[..])
            .map(|(page, _)| page)
            .collect()
    }

    /// Pages of the file that have memory behind them, by the kernel's count.
    pub(super) fn resident(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512 / PAGE_SIZE
    }

    /// Writes page numbers into the buffer memory, from `at` on; returns the buffer that holds them.
    pub(super) fn pfns(&self, at: u64, pfns: impl IntoIterator<Item = u64>) -> (u64, u32, u16) {
        let mut len = 0;
        for pfn in pfns {
            let pfn = u32::try_from(pfn).unwrap();
            self.memory.write_obj(pfn.to_le(), GuestAddress(at + u64::from(len))).unwrap();
            len += 4;
        }
        (at, len, 0)
    }

    /// Puts descriptors (address, length, flags, next) into the table from index 0 on, and makes `head` available.
    pub(super) fn chain(
        &self,
        head: u16,
        table: &[(u64, u32, u16, u16)],
    ) -> DescriptorChain<Arc<GuestMemoryMmap>> {
        let queue = MockSplitQueue::create(&*self.memory, GuestAddress(RINGS), QUEUE);
        for (index, &(addr, len, flags, next)) in (0..).zip(table) {
            let descriptor = Descriptor::new(addr, len, flags, next);
            queue.desc_table().store(index, RawDescriptor::from(descriptor)).unwrap();
        }
        self.memory.write_obj(1u16, GuestAddress(queue.avail_addr().0 + 2)).unwrap();
        self.memory.write_obj(head, GuestAddress(queue.avail_addr().0 + 4)).unwrap();
        let mut queue = queue.create_queue::<Queue>().unwrap();
        queue.pop_descriptor_chain(Arc::clone(&self.memory)).unwrap()
    }

    /// Sends a chain of these buffers (address, length, flags), linked as a driver would.
    pub(super) fn send(&mut self, role: Role, buffers: &[(u64, u32, u16)]) -> Outcome {
        let mut table: Vec<_> = (1u16..)
            .zip(buffers)
            .map(|(next, &(addr, len, flags))| (addr, len, flags | NEXT, next))
            .collect();
        table.last_mut().unwrap().2 &= !NEXT;
        let chain = self.chain(0, &table);
        self.device.handle(role, chain)
    }

    /// The page number of a page of the file.
    pub(super) fn pfn(&self, page: u64) -> u64 {
        let region = self.device.memory().regions()[0];
        (region.gpa.0 + page * PAGE_SIZE - region.offset.0) / PAGE_SIZE
    }

    /// Names pages of the file, in this order, in one buffer.
    pub(super) fn name(&mut self, role: Role, pages: impl IntoIterator<Item = u64>) -> Outcome {
        let pfns: Vec<_> = pages.into_iter().map(|page| self.pfn(page)).collect();
        let buffer = self.pfns(BUFFERS, pfns);
        self.send(role, &[buffer])
    }

    /// The device anew, over the same words: what a back end does that takes over from a killed one.
    pub(super) fn take_over(&mut self, features: Features) {
        let (ledger, _) = Ledger::attach(Arc::clone(&self.ledger)).unwrap();
        let config = SharedConfig::new(Arc::clone(&self.config)).unwrap();
        let region = self.device.memory().regions()[0];
        self.device = Balloon::new(config, ledger, FileDiscarder::default(), Features::DEFAULT);
        let region = self.region(region.gpa.0, region.offset.0, region.len.0);
        self.device.set_acked_features(features.0);
        self.device.replace_memory(vec![region]).unwrap();
    }
}

impl Rig {
    /// Names pages where the guest's memory was made, whatever the device thinks of it.
    pub(super) fn name_anywhere(&mut self) {
        let pfns = self.pfns(BUFFERS, (0..512).map(|page| (RAM >> 12) + page));
        self.send(Role::Inflate, &[pfns]);
    }
}

/// Names page numbers in a chain whose rings and buffer lie in memory that the device knows nothing of.
pub(super) fn inflate_from_elsewhere(device: &mut Device, pfns: impl Iterator<Item = u64>) {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let bytes: Vec<u8> = pfns.flat_map(|pfn| u32::try_from(pfn).unwrap().to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(0x8_0000)).unwrap();
    let queue = MockSplitQueue::new(&memory, QUEUE);
    let buffer = Descriptor::new(0x8_0000, u32::try_from(bytes.len()).unwrap(), 0, 0);
    let chain = queue.build_desc_chain(&[RawDescriptor::from(buffer)]).unwrap();
    assert_eq!(device.handle(Role::Inflate, chain), Outcome::Complete { written: 0 });
}
