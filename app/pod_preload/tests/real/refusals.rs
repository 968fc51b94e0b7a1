//! What ends the VMM, and how it says so.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use plimsoll_testbed::skip::{skip, unless_root};
use plimsoll_uffd::agreement::{self, exit};
use plimsoll_uffd::handover::{Heard, PodListener, Refusal, ToVmm};
use plimsoll_units::PAGE_SIZE;

use crate::bed::{Bed, SIZE, Vmm};
use crate::library::library;
use crate::pager::{accept, connection, handover, hear};

#[track_caller]
fn ends(vmm: &mut Vmm, code: i32, words: &str) {
    let (found, said) = vmm.end();
    assert!(found == code && said.contains(words), "exit code {found}, {said}");
}

#[test]
fn an_environment_that_makes_no_sense_ends_it_before_it_starts() {
    let Some(bed) = Bed::new("an_environment_that_makes_no_sense_ends_it_before_it_starts") else { return };
    for (variable, value, words) in [
        (agreement::FILE, None, "PLIMSOLL_POD_FILE is not set"),
        (agreement::SOCKET, None, "PLIMSOLL_POD_SOCKET is not set"),
        (agreement::FILE, Some("/dev/shm/x"), "PLIMSOLL_POD_FILE is not MAJOR:MINOR:INODE"),
        (agreement::ON_LOSS, Some("die"), "PLIMSOLL_POD_ON_LOSS is neither `stall` nor `open`"),
        (agreement::DEADLINE_MS, Some("soon"), "PLIMSOLL_POD_DEADLINE_MS is not a number"),
    ] {
        let mut command = bed.command();
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
        let _ = std::fs::remove_file(bed.dir.path().join("stderr"));
        ends(&mut bed.start_as(command), exit::ENVIRONMENT, words);
    }
}

#[test]
fn a_mapping_that_could_not_be_served_ends_it() {
    let Some(bed) = Bed::new("a_mapping_that_could_not_be_served_ends_it") else { return };
    let _listener = PodListener::bind(&bed.socket()).unwrap();
    let (half, page) = (SIZE / 2, PAGE_SIZE);
    for (command, words) in [
        ("map-private".to_owned(), "privately"),
        (format!("map-part 0 {half}"), "in part"),
        (format!("map-part {page} {}", SIZE - page), "in part"),
        (format!("map-part 0 {}", SIZE + page), "beyond its end"),
    ] {
        let _ = std::fs::remove_file(bed.dir.path().join("stderr"));
        let mut vmm = bed.start();
        vmm.begin(&command);
        ends(&mut vmm, exit::MAPPING, words);
    }
}

#[test]
fn a_second_mapping_ends_it() {
    let Some(bed) = Bed::new("a_second_mapping_ends_it") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let taken = accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    vmm.begin("map");
    ends(&mut vmm, exit::MAPPING, "a second time");
    assert!(matches!(hear(&taken.socket), Heard::Closed));
}

#[test]
fn a_child_that_maps_the_memory_is_ended_and_its_parent_not() {
    let Some(bed) = Bed::new("a_child_that_maps_the_memory_is_ended_and_its_parent_not") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let taken = accept(&listener, &bed);
    assert_eq!(vmm.reply(), "ok");
    assert_eq!(vmm.ask("fork-map"), format!("exit {}", exit::MAPPING));
    taken.fill(0);
    assert_eq!(vmm.ask("touch 0"), "ok 1");
}

#[test]
fn a_pager_that_is_not_there_ends_it() {
    let Some(bed) = Bed::new("a_pager_that_is_not_there_ends_it") else { return };
    let mut vmm = bed.start();
    vmm.begin("map");
    ends(&mut vmm, exit::PAGER, "no such file; without it the guest must not run");
    // A socket that nobody listens at any more.
    drop(PodListener::bind(&bed.socket()).unwrap());
    std::fs::remove_file(bed.dir.path().join("stderr")).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    ends(&mut vmm, exit::PAGER, "nobody listens there");
}

#[test]
fn a_pager_that_does_not_answer_in_time_ends_it() {
    let Some(mut bed) = Bed::new("a_pager_that_does_not_answer_in_time_ends_it") else { return };
    bed.deadline = Duration::from_millis(300);
    let _listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    ends(&mut vmm, exit::PAGER, "has not answered within 300 ms");
}

#[test]
fn a_pager_that_goes_away_without_an_answer_ends_it() {
    let Some(bed) = Bed::new("a_pager_that_goes_away_without_an_answer_ends_it") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    drop(connection(&listener));
    ends(&mut vmm, exit::PAGER, "without it the guest must not run");
}

#[test]
fn a_pager_that_refuses_ends_it_with_the_reason() {
    let Some(bed) = Bed::new("a_pager_that_refuses_ends_it_with_the_reason") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let (socket, _taken) = handover(&listener, &bed);
    socket.answer(ToVmm::Refused(Refusal::Taken)).unwrap();
    ends(&mut vmm, exit::PAGER, Refusal::Taken.words());
}

#[test]
fn somebody_else_at_the_socket_ends_it() {
    let Some(bed) = Bed::new("somebody_else_at_the_socket_ends_it") else { return };
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let mut vmm = bed.start();
    vmm.begin("map");
    let socket = connection(&listener);
    plimsoll_shm::send(&socket, &[b'x'; 41], &[]).unwrap();
    ends(&mut vmm, exit::PAGER, "no pager of this version");
}

#[test]
fn without_the_right_to_a_userfaultfd_it_names_the_settings() {
    let test = "without_the_right_to_a_userfaultfd_it_names_the_settings";
    let (Some(bed), Some(())) = (Bed::new(test), unless_root(test)) else { return };
    if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "1") {
        return skip(test, "vm.unprivileged_userfaultfd=1: everybody has the right here");
    }
    let program = bed.dir.path().join("probe");
    let library_here = bed.dir.path().join(agreement::LIBRARY);
    // Where a build lies is closed to others; these copies are not.
    std::fs::copy(env!("CARGO_BIN_EXE_plimsoll-pod-probe"), &program).unwrap();
    std::fs::copy(library(), &library_here).unwrap();
    for path in [bed.dir.path(), &program, &library_here] {
        readable_by_all(path);
    }
    let told = bed.command();
    let mut command = std::process::Command::new(&program);
    command.args(told.get_args());
    bed.tell(&mut command);
    const NOBODY: u32 = 65534;
    command.env("LD_PRELOAD", &library_here).uid(NOBODY).gid(NOBODY);
    let mut vmm = bed.start_as(command);
    assert_eq!(vmm.reply(), "ready");
    vmm.begin("map");
    ends(&mut vmm, exit::KERNEL, "vm.unprivileged_userfaultfd=1");
    assert!(vmm.said().contains("/dev/userfaultfd: permission denied"), "{}", vmm.said());
}

fn readable_by_all(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).unwrap();
}
