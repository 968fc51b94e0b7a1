//! One run: a column's guests from boot to the end of their work, with what was counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_units::Bytes;
use serde::Serialize;

use super::counters::{Host, Inside};
use super::plan::{Column, Plan, Setting, Turn};
use super::side::{Ground, How, Side};
use super::work::{self, Progress, Work, ms};
use crate::fleet::name;
use crate::out;

/// How often a line tells how it goes.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// A part of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Phase {
    /// `boot`, `cpu` or `memory`.
    pub(crate) phase: &'static str,
    /// From its start until the last guest was done.
    pub(crate) elapsed_ms: u64,
    /// What the host counted meanwhile.
    pub(crate) host: Host,
}

/// A guest's part in a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GuestRecord {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) work: Work,
}

/// What a run came to, with raw counters.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// Counted from 1.
    pub(crate) round: u64,
    pub(crate) setting: Setting,
    pub(crate) column: Column,
    pub(crate) phases: Vec<Phase>,
    /// All phases together, boot included.
    pub(crate) host: Host,
    /// All guests' counters at their end, added up. Those of a lost guest are the last it told.
    pub(crate) inside: Inside,
    /// The most that the group used together.
    pub(crate) peak: Bytes,
    /// The most memory that compressed swap took.
    pub(crate) most_zswap: Bytes,
    pub(crate) guests: Vec<GuestRecord>,
    /// Why this run compares with nothing.
    pub(crate) void: Option<String>,
}

impl Run {
    /// Time of a phase.
    pub(crate) fn elapsed_ms(&self, phase: &str) -> u64 {
        self.phases.iter().filter(|part| part.phase == phase).map(|part| part.elapsed_ms).sum()
    }

    /// Guests that did not do all their work, and how.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (&str, &str)> {
        self.guests.iter().filter_map(|guest| Some((guest.name.as_str(), guest.work.lost.as_deref()?)))
    }

    /// Pages with a wrong byte.
    pub(crate) fn wrong_pages(&self) -> u64 {
        self.guests.iter().map(|guest| guest.work.wrong_pages).sum()
    }

    /// Processes killed for want of memory, by the host or within guests.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.host.cgroup_oom_kills.saturating_add(self.inside.oom_kill)
    }
}

/// Plays one run.
///
/// # Errors
/// When the host cannot be prepared or a guest does not boot. A guest that fails later is part of the record.
pub(crate) fn play(plan: &Plan, turn: Turn, seed: u64, how: &How<'_>) -> Result<Run> {
    let column = turn.column;
    let ground = Ground::prepare(plan, column)?;
    let first = Host::read(ground.cgroup())?;
    let begin = Instant::now();
    let side = ground.boot(plan, column, how).with_context(|| format!("column {}", column.name()))?;
    let mut work = vec![Work::default(); side.fleet().count()];
    work::prepare(side.fleet(), &mut work);
    let mut before = Host::read(&side.cgroup)?;
    let mut phases =
        vec![Phase { phase: "boot", elapsed_ms: ms(begin.elapsed()), host: before.since(&first) }];
    out::say(&format!("    booted in {}", out::seconds(begin.elapsed())));

    let mut measure =
        |phase: &'static str, all: u64, work: &mut [Work], act: &dyn Fn(&mut [Work], &Progress)| {
            let begin = Instant::now();
            watched(&side.cgroup, (phase, all), &before, |progress| act(work, progress));
            let elapsed_ms = ms(begin.elapsed());
            let now = Host::read(&side.cgroup)?;
            phases.push(Phase { phase, elapsed_ms, host: now.since(&before) });
            before = now;
            anyhow::Ok(())
        };
    measure("cpu", plan.vms, &mut work, &|work, progress| {
        work::compile(side.fleet(), plan, (seed, turn.round), work, progress);
    })?;
    work::look_inside(side.fleet(), 1, &mut work);
    measure("memory", plan.vms * plan.rounds, &mut work, &|work, progress| {
        work::take_turns(side.fleet(), plan, seed.wrapping_add(turn.round), work, progress);
    })?;
    work::look_inside(side.fleet(), 2, &mut work);
    let host = Host::read(&side.cgroup)?.since(&first);
    if let (Some(dir), Some(kept)) = (how.logs, side.kept()) {
        let names: Vec<String> = (0..plan.vms).map(name).collect();
        kept.keep_logs(names.iter().map(String::as_str), dir)?;
    }
    Ok(record(plan, turn, &side, Counted { phases, host, work }))
}

struct Counted {
    phases: Vec<Phase>,
    host: Host,
    work: Vec<Work>,
}

fn record(plan: &Plan, turn: Turn, side: &Side, counted: Counted) -> Run {
    let Counted { phases, host, work } = counted;
    let last: Vec<_> = work.iter().filter_map(|work| work.inside.into_iter().flatten().last()).collect();
    let guests = work.into_iter().zip(0..).map(|(work, index)| GuestRecord { name: name(index), work });
    Run {
        round: turn.round + 1,
        setting: turn.setting,
        column: turn.column,
        void: void(plan, turn.column, &host),
        phases,
        host,
        inside: Inside::sum(&last),
        peak: side.cgroup.peak().unwrap_or(Bytes::ZERO),
        most_zswap: side.most_zswap(),
        guests: guests.collect(),
    }
}

/// An unmanaged side without pressure has nothing to show.
fn void(plan: &Plan, column: Column, host: &Host) -> Option<String> {
    let swapped = host.vmstat.swapped_in().saturating_add(host.vmstat.swapped_out());
    let is_calm = plan.setting == Setting::Hard && column == Column::Nothing && swapped < plan.least_swapped;
    is_calm.then(|| {
        format!(
            "the unmanaged guests swapped {swapped} pages, fewer than {} (20 % of the limit): no real pressure",
            plan.least_swapped
        )
    })
}

/// Does something, and tells meanwhile how it goes.
fn watched(cgroup: &TestCgroup, (phase, all): (&str, u64), before: &Host, act: impl FnOnce(&Progress)) {
    let (progress, over) = (Progress::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begin = Instant::now();
            let mut due = begin + TELL_EVERY;
            while !over.load(Ordering::Acquire) {
                if Instant::now() >= due {
                    due += TELL_EVERY;
                    tell(
                        cgroup,
                        phase,
                        (progress.done.load(Ordering::Relaxed), all),
                        before,
                        begin.elapsed(),
                    );
                }
                // Short, so that the end is noticed.
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        act(&progress);
        over.store(true, Ordering::Release);
    });
}

fn tell(cgroup: &TestCgroup, phase: &str, (done, all): (u64, u64), before: &Host, elapsed: Duration) {
    let Ok(now) = Host::read(cgroup) else { return };
    let vmstat = now.since(before).vmstat;
    let used = cgroup.usage().map_or("-".to_owned(), |used| format!("{} MiB", used.whole_mib()));
    out::say(&format!(
        "    {:>4} s  {phase:<6} {done:>3} of {all} done   used {used}   swapped {}/{} MiB in/out",
        elapsed.as_secs(),
        vmstat.swapped_in() / 256,
        vmstat.swapped_out() / 256,
    ));
}

#[cfg(test)]
mod test {
    use plimsoll_testbed::host::Vmstat;
    use plimsoll_units::Bytes;

    use super::{Column, Host, Plan, Setting, void};

    #[test]
    fn only_an_unmanaged_side_of_the_hard_setting_can_be_void() {
        let plan = |setting| Plan::new(setting, 8, Bytes::mib(192)).expect("possible");
        let host = |pages: u64| Host {
            vmstat: Vmstat { pswpin: pages / 2, zswpout: pages - pages / 2, ..Vmstat::default() },
            ..Host::default()
        };
        let hard = plan(Setting::Hard);
        let calm = void(&hard, Column::Nothing, &host(hard.least_swapped - 1)).expect("void");
        assert!(calm.contains("39320 pages"), "{calm}");
        assert_eq!(void(&hard, Column::Nothing, &host(hard.least_swapped)), None);
        assert_eq!(void(&hard, Column::Plimsoll, &host(0)), None);
        assert_eq!(void(&plan(Setting::Field), Column::Nothing, &host(0)), None);
    }
}
