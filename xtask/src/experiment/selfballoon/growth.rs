//! How fast a guest at rest has its memory back when a program wants it.

use std::time::{Duration, Instant};

use anyhow::Result;
use plimsoll_units::Bytes;
use serde::Serialize;

use super::guest::{Counted, Guest};
use super::half_life::Pace;

/// How long a load may take before the experiment gives it up.
const LOAD_LIMIT: Duration = Duration::from_secs(180);
/// How long the guest is watched for its goal after the load is done.
const GOAL_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest is given to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(20);
/// Held beyond the goal, this still counts as at rest: what is promised to programs moves a little.
const NEAR: Bytes = Bytes::mib(4);
/// Between two looks at a load that is timed.
pub(crate) const CLOSELY: Duration = Duration::from_millis(20);
/// Between two looks at any other: looking takes the guest's only processor from the load.
pub(crate) const NOW_AND_THEN: Duration = Duration::from_millis(100);

/// What was held at one moment of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Look {
    /// Milliseconds since the load began.
    pub(crate) ms: u64,
    /// What the guest held, by its own kernel's count.
    pub(crate) held: Bytes,
}

/// A load that came upon a guest at rest.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Load {
    /// What the guest was told to do.
    pub(crate) command: String,
    /// Whether the guest had come to rest before.
    pub(crate) rested: bool,
    /// What it held, and what its goal was, before.
    pub(crate) held_before: Bytes,
    pub(crate) goal_before: Bytes,
    /// Its goal with the load.
    pub(crate) goal: Bytes,
    /// Milliseconds until the guest held that goal.
    pub(crate) goal_ms: Option<u64>,
    /// Milliseconds until the load had all its memory and had written to it.
    pub(crate) load_ms: Option<u64>,
    /// Processes that the guest's kernel killed meanwhile.
    pub(crate) oom_kills: u64,
    /// What the program said if it did not come to its end.
    pub(crate) failure: Option<String>,
    pub(crate) looks: Vec<Look>,
}

impl Load {
    /// Milliseconds until the guest held its goal or the load had all its memory.
    pub(crate) fn served_ms(&self) -> Option<u64> {
        match (self.goal_ms, self.load_ms) {
            (Some(goal), Some(load)) => Some(goal.min(load)),
            (one, other) => one.or(other),
        }
    }
}

/// Settings for a load: the defaults, but at the shortest interval, which takes memory away five times as fast.
pub(crate) const LOADED: Pace = Pace { interval: 1, down: 8 };
/// Settings between loads: all the way in one step, so that the guest is at rest within seconds and not minutes.
pub(crate) const HASTY: Pace = Pace { interval: 1, down: 1 };

/// Brings the guest to rest, runs a load, and frees it again.
///
/// # Errors
/// When guest or daemon do not answer. A load that is killed is a result, not an error.
pub(crate) fn run(guest: &Guest<'_>, command: &str, every: Duration) -> Result<Load> {
    let goal_before = guest.goal()?;
    let (rested, before) = rest(guest, goal_before)?;
    guest.set_pace(LOADED)?;
    let begin = Instant::now();
    let (answered, looks) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let reply = guest.load(command, LOAD_LIMIT);
            reply.map(|reply| (begin.elapsed(), reply))
        });
        let mut looks = Vec::new();
        while !load.is_finished() {
            looks.push(look(guest, begin)?);
            std::thread::sleep(every);
        }
        let answered =
            load.join().unwrap_or_else(|_| anyhow::bail!("whoever waited for the load panicked"))?;
        anyhow::Ok((answered, looks))
    })?;
    let (took, reply) = answered;
    let failure = (!reply.is_ok()).then(|| reply.text().to_owned());
    let load_ms = if reply.is_ok() { Some(millis(took)) } else { None };
    finish(guest, Begun { begin, command, rested, before, goal_before, load_ms, failure, looks })
}

/// A load that has answered.
struct Begun<'a> {
    begin: Instant,
    command: &'a str,
    rested: bool,
    before: Counted,
    goal_before: Bytes,
    load_ms: Option<u64>,
    failure: Option<String>,
    looks: Vec<Look>,
}

/// Watches the guest until it holds its goal, and ends the load.
fn finish(guest: &Guest<'_>, begun: Begun<'_>) -> Result<Load> {
    let Begun { begin, command, rested, before, goal_before, load_ms, failure, mut looks } = begun;
    let goal = guest.goal()?;
    let until = Instant::now() + GOAL_LIMIT;
    while reached(&looks, goal).is_none() && failure.is_none() && Instant::now() < until {
        looks.push(look(guest, begin)?);
        std::thread::sleep(CLOSELY);
    }
    guest.ask("free")?;
    guest.set_pace(HASTY)?;
    let oom_kills = guest.counted()?.oom_kills.saturating_sub(before.oom_kills);
    Ok(Load {
        command: command.to_owned(),
        rested,
        held_before: before.held,
        goal_before,
        goal,
        goal_ms: reached(&looks, goal),
        load_ms,
        oom_kills,
        failure,
        looks,
    })
}

/// Waits until the guest holds no more than it wants.
fn rest(guest: &Guest<'_>, goal: Bytes) -> Result<(bool, Counted)> {
    let begin = Instant::now();
    loop {
        let counted = guest.counted()?;
        let rested = counted.held <= goal.plus(NEAR);
        if rested || begin.elapsed() > REST_LIMIT {
            return Ok((rested, counted));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn look(guest: &Guest<'_>, begin: Instant) -> Result<Look> {
    let held = guest.counted()?.held;
    // When the answer was there: never earlier than it was so.
    Ok(Look { ms: millis(begin.elapsed()), held })
}

/// When that much was held for the first time. A MiB less counts: the goal is read after the fact.
fn reached(looks: &[Look], goal: Bytes) -> Option<u64> {
    looks.iter().find(|look| look.held.plus(Bytes::mib(1)) >= goal).map(|look| look.ms)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod test {
    use plimsoll_units::Bytes;

    use super::{Load, Look, reached};

    /// A load that was served after these times.
    pub(crate) fn load(goal_ms: Option<u64>, load_ms: Option<u64>, oom_kills: u64) -> Load {
        Load {
            command: "grab 256M".into(),
            rested: true,
            held_before: Bytes::mib(150),
            goal_before: Bytes::mib(150),
            goal: Bytes::mib(406),
            goal_ms,
            load_ms,
            oom_kills,
            failure: None,
            looks: vec![Look { ms: 10, held: Bytes::mib(150) }, Look { ms: 400, held: Bytes::mib(406) }],
        }
    }

    #[test]
    fn whichever_comes_first_serves_it() {
        assert_eq!(load(Some(400), Some(700), 0).served_ms(), Some(400));
        assert_eq!(load(Some(800), Some(700), 0).served_ms(), Some(700));
        assert_eq!(load(None, Some(700), 0).served_ms(), Some(700));
        assert_eq!(load(None, None, 1).served_ms(), None);
    }

    #[test]
    fn a_goal_is_reached_when_it_is_first_held() {
        let looks: Vec<_> = [(10, 150), (50, 300), (90, 405), (130, 512)]
            .map(|(ms, mib)| Look { ms, held: Bytes::mib(mib) })
            .into();
        assert_eq!(reached(&looks, Bytes::mib(406)), Some(90));
        assert_eq!(reached(&looks, Bytes::mib(500)), Some(130));
        assert_eq!(reached(&looks, Bytes::mib(600)), None);
    }
}
