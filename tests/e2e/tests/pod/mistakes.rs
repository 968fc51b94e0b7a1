//! What cannot be is refused by name, and nothing is left of it.

use plimsoll_e2e::{Bed, Kind, snapshot};

use crate::kit::{guest_sizes, possible};

/// Room for one guest of 256M and little more.
const CONFIG: &str = "
[host]
budget = \"400M\"
low = \"1M\"
overhead-qemu = \"64M\"
[policy]
host-stall = \"100%\"
";

#[test]
fn impossible_wishes_start_nothing() {
    const TEST: &str = "impossible_wishes_start_nothing";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CONFIG) else { return };
    let Some(good) = bed.run_args(Kind::Qemu, "low", guest_sizes(), &[]) else { return };
    let files: Vec<&str> = good.iter().map(String::as_str).skip_while(|word| *word != "--vmm").collect();
    let refused = |given: &[&str], code: i32, words: &[&str]| {
        let args = [&["run", "--name", "low"], given, &files[..]].concat();
        bed.cli(&args).refused(code, words);
        bed.only_the_daemon_is_left();
        assert_eq!(snapshot(&bed.list()), [], "after {given:?}");
    };
    let pod = |more: &[&'static str]| [&["--memory", "256M", "--maxmem", "512M"], more].concat();
    refused(&["--memory", "0", "--maxmem", "512M"], 2, &["memory is 0"]);
    refused(&["--memory", "256M", "--maxmem", "0"], 2, &["maxmem is 0"]);
    refused(&["--memory", "513M", "--maxmem", "512M"], 2, &["memory=513M", "maxmem=512M"]);
    refused(&["--memory", "256M", "--maxmem", "536870913"], 2, &["maxmem=536870913", "4096"]);
    refused(&["--memory", "268435457", "--maxmem", "512M"], 2, &["memory=268435457", "4096"]);
    refused(&["--memory", "256M", "--pod"], 2, &["--pod", "--maxmem above --memory=256M"]);
    refused(&pod(&["--on-exhausted", "never"]), 2, &["never", "grow", "wait", "stop"]);
    refused(&pod(&["--on-pager-loss", "shrug"]), 2, &["shrug", "stall", "open"]);
    refused(&pod(&["--no-pod", "--pod"]), 2, &["--no-pod"]);
    refused(
        &pod(&["--qemu-arg", "-device", "--qemu-arg", "vfio-pci,host=00:02.0"]),
        2,
        &["vfio-pci", "--no-pod"],
    );
    refused(&pod(&["--qemu-arg", "-drive", "--qemu-arg", "file=x,cache=none"]), 2, &["O_DIRECT", "--no-pod"]);
    // Admitted is what is granted, not what is told of: 512M with 337M of it does not fit, 256M does.
    refused(&["--memory", "337M", "--maxmem", "512M"], 1, &["`low`", "337M", "64M", "400M", "336M at most"]);
    // A QEMU that does not come up leaves nothing behind, and says why.
    refused(&pod(&["--qemu-arg", "-no-such-option"]), 1, &["low", "no-such-option"]);
}

#[test]
fn what_runs_is_not_set_beyond_what_fits() {
    const TEST: &str = "what_runs_is_not_set_beyond_what_fits";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CONFIG) else { return };
    let Some(vm) = bed.launch(Kind::Qemu, "low", guest_sizes(), &[]) else { return };
    for (change, code, words) in [
        ("memory=0", 1, &["low", "memory is 0"][..]),
        ("memory=513M", 1, &["low", "memory=513M", "maxmem=512M"]),
        ("memory=268435457", 1, &["low", "4096"]),
        ("memory=512M", 1, &["`low`", "512M", "64M", "400M", "336M at most"]),
        ("on-exhausted=never", 2, &["never", "grow, wait or stop"]),
    ] {
        bed.cli(&["set", "low", change]).refused(code, words);
        assert_eq!(vm.view().sizes, guest_sizes());
    }
    bed.ok(&["set", "low", "on-exhausted=wait"]);
    assert_eq!(vm.view().pager.map(|pager| pager.on_exhausted.to_string()).as_deref(), Some("wait"));
}
