//! How fast a pager is, beside what the kernel does by itself: `cargo bench -p plimsoll-pager [-- --mib 256 --rounds 9 --huge]`.
//!
//! All sides alternate in one process, on memory that is warm: it was populated and given back before, so that the kernel takes it
//! from its free lists. One JSON object on standard output: rates in MiB/s and ratios, each with the median, the least and the
//! most of the rounds. A ratio is of two measurements of the same round.
//!
//! * `populate_vs_kernel`: a thread writes to every page; the pager serves its faults / the kernel does, nobody watching.
//! * `populate_vs_4k`: the same / a pager that serves every fault with one page.
//! * `scan_vs_read`: looking for empty pages where only the last word of each is not zero / reading with the same calls.
//! * `sweep_vs_punch`: a whole sweep of zero memory that is mapped / punching the same.
//!
//! With `--huge` the memory is on a tmpfs with huge pages (it takes root); otherwise a memfd, with what this machine allows.
#![expect(clippy::print_stdout, reason = "a program whose result is what it prints")]

mod guest;
mod sides;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::sides::{Piecemeal, Scanning, Served};

/// What to measure.
struct Wanted {
    mib: u64,
    rounds: usize,
    huge: bool,
}

impl Wanted {
    fn from_args() -> Result<Self, String> {
        let mut wanted = Self { mib: 256, rounds: 9, huge: false };
        let mut measure = false;
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut number = || args.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
            match arg.as_str() {
                // Cargo says so when it runs benchmarks, and not when it runs tests.
                "--bench" => measure = true,
                "--huge" => wanted.huge = true,
                "--mib" => wanted.mib = number().ok_or("--mib needs a number")?,
                "--rounds" => {
                    let rounds = number().and_then(|n| usize::try_from(n).ok());
                    wanted.rounds = rounds.ok_or("--rounds needs a number")?;
                }
                other => return Err(format!("unknown argument {other}: use --mib N, --rounds N, --huge")),
            }
        }
        if !measure {
            (wanted.mib, wanted.rounds) = (16, 1);
        }
        Ok(wanted)
    }
}

/// MiB/s of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    kernel: f64,
    pager: f64,
    piecemeal: f64,
    read: f64,
    scan: f64,
    punch: f64,
    sweep: f64,
}

fn main() -> Result<(), String> {
    let wanted = Wanted::from_args()?;
    let served = Served::new(wanted.mib, wanted.huge)?;
    let piecemeal = Piecemeal::new(wanted.mib.div_ceil(8), wanted.huge)?;
    let mut scanning = Scanning::new(wanted.mib, wanted.huge)?;
    let mut rounds = Vec::new();
    // The first one warms the memory up.
    for number in 0..=wanted.rounds {
        let round = measure(&wanted, &served, &piecemeal, &mut scanning);
        if number > 0 {
            rounds.push(round);
        }
    }
    println!("{}", report(&wanted, &served, &rounds));
    Ok(())
}

fn measure(wanted: &Wanted, served: &Served, piecemeal: &Piecemeal, scanning: &mut Scanning) -> Round {
    let whole = wanted.mib;
    let rate = |mib: u64, took: Duration| float(mib) / took.as_secs_f64();
    let kernel = rate(whole, timed(|| served.touch_unwatched()));
    served.forget_unwatched();
    let pager = rate(whole, timed(|| served.touch()));
    served.give_back();
    let small = rate(wanted.mib.div_ceil(8), timed(|| piecemeal.touch()));
    piecemeal.give_back();
    let read = rate(whole, timed(|| scanning.read()));
    let scan = rate(whole, timed(|| scanning.scan()));
    served.touch_reading();
    let punch = rate(whole, timed(|| served.punch()));
    served.notice();
    served.touch_reading();
    let sweep = rate(whole, timed(|| served.sweep()));
    Round { kernel, pager, piecemeal: small, read, scan, punch, sweep }
}

fn report(wanted: &Wanted, served: &Served, rounds: &[Round]) -> Value {
    let of = |what: &dyn Fn(&Round) -> f64| spread(rounds.iter().map(what).collect());
    json!({
        "name": "pager rates",
        "mib": wanted.mib,
        "rounds": rounds.len(),
        "huge_pages": wanted.huge,
        "shmem_enabled": std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").ok(),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").ok(),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "load": std::fs::read_to_string("/proc/loadavg").ok(),
        "whole_frame_share_ppm": served.whole_frame_share(),
        "mib_per_s": {
            "kernel": of(&|round| round.kernel),
            "pager": of(&|round| round.pager),
            "pager_4k": of(&|round| round.piecemeal),
            "read": of(&|round| round.read),
            "scan": of(&|round| round.scan),
            "punch": of(&|round| round.punch),
            "sweep": of(&|round| round.sweep),
        },
        "populate_vs_kernel": of(&|round| round.pager / round.kernel),
        "populate_vs_4k": of(&|round| round.pager / round.piecemeal),
        "scan_vs_read": of(&|round| round.scan / round.read),
        "sweep_vs_punch": of(&|round| round.sweep / round.punch),
    })
}

fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let rounded = |value: Option<&f64>| value.map(|value| (value * 1000.0).round() / 1000.0);
    json!({
        "median": rounded(values.get(values.len() / 2)),
        "least": rounded(values.first()),
        "most": rounded(values.last()),
    })
}

fn timed(deed: impl FnOnce()) -> Duration {
    let began = Instant::now();
    deed();
    began.elapsed()
}

/// Exact: MiB are few.
fn float(mib: u64) -> f64 {
    f64::from(u32::try_from(mib).unwrap_or(u32::MAX))
}
