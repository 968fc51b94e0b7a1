//! How long one decision takes: `cargo bench -p plimsoll-policy`, or `cargo xtask bench decide`.
//!
//! Mark: 1,000 VMs under 1 ms, 10,000 under 10 ms on one core. Every VM has fresh statistics, a tenth are in
//! distress and the host is over its budget, so that every part of the arbiter works.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use plimsoll_model::{
    GuestStats, HostSample, Link, Sizes, Snapshot, StatsSample, Tunables, VmId, VmName, VmSample,
};
use plimsoll_policy::{Config, History, decide};
use plimsoll_units::{Bytes, MemTarget, MonoTime};

fn snapshot(n: u64, now: MonoTime) -> Snapshot {
    let vms = (0..n)
        .map(|id| {
            let memory = Bytes::mib(512 + id % 512);
            let available = if id % 10 == 0 { Bytes::mib(4) } else { Bytes::mib(64 + id % 256) };
            let stats =
                GuestStats { available: Some(available), swap_in: Some(Bytes(id)), ..GuestStats::default() };
            VmSample {
                id: VmId(id),
                name: VmName::new(&format!("vm{id}")).expect("a plain name"),
                sizes: Sizes::new(memory, Bytes::gib(2), None, None).expect("sizes in order"),
                overhead: Bytes::mib(64),
                link: Link::Up,
                target: MemTarget(memory),
                actual: MemTarget(memory),
                resident: Some(memory),
                hold: None,
                stats: Some(StatsSample { at: now, stats }),
                agent: None,
                tunables: Tunables::default(),
                pager: None,
            }
        })
        .collect();
    let budget = Bytes::mib(800 * n);
    let host = HostSample {
        budget,
        available: budget,
        low: Bytes::ZERO,
        psi: None,
        swap_in_pages: 0,
        swap_out_pages: 0,
    };
    Snapshot { now, host, vms }
}

fn bench(c: &mut Criterion) {
    let config = Config::default();
    let mut group = c.benchmark_group("decide");
    for n in [35, 1_000, 10_000] {
        let mut history = History::default();
        decide(&snapshot(n, MonoTime(0)), &config, &mut history);
        let next = snapshot(n, MonoTime(1_000_000));
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_batched_ref(
                || history.clone(),
                |history| decide(&next, &config, history),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
