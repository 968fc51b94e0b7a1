//! A small closed loop around the arbiter: guests that obey at a limited rate and have loads of their own.

use plimsoll_model::{
    AgentSample, AgentStats, GuestStats, HostSample, Link, OnExhausted, PagerSample, Plan, Sizes, Snapshot,
    StatsSample, Tunables, VmId, VmName, VmSample,
};
use plimsoll_policy::{Config, History, decide};
use plimsoll_units::{Bytes, MemTarget, MonoTime};

/// A settled VM that holds its baseline.
pub(crate) fn vm(id: u64, floor: Bytes, memory: Bytes, maxmem: Bytes) -> VmSample {
    VmSample {
        id: VmId(id),
        name: VmName::new(&format!("vm{id}")).unwrap(),
        sizes: Sizes::new(memory, maxmem, Some(floor), None).unwrap(),
        overhead: Bytes::ZERO,
        link: Link::Up,
        target: MemTarget(memory),
        actual: MemTarget(memory),
        resident: None,
        hold: None,
        stats: None,
        agent: None,
        tunables: Tunables::default(),
        pager: None,
    }
}

/// A guest whose memory is populated on demand touches what its programs use. Whether it stands still then.
fn touches(vm: &mut VmSample, load: Bytes, millis: u64) -> bool {
    let actual = vm.actual.0;
    let before = vm.pager.unwrap_or(PagerSample {
        limit: vm.target.0,
        resident: Bytes::ZERO,
        stalled_ms: None,
        on_exhausted: OnExhausted::Grow,
    });
    // What went into the balloon has come back.
    let left = before.resident.min(actual);
    let limit = vm.target.0.max(before.limit.min(left));
    let stalled_ms = (load > limit).then(|| before.stalled_ms.map_or(0, |ms| ms + millis));
    vm.pager = Some(PagerSample { limit, resident: left.max(load).min(limit), stalled_ms, ..before });
    stalled_ms.is_some()
}

/// Bytes a guest moves in a millisecond.
const RATE: u64 = 64 << 10;

/// The loop.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) budget: Bytes,
    pub(crate) vms: Vec<VmSample>,
    /// What each guest's programs use.
    loads: Vec<Bytes>,
    now: MonoTime,
    seed: u64,
    config: Config,
    history: History,
}

impl World {
    pub(crate) fn new(seed: u64, n: u64, budget: Bytes) -> Self {
        let vms: Vec<_> = (1..=n).map(|id| vm(id, Bytes::mib(32), Bytes::mib(80), Bytes::mib(192))).collect();
        let loads = vec![Bytes::mib(20); vms.len()];
        Self {
            budget,
            vms,
            loads,
            now: MonoTime(0),
            seed,
            config: Config::default(),
            history: History::default(),
        }
    }

    fn random(&mut self) -> u64 {
        // splitmix64, so that a seed means the same for ever.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Gives each guest a load; together with everybody's headroom they fit the budget.
    pub(crate) fn draw_loads(&mut self) {
        let mut rest = self.budget.0;
        let n = self.vms.len() as u64;
        for i in 0..self.vms.len() {
            // Everybody still to come needs 20M and headroom for it.
            let reserved = (n - 1 - i as u64) * (48 << 20);
            let most =
                (rest.saturating_sub(reserved).saturating_sub(32 << 20) * 5 / 6).clamp(20 << 20, 150 << 20);
            let load = (20 << 20) + self.random() % (most - (20 << 20) + 1);
            self.loads[i] = Bytes(load);
            rest = rest.saturating_sub(self.config.need(plimsoll_model::Source::Device, Bytes(load)).0);
        }
    }

    /// What all hold, or may come to hold where a pager limits that.
    pub(crate) fn held(&self) -> u64 {
        self.vms.iter().map(|vm| vm.pager.map_or(vm.actual.0, |pager| pager.limit).0).sum()
    }

    /// Guests move, then the arbiter decides.
    pub(crate) fn tick(&mut self, millis: u64) -> Plan {
        self.now = self.now.plus_millis(millis);
        let step = RATE * millis;
        for (vm, load) in self.vms.iter_mut().zip(&self.loads) {
            let (actual, target) = (vm.actual.0.0, vm.target.0.0);
            // The memory of some is populated on demand.
            if vm.id.0.is_multiple_of(3) && touches(vm, *load, millis) {
                continue;
            }
            vm.actual = MemTarget(Bytes(if target < actual {
                // A guest does not give what its programs use.
                actual.saturating_sub(step).max(target).max(load.0.min(actual))
            } else {
                (actual + step).min(target)
            }));
            let available = vm.actual.0.minus(*load);
            let stats = GuestStats { available: Some(available), ..GuestStats::default() };
            vm.stats = Some(StatsSample { at: self.now, stats });
            // Some have an agent, and some of those propose their own targets.
            if vm.id.0.is_multiple_of(2) {
                let stats = AgentStats {
                    total: Some(vm.sizes.maxmem()),
                    available: Some(available),
                    committed: Some(*load),
                    refaults: Some(self.now.0 / 1_000_000),
                    cached: Some(available),
                    ..AgentStats::default()
                };
                vm.agent = Some(AgentSample { at: self.now, stats });
                vm.tunables.selfballooning = vm.id.0.is_multiple_of(4);
            }
        }
        let snapshot = Snapshot {
            now: self.now,
            host: HostSample {
                budget: self.budget,
                available: self.budget,
                low: Bytes::ZERO,
                psi: None,
                swap_in_pages: 0,
                swap_out_pages: 0,
            },
            vms: self.vms.clone(),
        };
        let plan = decide(&snapshot, &self.config, &mut self.history);
        for action in &plan.actions {
            let vm = self.vms.iter_mut().find(|vm| vm.id == action.vm).unwrap();
            vm.target = action.to;
        }
        plan
    }
}
