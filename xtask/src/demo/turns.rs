//! The work: by turns, two guests fill memory, check it and free it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_testbed::guest::Reply;
use plimsoll_testbed::host::Vmstat;

use super::{AT_A_TIME, Outcome, Plan, SIDE_LIMIT, Side, table};
use crate::fleet::{Bare, Care, Fleet, GuestSpec, Kept, group_name, name};
use crate::out;

/// How long a guest's one step may take: a guest that swaps its heart out is slow, not dead, but the demonstration
/// has an end.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// What a guest does at the moment, for the live table.
type Doing = std::sync::Mutex<Vec<&'static str>>;

/// How long guests may take to boot on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Boots the guests of a side inside the group.
fn start(plan: Plan, side: Side, cgroup: &TestCgroup) -> Result<Box<dyn Fleet>> {
    let spec = |index| GuestSpec {
        name: name(index),
        told: plan.told,
        disk: None,
        host_files: false,
        boot_limit: BOOT_LIMIT,
    };
    let specs: Vec<_> = (0..plan.guests).map(spec).collect();
    if side == Side::Nothing {
        return Ok(Box::new(Bare::start(&specs, cgroup)?));
    }
    let config = format!("[host]\ncgroup = \"{}\"\n", group_name(cgroup)?);
    let care = Care { what: "demo", config, memory: plan.memory, floor: plan.floor, cgroup, agent: false };
    Ok(Box::new(Kept::start(&specs, &care)?))
}

/// Boots the guests of a side, lets them work, and counts.
pub(super) fn play(plan: Plan, side: Side) -> Result<Outcome> {
    out::say("");
    out::say(&format!("--- {} ---", table::title(side)));
    let cgroup = TestCgroup::create("demo", plan.limit)?;
    let fleet = start(plan, side, &cgroup)?;
    let fleet = fleet.as_ref();
    let guests = usize::try_from(plan.guests)?;
    let doing = Doing::new(vec!["idle"; guests]);
    let over = AtomicBool::new(false);
    let (begin, before) = (Instant::now(), Vmstat::read()?);
    let mut lost = vec![None; guests];
    let mut mismatches = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| watch(fleet, &cgroup, &doing, &over, (begin, before)));
        for turn in 0..plan.rounds * plan.guests / AT_A_TIME {
            if begin.elapsed() > SIDE_LIMIT {
                lost.iter_mut()
                    .for_each(|how| *how = Some(format!("not done after {} s", SIDE_LIMIT.as_secs())));
                break;
            }
            mismatches += take_turns(fleet, plan, turn, &doing, &mut lost);
        }
        over.store(true, Ordering::Release);
    });
    let elapsed = begin.elapsed();
    let counted = Vmstat::read()?.since(&before);
    let lost =
        lost.into_iter().zip(0..).filter_map(|(how, index)| Some(format!("{}: {}", name(index), how?)));
    Ok(Outcome {
        side,
        swapped_in_pages: counted.pswpin + counted.zswpin,
        swapped_out_pages: counted.pswpout + counted.zswpout,
        elapsed_ms: u64::try_from(elapsed.as_millis())?,
        lost: lost.collect(),
        oom_kills: cgroup.oom_kills()?,
        mismatches,
        peak: cgroup.peak()?,
    })
}

/// One turn: two guests at the same time. Returns the pages that were wrong.
fn take_turns(fleet: &dyn Fleet, plan: Plan, turn: u64, doing: &Doing, lost: &mut [Option<String>]) -> u64 {
    let pair: Vec<usize> = (0..AT_A_TIME)
        .filter_map(|n| usize::try_from((turn * AT_A_TIME + n) % plan.guests).ok())
        .filter(|&index| lost.get(index).is_some_and(Option::is_none))
        .collect();
    let results: Vec<(usize, Result<u64, String>)> = std::thread::scope(|scope| {
        let begin = |&index: &usize| (index, scope.spawn(move || work(fleet, plan, turn, doing, index)));
        let running: Vec<_> = pair.iter().map(begin).collect();
        let end = |result: std::thread::Result<Result<u64, String>>| {
            result.unwrap_or(Err("its turn panicked".to_owned()))
        };
        running.into_iter().map(|(index, thread)| (index, end(thread.join()))).collect()
    });
    let mut mismatches = 0;
    for (index, result) in results {
        match result {
            Ok(wrong) => mismatches += wrong,
            Err(how) => {
                note(doing, index, "lost");
                if let Some(slot) = lost.get_mut(index) {
                    *slot = Some(how);
                }
            }
        }
    }
    mismatches
}

/// What one guest does at its turn.
fn work(fleet: &dyn Fleet, plan: Plan, turn: u64, doing: &Doing, index: usize) -> Result<u64, String> {
    let mut wrong = 0;
    let fill = format!("fill {} {}", plan.fill.0, turn + 1);
    for (word, command) in
        [("fill", fill.as_str()), ("check", "verify"), ("check", "verify"), ("free", "free")]
    {
        note(doing, index, word);
        wrong += mismatches(&fleet.ask(index, command, STEP_LIMIT).map_err(|error| first_line(&error))?);
    }
    note(doing, index, "idle");
    Ok(wrong)
}

fn mismatches(reply: &Reply) -> u64 {
    reply.number("bad_pages").unwrap_or(0)
}

fn note(doing: &Doing, index: usize, word: &'static str) {
    let mut doing = doing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(slot) = doing.get_mut(index) {
        *slot = word;
    }
}

fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Prints a line each second until it is over.
fn watch(
    fleet: &dyn Fleet,
    cgroup: &TestCgroup,
    doing: &Doing,
    over: &AtomicBool,
    (begin, before): (Instant, Vmstat),
) {
    table::live_head(fleet.count());
    let mut due = begin;
    while !over.load(Ordering::Acquire) {
        let now = Instant::now();
        if now < due {
            // Short, so that the end is noticed.
            std::thread::sleep((due - now).min(Duration::from_millis(50)));
            continue;
        }
        due += Duration::from_secs(1);
        let words = doing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let counted = Vmstat::read().unwrap_or_default().since(&before);
        table::live(begin.elapsed(), &words, &fleet.sizes(), cgroup.usage().ok(), &counted);
    }
}
