//! Each discarder against the kernel: memory really comes back, neighbours keep what they hold.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;

use plimsoll_frames::{Granule, Ledger, SpaceId, SpaceKey};
use plimsoll_units::{Bytes, FRAME_SIZE, Gpa, PAGE_SIZE, PageCount};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

use super::rig::{Device, Rig, inflate_from_elsewhere, memfd, words};
use crate::{
    AnonymousDiscarder, AnonymousError, Balloon, DiscardError, Discarder, Features, FileDiscarder, FileFacts,
    FileRegion, SharedConfig,
};

/// A place in some ledger's table, for discarders tried alone.
fn some_space(granule: Granule) -> SpaceId {
    let mut ledger = Ledger::format(words(Ledger::words_needed(99, 0).unwrap()), 99, 0).unwrap();
    ledger.add_space(SpaceKey { device: 0, inode: 0 }, PageCount(1024), granule).unwrap()
}

fn pages(n: u64) -> Bytes {
    PageCount(n).bytes()
}

#[test]
fn a_file_loses_what_is_discarded_and_nothing_else() {
    let rig = Rig::new(64, Features::DEFAULT);
    let (space, mut discarder) = (some_space(Granule::Page), FileDiscarder::default());
    discarder.insert(space, rig.file.try_clone().unwrap().into()).unwrap();
    let before = rig.resident();
    assert_eq!(discarder.discard(space, pages(20), pages(4)).unwrap(), pages(4));
    assert_eq!((rig.lost(), before - rig.resident()), ((20..24).collect(), 4));
    // Never past the end, whatever is asked.
    assert_eq!(discarder.discard(space, pages(575), pages(9)).unwrap(), pages(1));
    assert_eq!(discarder.discard(space, pages(576), pages(9)).unwrap(), Bytes::ZERO);
    assert_eq!(discarder.discard(space, Bytes(u64::MAX - 4095), pages(9)).unwrap(), Bytes::ZERO);
    assert_eq!(rig.file.metadata().unwrap().len(), 576 * PAGE_SIZE);
    let unaligned = discarder.discard(space, Bytes(100), pages(1));
    assert!(matches!(unaligned, Err(DiscardError::Unaligned { .. })));
    discarder.forget(space);
    assert!(matches!(discarder.discard(space, pages(0), pages(1)), Err(DiscardError::UnknownSpace(_))));
    assert_eq!(rig.lost(), [20, 21, 22, 23, 575]);
}

#[test]
fn an_ordinary_file_on_tmpfs_or_disk_has_pages_of_4_kib() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(3 * PAGE_SIZE + 5).unwrap();
    let facts = FileFacts::of(&file).unwrap();
    assert_eq!((facts.pages, facts.host_page, facts.granule()), (PageCount(3), pages(1), Granule::Page));
    assert_ne!(facts.key, FileFacts::of(memfd(3)).unwrap().key);
}

/// Pages of a mapping that have memory behind them, in RAM or in swap: bits 63 and 62 of their pagemap entries
/// (Documentation/admin-guide/mm/pagemap.rst). smaps would count neighbours that the kernel merged with the mapping.
fn resident(region: &MmapRegion) -> usize {
    let first = u64::try_from(region.as_ptr().addr()).unwrap() / PAGE_SIZE;
    let mut entries = vec![0; region.size() / 4096 * 8];
    File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, first * 8).unwrap();
    entries.as_chunks::<8>().0.iter().filter(|entry| u64::from_le_bytes(**entry) >> 62 != 0).count()
}

#[test]
fn anonymous_memory_comes_back() {
    let region = Arc::new(MmapRegion::<()>::new(1029 * 4096).unwrap());
    let (space, mut discarder) = (some_space(Granule::Page), AnonymousDiscarder::default());
    discarder.insert(space, Arc::clone(&region)).unwrap();
    let fill = vec![0x5a_u8; 1029 * 4096];
    region.as_volatile_slice().write_slice(&fill, 0).unwrap();
    assert_eq!(resident(&region), 1029);
    assert_eq!(discarder.discard(space, pages(8), pages(512)).unwrap(), pages(512));
    assert_eq!(resident(&region), 1029 - 512);
    let mut found = vec![0; 1029 * 4096];
    region.as_volatile_slice().read_slice(&mut found, 0).unwrap();
    assert!(found[8 * 4096..520 * 4096].iter().all(|&byte| byte == 0));
    assert!(found[..8 * 4096].iter().chain(&found[520 * 4096..]).all(|&byte| byte == 0x5a));
    assert_eq!(discarder.discard(space, pages(1028), pages(100)).unwrap(), pages(1));
    assert_eq!(discarder.discard(space, pages(1029), pages(1)).unwrap(), Bytes::ZERO);
    assert!(matches!(discarder.discard(space, Bytes(8), pages(1)), Err(DiscardError::Unaligned { .. })));
}

#[test]
fn mappings_that_madvise_would_not_free_are_refused() {
    let (space, mut discarder) = (some_space(Granule::Page), AnonymousDiscarder::default());
    let file = MmapRegion::from_file(FileOffset::new(memfd(4), 0), 4 * 4096).unwrap();
    assert_eq!(discarder.insert(space, Arc::new(file)), Err(AnonymousError::NotAnonymous));
    let shared = rustix::mm::MapFlags::SHARED.bits() | 0x20; // MAP_ANONYMOUS
    let shared = MmapRegion::build(None, 4 * 4096, 3, i32::try_from(shared).unwrap()).unwrap();
    assert_eq!(discarder.insert(space, Arc::new(shared)), Err(AnonymousError::NotAnonymous));
}

/// Raises the machine's number of huge pages and puts it back.
struct HugePages {
    before: u64,
}

impl HugePages {
    const COUNT: &str = "/proc/sys/vm/nr_hugepages";

    fn reserve(more: u64) -> Result<Self, String> {
        let read = || {
            let text =
                std::fs::read_to_string(Self::COUNT).map_err(|error| format!("{}: {error}", Self::COUNT))?;
            text.trim().parse::<u64>().map_err(|error| format!("{}: {error}", Self::COUNT))
        };
        let guard = Self { before: read()? };
        let want = guard.before + more;
        std::fs::write(Self::COUNT, want.to_string()).map_err(|error| format!("{}: {error}", Self::COUNT))?;
        let have = read()?;
        if have < want { Err(format!("the kernel gave {have} huge pages of {want}")) } else { Ok(guard) }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the next reservation would start from there.
        drop(std::fs::write(Self::COUNT, self.before.to_string()));
    }
}

/// Says aloud, and in the log of `cargo xtask test`, that a test did not run.
fn not_run(test: &str, reason: &str) {
    let line = format!("NOT RUN: {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(log) = std::env::var_os("PLIMSOLL_SKIP_LOG") {
        OpenOptions::new().append(true).create(true).open(log).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn hugetlb_memory_comes_back_in_whole_pages_only() {
    let _pages = match HugePages::reserve(4) {
        Ok(pages) => pages,
        Err(reason) => return not_run("hugetlb_memory_comes_back_in_whole_pages_only", &reason),
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = File::from(memfd_create("plimsoll-balloon-test", flags).unwrap());
    file.set_len(4 * FRAME_SIZE).unwrap();
    let facts = FileFacts::of(&file).unwrap();
    assert_eq!((facts.granule(), facts.pages), (Granule::Frame, PageCount(2048)));
    let mapping =
        MmapRegion::<()>::from_file(FileOffset::new(file.try_clone().unwrap(), 0), 4 << 21).unwrap();
    let memory = mapping.as_volatile_slice();
    memory.write_slice(&vec![0x5a; 4 << 21], 0).unwrap();
    let mut balloon = huge_balloon(&file);
    let huge = || file_blocks(&file) * 512 / FRAME_SIZE;
    assert_eq!(huge(), 4);
    // Half a frame, then its other half: nothing, then everything.
    inflate_from_elsewhere(&mut balloon, (768..1024).map(|page| (1 << 18) + page));
    assert_eq!((huge(), balloon.counters().discards), (4, 0));
    inflate_from_elsewhere(&mut balloon, (512..768).map(|page| (1 << 18) + page));
    assert_eq!((huge(), balloon.counters().discards), (3, 1));
    let mut found = vec![0; 2 << 20];
    for frame in [0, 2, 3] {
        memory.read_slice(&mut found, frame << 21).unwrap();
        assert!(found.iter().all(|&byte| byte == 0x5a), "frame {frame}");
    }
    let space = balloon.memory().regions()[0].space;
    let part = balloon.discarder_mut().discard(space, pages(1), pages(1));
    assert!(matches!(part, Err(DiscardError::Unaligned { .. })));
}

fn file_blocks(file: &File) -> u64 {
    file.metadata().unwrap().blocks()
}

fn huge_balloon(file: &File) -> Device {
    let ledger = Ledger::format(words(Ledger::words_needed(8, 8).unwrap()), 8, 8).unwrap();
    let config = SharedConfig::new(words(SharedConfig::WORDS)).unwrap();
    let mut balloon = Balloon::new(config, ledger, FileDiscarder::default(), Features::DEFAULT);
    let len = Bytes(4 * FRAME_SIZE);
    let region =
        FileRegion { gpa: Gpa(1 << 30), len, offset: Bytes::ZERO, file: file.try_clone().unwrap().into() };
    balloon.replace_memory(vec![region]).unwrap();
    balloon.set_acked_features(Features::DEFAULT.0);
    balloon
}
