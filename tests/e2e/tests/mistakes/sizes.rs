//! Sizes and names, beside a guest that runs and must not notice.

use plimsoll_e2e::{Bed, Kind, Vm, mib, sizes};

use crate::refused;

/// Room for the guest and little more.
const CONFIG: &str = "
[host]
budget = \"256M\"
low = \"1M\"
overhead-uml = \"16M\"
[policy]
host-stall = \"100%\"
";

#[test]
fn impossible_wishes_change_nothing() {
    let Some(bed) = Bed::new("impossible_wishes_change_nothing", CONFIG) else { return };
    let Some(web) = bed.run(Kind::Uml, "web", sizes(96, 128, 64), &[]) else { return };
    web.reaches(mib(96));
    for_a_new_vm(&bed);
    for_one_that_runs(&bed);
    names(&bed);
    web.send("ping");
    web.reaches(mib(96));
    beyond_the_budget(&bed, &web);
}

/// `run` with these sizes beside a guest whose kernel and initial RAM disk are good.
#[track_caller]
fn run_refused(bed: &Bed, name: &str, given: &[&str], code: i32, words: &[&str]) {
    let good = bed.run_args(Kind::Uml, name, sizes(32, 32, 32), &[]).expect("its images were there");
    let files = good.iter().map(String::as_str).skip_while(|word| *word != "--vmm");
    let args: Vec<_> =
        ["run", "--name", name].into_iter().chain(given.iter().copied()).chain(files).collect();
    refused(bed, &args, code, words);
}

fn for_a_new_vm(bed: &Bed) {
    const E30: &str = "1000000000000000000000000000000";
    for (given, words) in [
        (&["--memory", "64M", "--maxmem", "32M"][..], &["memory=64M", "maxmem=32M"][..]),
        (&["--memory", "64M", "--floor", "65M"], &["floor=65M", "memory=64M"]),
        (&["--memory", "0"], &["memory is 0", "1M"]),
        (&["--memory", "64M", "--floor", "0"], &["floor is 0"]),
        (&["--memory", "64M", "--maxmem", "0"], &["maxmem is 0"]),
        (&["--memory", "-64M"], &["-64M", "negative"]),
        (&["--memory", "64M", "--maxmem", "-1"], &["-1", "negative"]),
        (&["--memory", E30], &[E30, "16 EiB"]),
        (&["--memory", "64M", "--maxmem", E30], &[E30, "16 EiB"]),
        (&["--memory", "64M", "--maxmem", "17T"], &["maxmem=17T", "16T"]),
        (&["--memory", "64M", "--weight", "0"], &["weight=0", "1 to 10000"]),
        (&["--memory", "64"], &["memory=64", "4096"]),
        (&["--memory", "lots"], &["`lots` does not begin with a number", "512M"]),
    ] {
        run_refused(bed, "new", given, 2, words);
    }
}

fn for_one_that_runs(bed: &Bed) {
    for (change, code, words) in [
        ("memory=0", 1, &["web", "memory is 0"][..]),
        ("memory=-1M", 2, &["-1M", "negative"]),
        ("memory=1000000000000000000000000000000", 2, &["16 EiB"]),
        ("memory=129M", 1, &["web", "memory=129M", "maxmem=128M"]),
        ("memory=63M", 1, &["web", "floor=64M", "memory=63M"]),
        ("memory=99999999", 1, &["web", "4096"]),
        ("weight=0", 2, &["1 to 10000"]),
        ("floor=1M", 2, &["floor", "fixed"]),
        ("memroy=80M", 2, &["memroy", "did you mean memory?"]),
    ] {
        refused(bed, &["set", "web", change], code, words);
    }
    for (size, code, words) in [
        ("0", 1, &["web", "64M", "128M"][..]),
        ("63M", 1, &["web", "63M", "floor is 64M"]),
        ("129M", 1, &["web", "129M", "maxmem 128M"]),
        ("-1", 2, &["negative"]),
    ] {
        refused(bed, &["hold", "web", size], code, words);
    }
    refused(bed, &["release", "web"], 1, &["web", "not held"]);
}

fn names(bed: &Bed) {
    for args in [
        &["show", "wbe"][..],
        &["explain", "wbe"],
        &["set", "wbe", "memory=80M"],
        &["hold", "wbe"],
        &["release", "wbe"],
        &["stop", "wbe"],
    ] {
        refused(bed, args, 1, &["`wbe`", "did you mean web?"]);
    }
    refused(bed, &["show", "something-else"], 1, &["`something-else`", "`plimsoll list`"]);
    refused(bed, &["show", "a/b"], 2, &["a/b"]);
    run_refused(bed, "web", &["--memory", "32M"], 1, &["`web`"]);
    run_refused(bed, "../web", &["--memory", "32M"], 2, &["../web"]);
    refused(bed, &["lits"], 2, &["lits", "list"]);
}

/// The budget is 256M, of which the floor of `web` and its overhead, 80M, are guaranteed.
fn beyond_the_budget(bed: &Bed, web: &Vm<'_>) {
    run_refused(bed, "new", &["--memory", "161M"], 1, &["`new`", "161M", "16M", "80M", "256M", "at most"]);
    run_refused(bed, "new", &["--memory", "4G", "--floor", "4G"], 1, &["`new`", "4G", "256M"]);
    // More floors than the host has: the second is refused, whatever the first holds.
    bed.ok(&["set", "web", "memory=128M"]);
    web.reaches(mib(128));
    run_refused(bed, "new", &["--memory", "200M", "--floor", "200M"], 1, &["`new`", "256M"]);
}
