//! What this process knows of its VM's memory and can do with it: everything but the sockets by which it is asked.

use std::sync::Arc;

use plimsoll_api::control::{ErrorKind, LedgerCounts, Op, PagerStatus, Reply, Stalled, Status};
use plimsoll_frames::{Counts, Residency, Totals};
use plimsoll_units::{Bytes, MemTarget, PAGE_SIZE, PageCount};
use plimsoll_vhost_user::layout::Layout;

use super::memory::{Answer, Memory};
use super::news::News;
use crate::args::Args;

/// The shared memory is laid out for one device. Here that is the guest's memory.
pub(super) const MEMORY: usize = 0;

/// A VM.
pub(super) struct Vm {
    args: Args,
    layout: Layout,
    memory: Memory,
    news: Arc<News>,
}

impl Vm {
    pub(super) fn new(args: Args, layout: Layout, memory: Memory, news: Arc<News>) -> Self {
        Self { args, layout, memory, news }
    }

    /// Says in the log that there is a back end.
    pub(super) fn tell_start(&self) {
        let (epoch, mapped) = (self.layout.epoch(), self.memory.is_mapped());
        tracing::info!(vm = %self.args.name, epoch, mapped, "back end is up");
    }

    /// Does what a peer asks. No answer yet to who waits for the guest to stall or to go on, unless it has.
    pub(super) fn carry_out(&mut self, id: u64, op: Op) -> Option<Reply> {
        match op {
            Op::Status => {}
            Op::SetTarget { target } => {
                if let Err(message) = check_target(target, self.args.maxmem) {
                    return Some(Reply::error(id, ErrorKind::OutOfRange, message));
                }
                self.memory.set_target(target);
            }
            Op::AwaitPager { after } if after == self.news.turns() => return None,
            Op::AwaitPager { .. } => {}
            Op::Sweep => self.memory.sweep(),
            Op::Reset => {
                if let Err(error) = self.memory.reset(&self.news) {
                    let message = format!("cannot begin to take the guest's memory back: {error}");
                    return Some(Reply::error(id, ErrorKind::Failed, message));
                }
            }
            Op::SetBalloon { .. } | Op::StatsInterval { .. } | Op::AwaitAgent { .. } => {
                let message =
                    "this VM's memory is populated on demand; its balloon and its agent are its VMM's matter";
                return Some(Reply::error(id, ErrorKind::Unsupported, message));
            }
        }
        Some(Reply::ok(id, self.status()))
    }

    fn status(&self) -> Status {
        let figures = Figures::of(&self.memory.ask());
        let Figures { residency, counts, totals, .. } = figures;
        let pager = PagerStatus {
            target: residency.target,
            limit: residency.limit().bytes(),
            resident: figures.allocated.bytes(),
            outstanding: counts.outstanding,
            stalled: figures.stalled.filter(|_| self.news.is_stalled()),
            turns: self.news.turns(),
            stalls: self.news.stalls(),
            sweeps: figures.sweeps,
            swept_pages: totals.swept_pages,
            swept_frames: totals.swept_frames,
            populated_frames: totals.populated_frames,
            populated_pages: totals.populated_pages,
            faults: figures.faults,
            refused: figures.refused,
            mapped: self.memory.is_mapped(),
            resetting: self.memory.is_resetting(),
        };
        Status {
            epoch: self.layout.epoch(),
            generation: self.layout.generation(MEMORY),
            connected: self.layout.is_connected(MEMORY),
            maxmem: self.args.maxmem,
            resident: pager.resident,
            ledger: LedgerCounts {
                present: counts.present,
                ballooned: counts.ballooned,
                reported: counts.reported,
            },
            pager: Some(pager),
            ..Status::default()
        }
    }
}

/// What there is to say, whoever says it.
struct Figures {
    residency: Residency,
    counts: Counts,
    totals: Totals,
    allocated: PageCount,
    stalled: Option<Stalled>,
    sweeps: u64,
    faults: u64,
    refused: u64,
}

impl Figures {
    fn of(answer: &Answer<'_>) -> Self {
        match answer {
            Answer::Unmapped(ledger) => Self {
                residency: ledger.residency(),
                counts: ledger.counts(),
                totals: ledger.totals(),
                allocated: PageCount::default(),
                stalled: None,
                sweeps: 0,
                faults: 0,
                refused: 0,
            },
            Answer::Served(status) => Self {
                residency: status.residency,
                counts: status.counts,
                totals: status.totals,
                allocated: status.allocated.unwrap_or(status.residency.resident),
                stalled: status.stalled.map(|stalled| Stalled {
                    since_ms: stalled.since_ms,
                    waiting: u64::try_from(stalled.waiting).unwrap_or(u64::MAX),
                }),
                sweeps: status.sweeps.runs,
                faults: status.faults.missing.saturating_add(status.faults.protected),
                refused: status.faults.refused,
            },
        }
    }
}

/// Whether a guest may be given this target; if not, why.
fn check_target(target: MemTarget, maxmem: Bytes) -> Result<(), String> {
    let MemTarget(bytes) = target;
    if bytes == Bytes::ZERO || !bytes.0.is_multiple_of(PAGE_SIZE) {
        return Err(format!("a target of {} bytes is no number of whole pages of {PAGE_SIZE}", bytes.0));
    }
    if bytes > maxmem {
        return Err(format!("a target of {target} is more than the guest was told it has, {maxmem}"));
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_target_is_of_whole_pages_and_within_what_the_guest_was_told() {
        let maxmem = Bytes::mib(64);
        let check = |bytes| check_target(MemTarget(Bytes(bytes)), maxmem);
        for good in [4096, maxmem.0] {
            check(good).unwrap();
        }
        for (bad, word) in [(0, "whole pages"), (4097, "whole pages"), (maxmem.0 + 4096, "64M")] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
