//! Prometheus metrics, in a registry of our own. `docs/metrics.md` lists them; a test keeps it complete.

mod pager;
mod vm;

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use plimsoll_api::http::ListView;
use plimsoll_model::HostState;
use plimsoll_units::{Bytes, PAGE_SIZE};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::daemon::Daemon;
use pager::PagerMetrics;
use vm::VmMetrics;

/// Bounds of the tick's histogram in seconds: a tick should take about a thousandth of its period.
const TICK_BOUNDS: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct In {
    state: &'static str,
}

/// Everything that is measured.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    vms: VmMetrics,
    pagers: PagerMetrics,
    host: HostMetrics,
    /// From the reading of the host to the last target set.
    pub(crate) tick_seconds: Histogram,
    /// Ticks that began more than half a period late.
    pub(crate) missed: Counter,
    /// Ticks that a stall of the host caused.
    pub(crate) pressure_ticks: Counter,
    /// Targets changed.
    pub(crate) changes: Counter,
    /// Targets that could not be set.
    pub(crate) failures: Counter,
    /// Times a VM came into distress.
    pub(crate) distress: Counter,
    /// Times a VM was found stuck.
    pub(crate) stuck: Counter,
    /// Times a guest was found to wait in its pager.
    pub(crate) stalls: Counter,
}

#[derive(Debug)]
struct HostMetrics {
    budget: Gauge,
    available: Gauge,
    low: Gauge,
    claimed: Gauge,
    guaranteed: Gauge,
    told: Gauge,
    waiting: Gauge,
    vms: Gauge,
    state: Family<In, Gauge>,
    some: Counter<f64, AtomicU64>,
    full: Counter<f64, AtomicU64>,
    swap_in: Counter,
    swap_out: Counter,
    ticks: Counter,
    journal_dropped: Counter,
}

fn bytes(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
    gauge
}

fn byte_count(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
    counter
}

fn seconds(registry: &mut Registry, name: &str, help: &str) -> Counter<f64, AtomicU64> {
    let counter = Counter::<f64, AtomicU64>::default();
    registry.register_with_unit(name, help, Unit::Seconds, counter.clone());
    counter
}

fn count(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

impl HostMetrics {
    fn new(r: &mut Registry) -> Self {
        let vms = Gauge::default();
        r.register("vms", "VMs that are registered and not gone", vms.clone());
        let state = Family::<In, Gauge>::default();
        r.register("host_state", "1 for how the host stands, 0 for the others", state.clone());
        Self {
            budget: bytes(r, "host_budget", "What the VMs together may be granted, overheads included"),
            available: bytes(r, "host_available", "What could be had without swapping"),
            low: bytes(r, "host_low", "Below this much available the host is short"),
            claimed: bytes(r, "host_claimed", "What the VMs claim: targets or holdings, and overheads"),
            guaranteed: bytes(r, "host_guaranteed", "Sum of floors and overheads"),
            told: bytes(r, "host_told", "Sum of what the guests were told they have"),
            waiting: bytes(r, "host_waiting", "What distressed guests wait for"),
            vms,
            state,
            some: seconds(r, "host_pressure_some", "Time in which something waited for memory"),
            full: seconds(r, "host_pressure_full", "Time in which everything waited for memory"),
            swap_in: byte_count(r, "host_swap_in", "Memory the host swapped in"),
            swap_out: byte_count(r, "host_swap_out", "Memory the host swapped out"),
            ticks: count(r, "ticks", "Ticks since the daemon started"),
            journal_dropped: count(r, "journal_dropped_lines", "Journal lines that could not be written"),
        }
    }

    fn fill(&self, list: &ListView) {
        let host = &list.host;
        let set = |gauge: &Gauge, value: Bytes| {
            gauge.set(signed(value.0));
        };
        set(&self.budget, host.sample.budget);
        set(&self.available, host.sample.available);
        set(&self.low, host.sample.low);
        set(&self.claimed, host.claimed);
        set(&self.guaranteed, host.guaranteed);
        set(&self.told, host.told);
        set(&self.waiting, host.waiting);
        let alive = list.vms.iter().filter(|vm| vm.life != plimsoll_api::http::Life::Gone).count();
        self.vms.set(i64::try_from(alive).unwrap_or(i64::MAX));
        for (state, word) in
            [(HostState::Ample, "ample"), (HostState::Tight, "tight"), (HostState::Short, "short")]
        {
            self.state.get_or_create(&In { state: word }).set(i64::from(host.state == state));
        }
        if let Some(psi) = host.sample.psi {
            raise(&self.some, psi.some_us);
            raise(&self.full, psi.full_us);
        }
        let pages = |n: u64| n.saturating_mul(PAGE_SIZE);
        self.swap_in.inner().store(pages(host.sample.swap_in_pages), Ordering::Relaxed);
        self.swap_out.inner().store(pages(host.sample.swap_out_pages), Ordering::Relaxed);
        self.ticks.inner().store(host.ticks, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("plimsoll");
        let r = &mut registry;
        let tick_seconds = Histogram::new(TICK_BOUNDS);
        let help = "Time a tick took, from reading the host to setting the last target";
        r.register_with_unit("tick_duration", help, Unit::Seconds, tick_seconds.clone());
        Self {
            vms: VmMetrics::new(r),
            pagers: PagerMetrics::new(r),
            host: HostMetrics::new(r),
            tick_seconds,
            missed: count(r, "missed_ticks", "Ticks that began more than half a period late"),
            pressure_ticks: count(r, "pressure_ticks", "Ticks that a stall of the host called for"),
            changes: count(r, "target_changes", "Targets changed"),
            failures: count(r, "target_failures", "Targets that could not be set"),
            distress: count(r, "distress", "Times a VM came into distress"),
            stuck: count(r, "stuck", "Times a VM was found not to move"),
            stalls: count(r, "stalls", "Times a guest was found to wait in its pager"),
            registry,
        }
    }

    /// Everything as text.
    fn text(&self, list: &ListView, journal_dropped: u64) -> Result<String, fmt::Error> {
        self.host.fill(list);
        self.host.journal_dropped.inner().store(journal_dropped, Ordering::Relaxed);
        self.vms.fill(&list.vms);
        self.pagers.fill(&list.vms);
        let mut text = String::with_capacity(16 * 1024);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Daemon {
    /// What `/metrics` answers.
    pub(crate) fn metrics_text(&self) -> Result<String, fmt::Error> {
        let list = self.list();
        let inner = self.lock();
        inner.metrics.text(&list, inner.journal.dropped())
    }
}

/// Gauges are signed; no host has 8 EiB.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Sets a counter of seconds to a total in microseconds.
fn raise(counter: &Counter<f64, AtomicU64>, total_us: u64) {
    let seconds = std::time::Duration::from_micros(total_us).as_secs_f64();
    counter.inner().store(seconds.to_bits(), Ordering::Relaxed);
}

#[cfg(test)]
mod test {
    use std::collections::BTreeMap;

    use plimsoll_api::control::{PagerStatus, Stalled};
    use plimsoll_api::http::{Change, Endpoint};
    use plimsoll_model::{
        AgentSample, AgentStats, GuestStats, HostSample, PsiTotals, Reason, Sizes, StatsSample, VmId, VmName,
    };
    use plimsoll_units::{MemTarget, MonoTime};

    use super::*;
    use crate::{
        clock,
        config::Config,
        drivers::Observation,
        journal::Journal,
        registry::Vm,
        state::{SavedVm, StateDir},
    };

    fn daemon() -> Daemon {
        let host = HostSample {
            budget: Bytes::gib(4),
            available: Bytes::gib(1),
            low: Bytes::mib(64),
            psi: Some(PsiTotals { some_us: 2_500_000, full_us: 1 }),
            swap_in_pages: 3,
            swap_out_pages: 4,
        };
        let (deaths, _) = tokio::sync::mpsc::channel(1);
        Daemon::new(Config::default(), StateDir::new("/nowhere".into()), Journal::off(), host, deaths)
    }

    fn vm(name: &str) -> Vm {
        let sizes = Sizes::new(Bytes::mib(256), Bytes::mib(512), None, None).unwrap();
        let endpoint = Endpoint::Uml { control: format!("/{name}") };
        let saved = SavedVm::new(VmId(1), VmName::new(name).unwrap(), endpoint, sizes, 0, None);
        let mut vm = Vm::new(saved, Bytes::mib(16), MonoTime(0), false);
        let stats = GuestStats { available: Some(Bytes::mib(9)), ..GuestStats::default() };
        vm.seen = Some(Observation {
            at: clock::now(),
            driver_up: true,
            actual: MemTarget(Bytes::mib(300)),
            resident: Some(Bytes::mib(200)),
            stats: Some(StatsSample { at: clock::now(), stats }),
            agent: Some(AgentSample { at: clock::now(), stats: AgentStats::default() }),
            agent_line: Some(plimsoll_api::control::AgentCounters { frames: 3, ..Default::default() }),
            generation: 1,
            epoch: 2,
            backend: Some(plimsoll_api::http::BackendView {
                epoch: 2,
                generation: 1,
                ledger: Default::default(),
                counters: plimsoll_api::control::Counters { inflated_pages: 5, ..Default::default() },
            }),
        });
        let state = plimsoll_model::VmState::Ok;
        let reason = Reason::Steady;
        let need = Some(Bytes::mib(100));
        vm.verdict = Some(plimsoll_model::Verdict {
            vm: VmId(1),
            state,
            source: plimsoll_model::Source::Device,
            need,
            spare: Bytes::ZERO,
            reason,
        });
        vm.change(Change {
            wall_us: 0,
            from: MemTarget(Bytes::mib(256)),
            to: MemTarget(Bytes::mib(300)),
            reason,
            reason_text: String::new(),
            by: "arbiter".into(),
        });
        vm
    }

    /// One whose memory is populated on demand.
    fn pod(name: &str) -> Vm {
        let sizes = Sizes::new(Bytes::mib(256), Bytes::mib(512), None, None).unwrap();
        let pager = Some("/pager".to_owned());
        let endpoint = Endpoint::Qemu { qmp: format!("/{name}"), agent: None, pager };
        let saved = SavedVm::new(VmId(2), VmName::new(name).unwrap(), endpoint, sizes, 0, None);
        let mut vm = Vm::new(saved, Bytes::mib(16), MonoTime(0), false);
        let status = PagerStatus {
            limit: Bytes::mib(256),
            stalled: Some(Stalled { since_ms: 1500, waiting: 2 }),
            populated_frames: 1,
            populated_pages: 2,
            ..PagerStatus::default()
        };
        vm.pager = Some(crate::drivers::pager::PagerSeen { at: clock::now(), epoch: 3, status });
        vm
    }

    #[test]
    fn a_pager_is_told_in_base_units_and_only_where_there_is_one() {
        let daemon = daemon();
        daemon.lock().registry.insert(vm("web"));
        daemon.lock().registry.insert(pod("db"));
        let text = daemon.metrics_text().unwrap();
        for line in [
            "plimsoll_vm_pager_limit_bytes{vm=\"db\"} 268435456",
            "plimsoll_vm_pager_stalled_seconds{vm=\"db\"} 1.5",
            "plimsoll_vm_pager_waiting{vm=\"db\"} 2",
            "plimsoll_vm_pager_populated_bytes_total{vm=\"db\"} 2105344",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!text.lines().any(|l| l.starts_with("plimsoll_vm_pager") && l.contains("web")), "{text}");
    }

    #[test]
    fn a_vm_and_the_host_are_told_in_base_units() {
        let daemon = daemon();
        daemon.lock().registry.insert(vm("web"));
        let text = daemon.metrics_text().unwrap();
        for line in [
            "plimsoll_vm_target_bytes{vm=\"web\"} 314572800",
            "plimsoll_vm_guest_available_bytes{vm=\"web\"} 9437184",
            "plimsoll_vm_state{vm=\"web\",state=\"ok\"} 1",
            "plimsoll_vm_state{vm=\"web\",state=\"stuck\"} 0",
            "plimsoll_vm_inflated_bytes_total{vm=\"web\"} 20480",
            "plimsoll_host_pressure_some_seconds_total 2.5",
            "plimsoll_host_swap_in_bytes_total 12288",
            "plimsoll_host_told_bytes 536870912",
            "plimsoll_vm_agent_reports_total{vm=\"web\"} 3",
            "plimsoll_vms 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        daemon.lock().registry.remove(VmId(1));
        assert!(!daemon.metrics_text().unwrap().contains("web"));
    }

    /// Rows of docs/metrics.md look like: | `name` | type | help |
    #[test]
    fn every_metric_is_documented_as_it_helps_itself() {
        let daemon = daemon();
        daemon.lock().registry.insert(vm("web"));
        daemon.lock().registry.insert(pod("db"));
        let text = daemon.metrics_text().unwrap();
        let mut documented: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        for line in
            include_str!("../../../../docs/metrics.md").lines().filter(|l| l.starts_with("| `plimsoll_"))
        {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let name = cells.next().unwrap().trim_matches('`');
            documented.insert(name, (cells.next().unwrap(), cells.next().unwrap()));
        }
        let mut types = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
                types.insert(name, kind);
            }
        }
        for line in text.lines() {
            let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) else {
                continue;
            };
            let kind = types[name];
            let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            let row = documented.remove(shown.as_str());
            assert_eq!(row, Some((kind, help.trim_end_matches('.'))), "{shown} in docs/metrics.md");
        }
        assert_eq!(documented, BTreeMap::new(), "documented, and unknown to the daemon");
    }
}
