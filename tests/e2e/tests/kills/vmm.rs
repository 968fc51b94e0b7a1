//! VMMs killed: what they had goes to whoever needs it.

use std::time::{Duration, Instant, SystemTime};

use plimsoll_api::http::{Change, Explain, Life};
use plimsoll_e2e::{Bed, Kind, PATIENCE, Vm, mib, sizes};
use plimsoll_model::{Reason, VmState};
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use crate::kit::{KILLS, Quiet, kill, tell, verify};
use crate::ram::Ram;

/// So many VMs are there at once and lose their VMMs one after the other.
const AT_ONCE: usize = 4;
/// Memory and floor of each, in MiB: they have nothing to give while they live.
const EACH: u64 = 80;
/// Memory of the VM that needs what they have, in MiB.
const NEEDY: u64 = 128;
/// How soon a death must be shown, and the memory back.
const SHOWN: Duration = Duration::from_secs(2);
/// What helpers of a killed User Mode Linux may touch again before they end.
const TOUCHED: Bytes = mib(1);
/// Less than this available and the needy guest is in distress.
const CLOSE: Bytes = mib(7);
/// Not worth being filled.
const NEAR: Bytes = mib(3);
/// A daemon that looks often, on a host that has all these VMs' memory and overheads and nothing beyond.
const CONFIG: &str = "
tick = \"200ms\"
[host]
budget = \"528M\"
low = \"1M\"
overhead-uml = \"16M\"
[policy]
host-stall = \"100%\"
idle-share = \"100%\"
plenty-share = \"100%\"
";
const BUDGET: u64 = NEEDY + 16 + 4 * (EACH + 16);

#[test]
fn what_a_killed_vmm_had_goes_to_whoever_needs_it() {
    const NAME: &str = "what_a_killed_vmm_had_goes_to_whoever_needs_it";
    assert!(CONFIG.contains(&format!("budget = \"{BUDGET}M\"")));
    let Some(bed) = Bed::new(NAME, CONFIG) else { return };
    let Some(needy) = bed.run(Kind::Uml, "needy", sizes(NEEDY, BUDGET, 64), &[]) else { return };
    needy.reaches(mib(NEEDY));
    let quiet = Quiet::from_now_on(&needy);
    let mut killed = 0;
    while killed < KILLS {
        let Some(vms) = start(&bed, killed) else { return };
        for vm in &vms {
            is_killed(vm, &needy);
            killed += 1;
        }
        verify(&needy, 1);
        needy.send("free");
        for vm in &vms {
            let said = bed.ok(&["stop", &vm.name]);
            assert!(said.contains("had ended already"), "{said}");
        }
        let names: Vec<_> = bed.list().vms.iter().map(|vm| vm.name.to_string()).collect();
        assert_eq!(names, ["needy"]);
    }
    quiet.check(&needy);
    bed.ok(&["stop", "needy", "--kill"]);
    bed.only_the_daemon_is_left();
    tell(&format!("{killed} VMMs killed"));
}

fn start(bed: &Bed, first: usize) -> Option<Vec<Vm<'_>>> {
    let launch =
        |index| bed.launch(Kind::Uml, &format!("vm{}", first + index), sizes(EACH, EACH + 32, EACH), &[]);
    let vms = (0..AT_ONCE).map(launch).collect::<Option<Vec<_>>>()?;
    for vm in &vms {
        vm.console.wait_ready(1, Duration::from_secs(120)).unwrap_or_else(|error| panic!("{error}"));
    }
    for vm in &vms {
        vm.reaches(mib(EACH));
        vm.send("fill 16M 3");
    }
    Some(vms)
}

/// The needy guest waits until the other's VMM is killed, and then has what that had.
#[track_caller]
fn is_killed(vm: &Vm<'_>, needy: &Vm<'_>) {
    let before = comes_into_distress(needy);
    let ram = Ram::of(vm);
    assert!(ram.kept() >= mib(16), "{}", ram.kept());
    let (death, since_us) = (Instant::now(), wall_us());
    kill(vm.pid);
    vm.wait("to be shown as gone", SHOWN, |view| view.life == Life::Gone);
    let back = || {
        let kept = ram.kept();
        if kept <= TOUCHED { Ok(()) } else { Err(format!("{kept} kept by processes {:?}", ram.users())) }
    };
    poll_until(SHOWN.saturating_sub(death.elapsed()), "its memory to be back", back)
        .unwrap_or_else(|error| panic!("{}: {error}", vm.name));
    assert_eq!(vm.bed.count(&vm.name, "gone"), 1);
    was_granted(needy, before.plus(mib(EACH)), since_us);
}

/// Fills what the guest has, so that it needs more and is refused it: there is none. Its target then.
#[track_caller]
fn comes_into_distress(needy: &Vm<'_>) -> Bytes {
    let look = || {
        let left = needy.meminfo("available").minus(CLOSE);
        if left > NEAR {
            needy.send(&format!("fill {}", left.0 & !0xfff));
            return Err(format!("{left} were left"));
        }
        let view = needy.view();
        let waits = view.state == VmState::Distressed && view.actual == view.target;
        if waits { Ok(view.target.0) } else { Err(format!("{view:#?}")) }
    };
    poll_until(PATIENCE, "the guest to be in distress", look).unwrap_or_else(|error| panic!("{error}"))
}

/// For its distress the guest was given this much since then, for however long it needed it.
#[track_caller]
fn was_granted(needy: &Vm<'_>, target: Bytes, since_us: u64) {
    let look = || {
        let explain: Explain = needy.bed.json(&["explain", &needy.name]);
        let given = |change: &Change| {
            let enough = change.to.0 >= target && change.to > change.from;
            change.wall_us >= since_us && enough && matches!(change.reason, Reason::Distress { .. })
        };
        if explain.changes.iter().any(given) { Ok(()) } else { Err(format!("{explain:#?}")) }
    };
    poll_until(PATIENCE, &format!("{target} to be granted"), look).unwrap_or_else(|error| panic!("{error}"));
}

/// Microseconds since 1970.
fn wall_us() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    u64::try_from(since.as_micros()).expect("before the year 586524")
}
