//! A back end that dies again and again.

use std::time::Duration;

use plimsoll_api::http::Life;
use plimsoll_e2e::{Bed, CALM, Kind, PATIENCE, mib, only, sizes};
use plimsoll_testbed::wait::poll_until;

use crate::kit::{OFTEN, Quiet, kill, tell, verify};
use crate::probe::Probe;

/// Deaths within ten seconds after which the device rests.
const DEATHS: u64 = 5;
/// How soon the daemon must show it: it takes an answer for stale after 3 s.
const SHOWN: Duration = Duration::from_secs(6);

#[test]
fn a_device_whose_back_end_dies_again_and_again_rests_and_its_vm_lives() {
    const NAME: &str = "a_device_whose_back_end_dies_again_and_again_rests_and_its_vm_lives";
    let Some(bed) = Bed::new(NAME, &format!("{OFTEN}{CALM}")) else { return };
    let Some(vm) = bed.run(Kind::Uml, "web", sizes(128, 160, 64), &[]) else { return };
    vm.reaches(mib(128));
    vm.send("fill 24M 5");
    let (mut probe, quiet) = (Probe::new(&vm), Quiet::from_now_on(&vm));
    for _ in 1..DEATHS {
        let before = probe.status();
        probe.kill(&before);
    }
    kill(probe.pid().expect("there is a back end"));
    let view = vm.wait("to be shown as unreachable", SHOWN, |view| view.life == Life::Unreachable);
    assert_eq!((view.target.0, only(&bed.list()).life), (mib(128), Life::Unreachable));
    let shown = bed.ok(&["list"]);
    assert!(shown.lines().any(|line| line.starts_with("web ") && line.contains("unreachable")), "{shown}");
    let nobody = || probe.pid().map_or(Ok(()), |pid| Err(format!("{pid:?}")));
    poll_until(Duration::from_secs(1), "no back end", nobody).expect("it is not started again at once");
    let told = || match bed.count("web", "unreachable") {
        1 => Ok(()),
        n => Err(format!("{n} times")),
    };
    poll_until(SHOWN, "it to be told of", told).unwrap_or_else(|error| panic!("{error}"));

    // The guest goes on with the balloon it has.
    vm.send("fill 24M 6");
    verify(&vm, mib(48).pages_floor().0);
    assert_eq!(vm.send("balloon").number("inflate"), Some(mib(32).pages_floor().0));
    quiet.check(&vm);

    // After the rest all is well again, and what was wanted meanwhile is done.
    bed.ok(&["hold", "web", "112M"]);
    let view = vm.reaches(mib(112));
    let epoch = view.backend.map(|backend| backend.epoch);
    assert_eq!((view.life, epoch), (Life::Running, Some(1 + DEATHS)), "{view:#?}");
    vm.wait("statistics", PATIENCE, |view| view.stats_age_ms.is_some_and(|age| age < 3000));
    verify(&vm, mib(48).pages_floor().0);
    quiet.check(&vm);
    tell(&format!("{DEATHS} back ends killed in a row, and the device came back after its rest"));
}
