//! Handing over, and what is left alone.

use std::process::Command;

use plimsoll_uffd::handover::{Extent, Heard, PodListener, ToVmm};
use plimsoll_uffd::{HostRange, UffdError, Woken};
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};

use crate::bed::{Bed, DOUBT, SIZE, page};
use crate::library::library;
use crate::pager::{Server, accept, handover, hear, readable};

#[test]
fn the_told_file_is_handed_over_before_mmap_returns_and_its_faults_are_served() {
    let test = "the_told_file_is_handed_over_before_mmap_returns_and_its_faults_are_served";
    let Some(bed) = Bed::new(test) else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let (socket, taken) = handover(&listener, &bed);
    assert_eq!((taken.said.offset, taken.range.len()), (0, SIZE));
    vmm.waits();
    socket.answer(ToVmm::Accepted).unwrap();
    assert_eq!(vmm.reply(), "ok");
    vmm.begin(&format!("touch {}", page(700)));
    vmm.waits();
    assert_eq!(bed.resident(), 0);
    let server = Server::start(&taken.uffd, taken.range, FRAME_SIZE);
    assert_eq!(vmm.reply(), "ok 1");
    assert_eq!(bed.resident(), FRAME_SIZE);
    assert_eq!(vmm.ask(&format!("touch 0 {}", SIZE / PAGE_SIZE)), format!("ok {}", SIZE / PAGE_SIZE));
    assert_eq!(bed.resident(), SIZE);
    drop(server);
    vmm.process.kill().unwrap();
    assert!(matches!(hear(&socket), Heard::Closed));
    let page = HostRange::new(taken.range.start(), PAGE_SIZE).unwrap();
    assert!(matches!(taken.uffd.zeropage(page, Woken::Yes), Err(UffdError::Gone)));
}

#[test]
fn other_files_errno_and_children_are_left_alone() {
    let Some(bed) = Bed::new("other_files_errno_and_children_are_left_alone") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    let all_well = "ok,ok,ok,ok 64,ok,ok,ok,ok";
    assert_eq!(vmm.ask("map-other"), all_well);
    assert_eq!(vmm.ask("errno"), "ok 77 ok 77");
    assert!(!readable(&listener, DOUBT), "it has connected for another file");
    assert_eq!(vmm.ask("preload"), library().display().to_string());
    vmm.begin("map");
    let taken = accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    assert_eq!(vmm.ask("map-other"), all_well);
    assert_eq!(vmm.ask("errno"), "ok 77 ok 77");
    assert_eq!(vmm.ask("preload"), "");
    assert_eq!(vmm.ask("child-preload"), "[] 0");
    assert_eq!(vmm.ask("fork-maps"), "exit 0");
    assert!(!readable(&taken.socket, DOUBT), "it has told of another file");
    assert_eq!((vmm.said(), bed.resident()), (String::new(), 0));
}

#[test]
fn a_wish_to_fill_the_memory_at_once_is_not_fulfilled() {
    let test = "a_wish_to_fill_the_memory_at_once_is_not_fulfilled";
    for commands in [&["map-populated"][..], &["map-locked"], &["lock-future", "map"]] {
        let Some(bed) = Bed::new(test) else { return };
        let listener = PodListener::bind(&bed.socket()).unwrap();
        let mut vmm = bed.start();
        for command in commands {
            vmm.begin(command);
        }
        let taken = accept(&listener, &bed);
        for command in commands {
            assert_eq!(vmm.reply(), "ok", "{command}");
        }
        assert_eq!(bed.resident(), 0);
        vmm.begin("touch 0");
        assert_eq!(taken.fault(), 0);
        taken.fill(0);
        assert_eq!(vmm.reply(), "ok 1");
        assert_eq!(bed.resident(), PAGE_SIZE);
    }
}

#[test]
fn it_gets_through_programs_that_start_the_vmm() {
    let Some(bed) = Bed::new("it_gets_through_programs_that_start_the_vmm") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let direct = bed.command();
    let mut command = Command::new("nice");
    command.args(["sh", "-c", "exec \"$0\" \"$@\""]).arg(direct.get_program()).args(direct.get_args());
    bed.tell(&mut command);
    let mut vmm = bed.start_as(command);
    assert_eq!(vmm.reply(), "ready");
    vmm.begin("map");
    accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    assert_eq!(vmm.ask("child-preload"), "[] 0");
}

#[test]
fn unmapped_memory_can_be_mapped_again_and_is_handed_over_again() {
    let Some(bed) = Bed::new("unmapped_memory_can_be_mapped_again_and_is_handed_over_again") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    // A mapping that fails is none.
    assert_eq!(vmm.ask("map-nowhere"), "error 22");
    vmm.begin("map");
    let first = accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    vmm.begin("touch 0");
    assert_eq!(first.fault(), 0);
    first.fill(0);
    assert_eq!(vmm.reply(), "ok 1");
    assert_eq!(vmm.ask(&format!("unmap 0 {PAGE_SIZE}")), "ok");
    let piece = Extent { offset: 0, length: PAGE_SIZE };
    assert!(matches!(hear(&first.socket), Heard::Unmapped(extent) if extent == piece));
    assert_eq!(vmm.ask(&format!("cover {} {PAGE_SIZE}", page(3))), "ok");
    let piece = Extent { offset: 3 * PAGE_SIZE, length: PAGE_SIZE };
    assert!(matches!(hear(&first.socket), Heard::Unmapped(extent) if extent == piece));
    assert_eq!(vmm.ask(&format!("unmap 0 {SIZE}")), "ok");
    let whole = Extent { offset: 0, length: SIZE };
    assert!(matches!(hear(&first.socket), Heard::Unmapped(extent) if extent == whole));
    assert!(matches!(hear(&first.socket), Heard::Closed));
    vmm.begin("map");
    let second = accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    // What was in the file still is.
    assert_eq!(vmm.ask("touch 0"), "ok 1");
    vmm.begin(&format!("touch {}", page(1)));
    assert_eq!(second.fault(), PAGE_SIZE);
    second.fill(PAGE_SIZE);
    assert_eq!(vmm.reply(), "ok 1");
}
