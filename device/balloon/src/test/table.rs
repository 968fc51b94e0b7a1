//! Memory tables: several regions of one file, replaced at run time, and bad ones.

use plimsoll_units::{Bytes, PAGE_SIZE, PageCount};

use super::rig::{BUFFERS, RAM, RAM_OFFSET, Rig, memfd};
use crate::{DiscardError, Discarder, Features, FileRegion, Lookup, MapError, MemoryMap, ReplaceError, Role};

fn other_file(rig: &Rig, gpa: u64, pages: u64) -> FileRegion {
    let region = rig.region(gpa, 0, pages * PAGE_SIZE);
    FileRegion { file: memfd(pages).into(), ..region }
}

#[test]
fn two_regions_of_one_file_are_one_space() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    // The file's second frame at RAM + 1 GiB, its third at RAM: neither order nor offset follows the addresses.
    let (low, high) =
        (rig.region(RAM, RAM_OFFSET + (2 << 20), 2 << 20), rig.region(2 * RAM, RAM_OFFSET, 2 << 20));
    rig.device.replace_memory(vec![high, low]).unwrap();
    assert_eq!(rig.device.ledger().spaces().count(), 1);
    let pfns = rig.pfns(BUFFERS, [RAM >> 12, ((2 * RAM) >> 12) + 3]);
    rig.send(Role::Inflate, &[pfns]);
    assert_eq!(rig.lost(), [515, 1024]);
}

#[test]
fn a_file_that_stays_keeps_its_states_and_one_that_goes_is_forgotten() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    rig.name(Role::Inflate, 600..700);
    let table = vec![rig.region(RAM, RAM_OFFSET, 4 << 20), other_file(&rig, 4 * RAM, 512)];
    rig.device.replace_memory(table).unwrap();
    let counts = rig.device.ledger().counts();
    assert_eq!((counts.ballooned, counts.total()), (PageCount(100), PageCount(512 + 1024 + 512)));
    let table = vec![other_file(&rig, 4 * RAM, 512)];
    rig.device.replace_memory(table).unwrap();
    assert_eq!(rig.device.ledger().counts().total(), PageCount(512));
    assert_eq!(rig.device.memory().page(plimsoll_units::Gpa(RAM)), Lookup::Outside);
    rig.device.ledger().audit().unwrap();
}

#[test]
fn a_file_that_goes_is_closed() {
    let mut rig = Rig::new(512, Features::DEFAULT);
    let gone = rig.device.memory().regions()[0].space;
    rig.device.replace_memory(vec![]).unwrap();
    // An open descriptor would keep all its memory alive.
    let held = rig.device.discarder_mut().discard(gone, Bytes::ZERO, Bytes(PAGE_SIZE));
    assert!(matches!(held, Err(DiscardError::UnknownSpace(_))));
}

#[test]
fn a_bad_table_leaves_the_device_without_memory() {
    let mut rig = Rig::new(1024, Features::DEFAULT);
    let short = vec![rig.region(RAM, RAM_OFFSET, 5 << 20)];
    assert!(matches!(rig.device.replace_memory(short), Err(ReplaceError::FileTooShort { .. })));
    rig.name_anywhere();
    let empty = vec![rig.region(RAM, RAM_OFFSET, 0)];
    assert!(matches!(rig.device.replace_memory(empty), Err(ReplaceError::Map(MapError::Empty(_)))));
    let overlap = vec![rig.region(RAM, 0, 2 << 20), rig.region(RAM + 4096, 0, 2 << 20)];
    assert!(matches!(rig.device.replace_memory(overlap), Err(ReplaceError::Map(MapError::Overlap(..)))));
    let far = vec![rig.region(u64::MAX - 4095, 0, 2 << 20)];
    assert!(matches!(rig.device.replace_memory(far), Err(ReplaceError::Map(MapError::Overflow(_)))));
    let huge_offset = vec![rig.region(RAM, u64::MAX - 4095, 2 << 20)];
    assert!(matches!(rig.device.replace_memory(huge_offset), Err(ReplaceError::FileTooShort { .. })));
    let too_large = vec![other_file(&rig, RAM, 1 << 30)];
    assert!(matches!(rig.device.replace_memory(too_large), Err(ReplaceError::Space(_))));
    let no_file = vec![FileRegion { file: memfd(0).into(), ..rig.region(RAM, 0, 4096) }];
    assert!(matches!(rig.device.replace_memory(no_file), Err(ReplaceError::FileTooShort { .. })));
    rig.name_anywhere();
    assert!(rig.lost().is_empty());
    rig.device.ledger().audit().unwrap();
    let good = vec![rig.region(RAM, RAM_OFFSET, 4 << 20)];
    rig.device.replace_memory(good).unwrap();
    rig.name(Role::Inflate, [700]);
    assert_eq!(rig.lost(), [700]);
}

#[test]
fn a_map_that_names_no_space_forgets_them_all() {
    let mut rig = Rig::new(512, Features::DEFAULT);
    let map = rig.device.memory().clone();
    rig.name(Role::Inflate, [600]);
    rig.device.set_memory(map);
    assert_eq!(rig.device.ledger().counts().ballooned, PageCount(1));
    rig.device.set_memory(MemoryMap::default());
    assert_eq!(rig.device.ledger().spaces().count(), 0);
    rig.name_anywhere();
    assert_eq!(rig.lost(), [600]);
}
