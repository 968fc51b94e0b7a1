//! The thread that sweeps, and sees to what has to be done after a while.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plimsoll_units::{Bytes, PAGES_PER_FRAME};

use crate::scan::Scanner;
use crate::shared::{Later, Shared, State, after};
use crate::status::SweepReport;
use crate::sweep::SweepDepth;

/// How often it is tried again for who waits, whatever happens: pages are filled with zeros without anybody telling.
const TICK: Duration = Duration::from_secs(1);
/// After a sweep that found something, but not enough: at most a fifth of the time is spent on sweeping then.
const REST: u32 = 4;
/// After one that found nothing: a tenth, and not more often than every second.
const LONG_REST: u32 = 10;
/// The shortest rest.
const SHORT: Duration = Duration::from_millis(10);
/// Bounds for what a sweep is to find: a frame at least; at most what takes some ten milliseconds.
const GOAL: (Bytes, Bytes) = (Bytes::mib(2), Bytes::mib(64));
/// The part of the target that is enough.
const GOAL_PART: u64 = 16;

/// What there is to do.
#[derive(Clone, Debug)]
enum Task {
    /// Lift what could not be lifted.
    Lift,
    /// See what memory there is.
    LookEverywhere,
    /// See whether there are holes.
    Look(Later),
    /// Sweep everything: it was asked for.
    Sweep,
    /// Sweep until there is enough for who waits.
    Relieve,
    /// Serve who waits.
    Serve,
}

/// When there is something to do.
#[derive(Clone, Debug)]
enum Due {
    Now(Task),
    At(Instant),
    Never,
}

impl<W: AsRef<[AtomicU64]> + Send> Shared<W> {
    /// The thread, until the pager or the VMM ends.
    pub(crate) fn sweeper_thread(&self) {
        let mut scanner = Scanner::new(self.settings.scrub);
        while let Some(task) = self.next_task() {
            match task {
                Task::Lift => {
                    self.lift_leftover();
                }
                Task::LookEverywhere => self.correct_everywhere(),
                Task::Look(later) => self.look_now(later),
                Task::Sweep => self.sweep_for_askers(&mut scanner),
                Task::Relieve => self.relieve(&mut scanner),
                Task::Serve => self.nudge.poke(),
            }
        }
        // Whoever waits for a sweep is not to wait in vain.
        self.changed.notify_all();
    }

    fn next_task(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if self.is_stopping() || self.gone.load(Ordering::Acquire) {
                return None;
            }
            let now = Instant::now();
            state = match self.due(&mut state, now) {
                Due::Now(task) => return Some(task),
                Due::At(then) => {
                    let left = then.saturating_duration_since(now).max(Duration::from_millis(1));
                    self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                Due::Never => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn due(&self, state: &mut State<W>, now: Instant) -> Due {
        if std::mem::take(&mut state.look.everywhere) {
            return Due::Now(Task::LookEverywhere);
        }
        let mut next: Option<Instant> = None;
        let mut at = |then: Instant| next = Some(next.map_or(then, |next| next.min(then)));
        // There are few of them.
        if let Some(due) = state.look.later.iter().position(|later| later.at <= now) {
            return Due::Now(Task::Look(state.look.later.swap_remove(due)));
        }
        state.look.later.iter().for_each(|later| at(later.at));
        if let Some(then) = state.sweep.lift_at {
            if then <= now {
                state.sweep.lift_at = None;
                return Due::Now(Task::Lift);
            }
            at(then);
        }
        if state.sweep.asked > state.sweep.done {
            return Due::Now(Task::Sweep);
        }
        if let Some(until) = state.refused_until {
            if until > now {
                at(until);
            } else {
                state.refused_until = None;
                return Due::Now(Task::Serve);
            }
        }
        if state.is_short() {
            match self.sweep_at(state, now) {
                Some(then) if then <= now => return Due::Now(Task::Relieve),
                Some(then) => at(then),
                None => {}
            }
            // Nobody should be waiting while there is room. If somebody is, then not for long.
            if state.serve_at.is_none_or(|then| then <= now) {
                state.serve_at = Some(after(TICK));
                return Due::Now(Task::Serve);
            }
            state.serve_at.into_iter().for_each(at);
        }
        next.map_or(Due::Never, Due::At)
    }

    /// When to sweep for who waits; `None` if it would not help.
    fn sweep_at(&self, state: &State<W>, now: Instant) -> Option<Instant> {
        if state.ledger.residency().room().0 > 0 && state.may_ask() {
            return None;
        }
        let since = state.populated().saturating_sub(state.sweep.populated);
        let worth = since >= (self.goal(state) / 2).max(PAGES_PER_FRAME);
        Some(state.sweep.not_before.filter(|_| !worth).unwrap_or(now))
    }

    fn goal(&self, state: &State<W>) -> u64 {
        let part = Bytes(state.ledger.target().0.0 / GOAL_PART).clamp(GOAL.0, GOAL.1);
        self.settings.sweep_goal.unwrap_or(part.pages_floor().0).max(1)
    }

    fn relieve(&self, scanner: &mut Scanner) {
        let goal = self.goal(&self.lock());
        let mut report = self.sweep(scanner, SweepDepth::WholeFrames, goal);
        if report.pages < goal && self.is_without_room() {
            let elapsed = report.elapsed;
            report = self.sweep(scanner, SweepDepth::Pages, goal);
            report.elapsed = report.elapsed.saturating_add(elapsed);
        }
        let mut state = self.lock();
        state.sweep.not_before = rest_after(&report, goal).map(after);
        state.sweep.populated = state.populated();
        self.settle(state);
        if report.pages == 0 {
            self.raise_exhausted(Duration::ZERO);
        }
    }

    /// Whether somebody still waits, and there is no room.
    fn is_without_room(&self) -> bool {
        let state = self.lock();
        state.is_short() && (state.ledger.residency().room().0 == 0 || !state.may_ask())
    }

    fn sweep_for_askers(&self, scanner: &mut Scanner) {
        // One sweep is for all who asked before it began.
        let mut state = self.lock();
        let (asked, depth) = (state.sweep.asked, state.sweep.depth.take());
        drop(state);
        self.sweep(scanner, depth.unwrap_or(SweepDepth::Pages), u64::MAX);
        let mut state = self.lock();
        state.sweep.done = asked;
        self.settle(state);
    }
}

/// How long sweeping is not worth its time after a sweep.
fn rest_after(report: &SweepReport, goal: u64) -> Option<Duration> {
    if report.pages >= goal {
        return None;
    }
    Some(match report.pages {
        0 => report.elapsed.saturating_mul(LONG_REST).max(TICK),
        _ => report.elapsed.saturating_mul(REST).clamp(SHORT, TICK),
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_sweep_that_found_little_is_followed_by_a_rest() {
        let after = |pages, ms| {
            let elapsed = Duration::from_millis(ms);
            rest_after(&SweepReport { pages, elapsed, ..SweepReport::default() }, 512)
        };
        assert_eq!(after(512, 10), None);
        assert_eq!(after(511, 20), Some(Duration::from_millis(80)));
        assert_eq!(after(1, 0), Some(SHORT));
        assert_eq!(after(1, 10_000), Some(TICK));
        assert_eq!(after(0, 1), Some(TICK));
        assert_eq!(after(0, 400), Some(Duration::from_secs(4)));
    }
}
