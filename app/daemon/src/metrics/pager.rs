//! What is measured of the pagers of VMs whose memory is populated on demand. A VM without one has no rows.

use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll_api::control::PagerStatus;
use plimsoll_api::http::VmView;
use plimsoll_units::{FRAME_SIZE, PAGE_SIZE};
use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::signed;
use super::vm::{Counters, Gauges, Of, byte_count, bytes, count, in_seconds, plain, seconds};

/// Families with one row for each VM that has a pager.
#[derive(Debug)]
pub(super) struct PagerMetrics {
    target: Gauges,
    limit: Gauges,
    resident: Gauges,
    outstanding: Gauges,
    waiting: Gauges,
    stalled: Family<Of, Gauge<f64, AtomicU64>>,
    epoch: Gauges,
    stalls: Counters,
    sweeps: Counters,
    swept: Counters,
    swept_frames: Counters,
    populated: Counters,
    populated_frames: Counters,
    faults: Counters,
}

impl PagerMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            target: bytes(r, "vm_pager_target", "Target that the pager enforces"),
            limit: bytes(r, "vm_pager_limit", "Memory that the pager lets the guest come to have"),
            resident: bytes(r, "vm_pager_resident", "Host memory behind the guest, by its file"),
            outstanding: bytes(r, "vm_pager_outstanding", "Memory that was promised and never touched"),
            waiting: plain(r, "vm_pager_waiting", "Faults that wait for memory"),
            stalled: seconds(
                r,
                "vm_pager_stalled",
                "How long the guest has waited for memory, 0 if it does not",
            ),
            epoch: plain(r, "vm_pager_epoch", "How often a back end was started for the pager"),
            stalls: count(r, "vm_pager_stalls", "Times the guest came to wait for memory"),
            sweeps: count(r, "vm_pager_sweeps", "Sweeps for pages of zeros"),
            swept: byte_count(r, "vm_pager_swept", "Memory that sweeps took back"),
            swept_frames: count(r, "vm_pager_swept_frames", "Whole 2 MiB frames that sweeps took back"),
            populated: byte_count(r, "vm_pager_populated", "Memory populated"),
            populated_frames: count(r, "vm_pager_populated_frames", "Whole 2 MiB frames populated"),
            faults: count(r, "vm_pager_faults", "Faults answered since the back end started"),
        }
    }

    /// Replaces every row.
    pub(super) fn fill(&self, vms: &[VmView]) {
        self.clear();
        for vm in vms {
            if let Some(pager) = vm.pager.filter(|pager| !pager.lost)
                && let Some(status) = pager.status
            {
                let of = Of { vm: vm.name.to_string() };
                self.epoch.get_or_create(&of).set(signed(pager.epoch));
                self.fill_one(&of, &status);
            }
        }
    }

    fn fill_one(&self, of: &Of, status: &PagerStatus) {
        let set = |family: &Gauges, value: u64| {
            family.get_or_create(of).set(signed(value));
        };
        set(&self.target, status.target.0.0);
        set(&self.limit, status.limit.0);
        set(&self.resident, status.resident.0);
        set(&self.outstanding, status.outstanding.bytes().0);
        set(&self.waiting, status.stalled.map_or(0, |stalled| stalled.waiting));
        self.stalled.get_or_create(of).set(in_seconds(status.stalled.map_or(0, |stalled| stalled.since_ms)));
        let raise = |family: &Counters, value: u64| {
            family.get_or_create(of).inner().store(value, Ordering::Relaxed);
        };
        let pages = |n: u64| n.saturating_mul(PAGE_SIZE);
        raise(&self.stalls, status.stalls);
        raise(&self.sweeps, status.sweeps);
        raise(&self.swept, pages(status.swept_pages));
        raise(&self.swept_frames, status.swept_frames);
        let frames = status.populated_frames.saturating_mul(FRAME_SIZE);
        raise(&self.populated, frames.saturating_add(pages(status.populated_pages)));
        raise(&self.populated_frames, status.populated_frames);
        raise(&self.faults, status.faults);
    }

    fn clear(&self) {
        let gauges =
            [&self.target, &self.limit, &self.resident, &self.outstanding, &self.waiting, &self.epoch];
        gauges.into_iter().for_each(Gauges::clear);
        let counters = [
            &self.stalls,
            &self.sweeps,
            &self.swept,
            &self.swept_frames,
            &self.populated,
            &self.populated_frames,
            &self.faults,
        ];
        counters.into_iter().for_each(Counters::clear);
        self.stalled.clear();
    }
}
