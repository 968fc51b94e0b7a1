//! What is measured of each VM. Values are filled in when somebody asks: a tick pays nothing for them.

use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll_api::http::{Life, VmView};
use plimsoll_model::VmState;
use plimsoll_units::{Bytes, PAGE_SIZE};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::signed;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Of {
    pub(super) vm: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct In {
    vm: String,
    state: &'static str,
}

pub(super) type Gauges = Family<Of, Gauge>;
pub(super) type Counters = Family<Of, Counter>;

/// Families with one row for each VM.
#[derive(Debug)]
pub(super) struct VmMetrics {
    target: Gauges,
    actual: Gauges,
    resident: Gauges,
    floor: Gauges,
    memory: Gauges,
    maxmem: Gauges,
    overhead: Gauges,
    available: Gauges,
    need: Gauges,
    spare: Gauges,
    weight: Gauges,
    held: Gauges,
    epoch: Gauges,
    generation: Gauges,
    state: Family<In, Gauge>,
    life: Family<In, Gauge>,
    inflated: Counters,
    deflated: Counters,
    reported: Counters,
    discarded: Counters,
    discards: Counters,
    whole_frames: Counters,
    discard_errors: Counters,
    bad_buffers: Counters,
    bad_pages: Counters,
    agent_age: Family<Of, Gauge<f64, AtomicU64>>,
    agent_reports: Counters,
    agent_bad_frames: Counters,
    agent_other_versions: Counters,
    agent_out_of_order: Counters,
    agent_flooded: Counters,
    agent_skipped: Counters,
}

pub(super) fn bytes(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register_with_unit(name, help, Unit::Bytes, family.clone());
    family
}

pub(super) fn plain(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register(name, help, family.clone());
    family
}

pub(super) fn seconds(registry: &mut Registry, name: &str, help: &str) -> Family<Of, Gauge<f64, AtomicU64>> {
    let family = Family::default();
    registry.register_with_unit(name, help, Unit::Seconds, Family::clone(&family));
    family
}

fn states(registry: &mut Registry, name: &str, help: &str) -> Family<In, Gauge> {
    let family = Family::<In, Gauge>::default();
    registry.register(name, help, family.clone());
    family
}

pub(super) fn byte_count(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register_with_unit(name, help, Unit::Bytes, family.clone());
    family
}

pub(super) fn count(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

impl VmMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            target: bytes(r, "vm_target", "Memory granted to the VM"),
            actual: bytes(r, "vm_actual", "Memory the guest holds: maxmem less its balloon"),
            resident: bytes(r, "vm_resident", "Host memory behind the guest"),
            floor: bytes(r, "vm_floor", "Memory guaranteed to the VM"),
            memory: bytes(r, "vm_memory", "The VM's baseline"),
            maxmem: bytes(r, "vm_maxmem", "Memory the guest was told it has"),
            overhead: bytes(r, "vm_overhead", "Memory of the VMM beyond its guest's that is reckoned with"),
            available: bytes(r, "vm_guest_available", "Memory available in the guest by its own word"),
            need: bytes(r, "vm_need", "Memory the guest needs by its own word, with headroom"),
            spare: bytes(r, "vm_spare", "Memory the VM could give without needing it"),
            weight: plain(r, "vm_weight", "The VM's share beside the others'"),
            held: plain(r, "vm_held", "1 while an operator holds the VM's target"),
            epoch: plain(r, "vm_backend_epoch", "How often a back end was started for the VM"),
            generation: plain(r, "vm_guest_generation", "How often a front end connected to the VM's keeper"),
            state: states(r, "vm_state", "1 for the arbiter's word for the VM's state, 0 for the others"),
            life: states(r, "vm_life", "1 for where the VM is in its life, 0 for the others"),
            inflated: byte_count(
                r,
                "vm_inflated",
                "Memory taken into the balloon since the back end started",
            ),
            deflated: byte_count(
                r,
                "vm_deflated",
                "Memory given back from the balloon since the back end started",
            ),
            reported: byte_count(r, "vm_reported", "Memory reported free since the back end started"),
            discarded: byte_count(
                r,
                "vm_discarded",
                "Memory the kernel was asked to discard since the back end started",
            ),
            discards: count(r, "vm_discards", "Discards asked of the kernel since the back end started"),
            whole_frames: count(r, "vm_discarded_frames", "Whole 2 MiB frames among the discards"),
            discard_errors: count(r, "vm_discard_errors", "Discards the kernel refused"),
            bad_buffers: count(r, "vm_bad_buffers", "Malformed buffers the guest sent"),
            bad_pages: count(r, "vm_bad_pages", "Pages the guest named that it does not have"),
            agent_age: seconds(r, "vm_agent_age", "Age of the last report of the agent in the guest"),
            agent_reports: count(r, "vm_agent_reports", "Reports of the agent in the guest"),
            agent_bad_frames: count(r, "vm_agent_bad_frames", "Damaged frames on the agent's line"),
            agent_other_versions: count(
                r,
                "vm_agent_other_versions",
                "Frames on the agent's line of a version that the host does not know",
            ),
            agent_out_of_order: count(
                r,
                "vm_agent_out_of_order",
                "Reports of the agent that came twice or too late and were dropped",
            ),
            agent_flooded: count(
                r,
                "vm_agent_flooded",
                "Reports of the agent beyond 20 a second, none of which calls for a tick",
            ),
            agent_skipped: byte_count(
                r,
                "vm_agent_skipped",
                "Bytes on the agent's line that belong to no report",
            ),
        }
    }

    fn clear(&self) {
        let gauges = [
            &self.target,
            &self.actual,
            &self.resident,
            &self.floor,
            &self.memory,
            &self.maxmem,
            &self.overhead,
            &self.available,
            &self.need,
            &self.spare,
            &self.weight,
            &self.held,
            &self.epoch,
            &self.generation,
        ];
        gauges.into_iter().for_each(Gauges::clear);
        let counters = [
            &self.inflated,
            &self.deflated,
            &self.reported,
            &self.discarded,
            &self.discards,
            &self.whole_frames,
            &self.discard_errors,
            &self.bad_buffers,
            &self.bad_pages,
            &self.agent_reports,
            &self.agent_bad_frames,
            &self.agent_other_versions,
            &self.agent_out_of_order,
            &self.agent_flooded,
            &self.agent_skipped,
        ];
        counters.into_iter().for_each(Counters::clear);
        self.agent_age.clear();
        self.state.clear();
        self.life.clear();
    }

    /// Replaces every row. A VM that is gone has no memory, and keeps only its row of life.
    pub(super) fn fill(&self, vms: &[VmView]) {
        self.clear();
        for vm in vms {
            let name = vm.name.as_str();
            for (life, word) in LIVES {
                row_in(&self.life, name, word, life == vm.life);
            }
            if vm.life != Life::Gone {
                self.fill_sizes(vm, &Of { vm: name.to_owned() });
                self.fill_backend(vm, &Of { vm: name.to_owned() });
                self.fill_agent(vm, &Of { vm: name.to_owned() });
                for (state, word) in STATES {
                    row_in(&self.state, name, word, state == vm.state);
                }
            }
        }
    }

    fn fill_sizes(&self, vm: &VmView, of: &Of) {
        let set = |family: &Gauges, bytes: Bytes| {
            family.get_or_create(of).set(signed(bytes.0));
        };
        set(&self.target, vm.target.0);
        set(&self.actual, vm.actual.0);
        set(&self.floor, vm.sizes.floor());
        set(&self.memory, vm.sizes.memory());
        set(&self.maxmem, vm.sizes.maxmem());
        set(&self.overhead, vm.overhead);
        set(&self.spare, vm.spare);
        if let Some(resident) = vm.resident {
            set(&self.resident, resident);
        }
        if let Some(need) = vm.need {
            set(&self.need, need);
        }
        if let Some(available) = vm.stats.and_then(|s| s.stats.available) {
            set(&self.available, available);
        }
        self.weight.get_or_create(of).set(i64::from(vm.sizes.weight()));
        self.held.get_or_create(of).set(i64::from(vm.hold.is_some()));
    }

    fn fill_backend(&self, vm: &VmView, of: &Of) {
        let Some(backend) = vm.backend else { return };
        self.epoch.get_or_create(of).set(signed(backend.epoch));
        self.generation.get_or_create(of).set(signed(backend.generation));
        let set = |family: &Counters, value: u64| {
            family.get_or_create(of).inner().store(value, Ordering::Relaxed);
        };
        let c = backend.counters;
        let pages = |n: u64| n.saturating_mul(PAGE_SIZE);
        set(&self.inflated, pages(c.inflated_pages));
        set(&self.deflated, pages(c.deflated_pages));
        set(&self.reported, pages(c.reported_pages));
        set(&self.discarded, c.discarded_bytes);
        set(&self.discards, c.discards);
        set(&self.whole_frames, c.whole_frames);
        set(&self.discard_errors, c.discard_errors);
        set(&self.bad_buffers, c.bad_buffers);
        set(&self.bad_pages, c.bad_pages);
    }

    fn fill_agent(&self, vm: &VmView, of: &Of) {
        if let Some(agent) = vm.agent {
            self.agent_age.get_or_create(of).set(in_seconds(agent.age_ms));
        }
        let Some(line) = vm.agent_line else { return };
        let set = |family: &Counters, value: u64| {
            family.get_or_create(of).inner().store(value, Ordering::Relaxed);
        };
        set(&self.agent_reports, line.frames);
        set(&self.agent_bad_frames, line.bad_frames);
        set(&self.agent_other_versions, line.newer_versions.saturating_add(line.older_versions));
        set(&self.agent_out_of_order, line.out_of_order);
        set(&self.agent_flooded, line.flooded);
        set(&self.agent_skipped, line.skipped_bytes);
    }
}

/// Milliseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "2^53 milliseconds are 285,000 years")]
pub(super) fn in_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn row_in(family: &Family<In, Gauge>, vm: &str, state: &'static str, is: bool) {
    family.get_or_create(&In { vm: vm.to_owned(), state }).set(i64::from(is));
}

/// As the API writes them.
const STATES: [(VmState, &str); 7] = [
    (VmState::Ok, "ok"),
    (VmState::Distressed, "distressed"),
    (VmState::Stuck, "stuck"),
    (VmState::Held, "held"),
    (VmState::Stalled, "stalled"),
    (VmState::NoDriver, "no_driver"),
    (VmState::Unreachable, "unreachable"),
];

/// As the API writes them.
const LIVES: [(Life, &str); 6] = [
    (Life::Starting, "starting"),
    (Life::Running, "running"),
    (Life::Unreachable, "unreachable"),
    (Life::Unprotected, "unprotected"),
    (Life::Stopping, "stopping"),
    (Life::Gone, "gone"),
];
