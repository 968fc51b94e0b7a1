//! Keepers killed: their VMs go on without anybody to enforce their targets, and are told of.

use std::path::PathBuf;
use std::time::Duration;

use plimsoll_api::http::Life;
use plimsoll_e2e::{Bed, CALM, Kind, Said, Vm, mib, sizes};
use plimsoll_testbed::wait::poll_until;

use crate::kit::{KILLS, OFTEN, Quiet, kill, tell, verify};

/// So many VMs lose their keepers one after the other while the others go on.
const AT_ONCE: usize = 5;
/// How soon it must be shown.
const SHOWN: Duration = Duration::from_secs(2);
/// The targets of the VM that keeps its keeper, in MiB, taken in turns.
const BETWEEN: [u64; 2] = [96, 144];

#[test]
fn keepers_killed_again_and_again_harm_nobody_else() {
    const NAME: &str = "keepers_killed_again_and_again_harm_nobody_else";
    let Some(bed) = Bed::new(NAME, &format!("{OFTEN}{CALM}")) else { return };
    let Some(other) = bed.run(Kind::Uml, "other", sizes(144, 176, 64), &[]) else { return };
    other.reaches(mib(144));
    other.send("fill 16M 5");
    let quiet = Quiet::from_now_on(&other);
    let mut killed = 0;
    while killed < KILLS {
        let Some(vms) = start(&bed, killed) else { return };
        for (index, vm) in vms.iter().enumerate() {
            loses_its_keeper(vm);
            // Those that still have theirs, and the one that keeps it, go on as before.
            assert!(vms[index + 1..].iter().all(|vm| vm.view().life == Life::Running));
            bed.ok(&["set", "other", &format!("memory={}M", BETWEEN[killed % 2])]);
            other.reaches(mib(BETWEEN[killed % 2]));
            killed += 1;
        }
        stop(&bed, &vms);
    }
    verify(&other, mib(16).pages_floor().0);
    quiet.check(&other);
    bed.ok(&["stop", "other", "--kill"]);
    bed.only_the_daemon_is_left();
    tell(&format!("{killed} keepers killed"));
}

fn start(bed: &Bed, first: usize) -> Option<Vec<Vm<'_>>> {
    let launch = |index| bed.launch(Kind::Uml, &format!("vm{}", first + index), sizes(80, 112, 48), &[]);
    let vms = (0..AT_ONCE).map(launch).collect::<Option<Vec<_>>>()?;
    for vm in &vms {
        vm.console.wait_ready(1, Duration::from_secs(120)).unwrap_or_else(|error| panic!("{error}"));
    }
    for vm in &vms {
        vm.reaches(mib(80));
        vm.send("fill 8M 3");
    }
    Some(vms)
}

#[track_caller]
fn loses_its_keeper(vm: &Vm<'_>) {
    let (keeper, back_end) = vm.keeper_and_backend();
    kill(keeper);
    let view = vm.wait("to be shown as unprotected", SHOWN, |view| view.life == Life::Unprotected);
    // It may come to hold all it was told of, and is reckoned with that.
    assert_eq!(view.actual.0, mib(112), "{view:#?}");
    assert_eq!(vm.bed.count(&vm.name, "unprotected"), 1);
    let shown = vm.bed.ok(&["list"]);
    let line = shown.lines().find(|line| line.starts_with(&format!("{} ", vm.name))).unwrap_or_default();
    assert!(line.contains("unprotected"), "{shown}");
    let back_end = PathBuf::from(format!("/proc/{}/stat", back_end.as_raw_nonzero()));
    let ended = || {
        let stat = std::fs::read_to_string(&back_end).unwrap_or_default();
        // Dead, and waited for by nobody: its parent was the keeper.
        if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
    };
    poll_until(SHOWN, "its back end to end too", ended).unwrap_or_else(|error| panic!("{error}"));
    vm.send("ping");
    verify(vm, mib(8).pages_floor().0);
}

/// Stops them all at once, one of them as gently as the others are not, and looks for what is left.
#[track_caller]
fn stop(bed: &Bed, vms: &[Vm<'_>]) {
    let how = |index| if index == 0 { ["--timeout", "1s"].as_slice() } else { ["--kill"].as_slice() };
    std::thread::scope(|scope| {
        for (index, vm) in vms.iter().enumerate() {
            let args = [["stop", vm.name.as_str()].as_slice(), how(index)].concat();
            let mut command = bed.command(&args);
            scope.spawn(move || drop(Said::by(&mut command).ok()));
        }
    });
    let names: Vec<_> = bed.list().vms.iter().map(|vm| vm.name.to_string()).collect();
    assert_eq!(names, ["other"]);
    let left = || {
        let mut left = [bed.processes(), bed.vm_files()].concat();
        left.retain(|line| vms.iter().any(|vm| line.contains(&format!("/{}", vm.name))));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    };
    poll_until(Duration::from_secs(5), "nothing of them to be left", left)
        .unwrap_or_else(|error| panic!("{error}"));
}
