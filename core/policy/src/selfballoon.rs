//! Self-ballooning: a guest's own proposal, from what its programs were promised.
//!
//! The arithmetic is Magenheimer's (v3, June 2011), integer divisions as written there, with the two refinements
//! that were merged after OOM kills in the field (a reserve, and a floor that follows the guest's size). It is a
//! proposal only: what becomes of it is decided beside everything else, see [`crate::decide`].

use plimsoll_model::{AgentStats, Tunables};
use plimsoll_units::{Bytes, MonoTime, PageCount};
use serde::{Deserialize, Serialize};

/// Pages in a MiB.
const MIB: u64 = 256;

/// What a goal is made of, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Goal {
    /// What the guest's programs were promised: `Committed_AS`.
    pub committed: PageCount,
    /// What the guest's kernel keeps for itself and never calls its total: `current - total_ram`, which is the
    /// same whatever the balloon holds.
    pub kernel: PageCount,
    /// What the guest's kernel does not hand out to programs: `totalreserve_pages`.
    pub reserve: PageCount,
    /// Kept free beyond that: `reserved_mb`.
    pub reserved: PageCount,
    /// Pages in the swap store, which must be able to come back.
    pub stored: PageCount,
}

impl Goal {
    /// The goal itself: `committed + (current - total_ram) + reserve + reserved + stored`.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        let parts = [self.committed, self.kernel, self.reserve, self.reserved, self.stored];
        PageCount(parts.iter().map(|p| p.0).fold(0, u64::saturating_add))
    }
}

/// The next target of a guest that holds `current`: a `down`th of the way down, or an `up`th of the way up. A
/// hysteresis of 0 counts as 1.
#[must_use]
pub fn step(current: PageCount, goal: PageCount, down: u64, up: u64) -> PageCount {
    let (current, goal) = (current.0, goal.0);
    let part = |way: u64, hysteresis: u64| way.checked_div(hysteresis).unwrap_or(way);
    PageCount(if current > goal {
        current.saturating_sub(part(current.saturating_sub(goal), down))
    } else {
        current.saturating_add(part(goal.saturating_sub(current), up))
    })
}

/// The least that is left to a guest of `max` pages whose kernel keeps `reserve`: with `min_usable_mb` that much and
/// the reserve, with 0 the reserve and a part of the rest that falls as the guest is larger. A guest with less than
/// 16 MiB beyond its reserve is left all of it.
#[must_use]
pub fn floor(max: PageCount, reserve: PageCount, min_usable_mb: u64) -> PageCount {
    let reserve = reserve.0.min(max.0);
    let usable = max.0.saturating_sub(reserve);
    let above = |mib: u64, shift: u32| {
        let start = mib.saturating_mul(MIB);
        start.saturating_add(usable.saturating_sub(start).checked_shr(shift).unwrap_or(0))
    };
    let least = match usable {
        _ if min_usable_mb > 0 => min_usable_mb.saturating_mul(MIB),
        0..4096 => usable,
        4096..16_384 => above(16, 1),
        16_384..131_072 => above(40, 3),
        _ => above(99, 5),
    };
    PageCount(reserve.saturating_add(least).min(max.0))
}

/// What is remembered of a VM's self-ballooning while it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voluntary {
    /// The proposal in force.
    pub(crate) target: Bytes,
    /// When the next step down may come.
    pub(crate) due: MonoTime,
    /// What the goal was when it was last reckoned.
    pub(crate) goal: Bytes,
}

/// How a guest's `MemTotal` goes with its balloon: Linux lowers it unless DEFLATE_ON_OOM was negotiated
/// (`adjust_managed_page_count` in drivers/virtio/virtio_balloon.c). Nobody tells the host which; it shows as
/// soon as the balloon has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TotalRam {
    total: Bytes,
    actual: Bytes,
    /// Whether `MemTotal` falls as the balloon grows, once that is known.
    falls: Option<bool>,
    /// What the kernel keeps for itself, as last reckoned.
    kernel: Bytes,
}

/// The balloon must have moved this far before a total that did or did not follow says anything.
const TELLING: Bytes = Bytes::mib(4);

impl TotalRam {
    pub(crate) fn new(maxmem: Bytes, actual: Bytes, total: Bytes) -> Self {
        Self { total, actual, falls: None, kernel: maxmem.minus(total) }
    }

    /// Takes in a report; `rests` says that the balloon did not move since the tick before.
    pub(crate) fn read(&mut self, maxmem: Bytes, actual: Bytes, total: Bytes, rests: bool) {
        if !rests {
            return;
        }
        let moved = Bytes(actual.0.abs_diff(self.actual.0));
        if moved >= TELLING {
            let followed = Bytes(total.0.abs_diff(self.total.0));
            self.falls = Some(followed.plus(followed) >= moved);
            (self.total, self.actual) = (total, actual);
        }
        // Until it is known, the total counts as one that stays: that goal is the larger one.
        let falls = self.falls == Some(true);
        self.kernel = if falls { actual.minus(total) } else { maxmem.minus(total) };
    }

    /// `current - total_ram`.
    pub(crate) const fn kernel(&self) -> Bytes {
        self.kernel
    }
}

/// A VM as self-ballooning sees it at one tick.
pub(crate) struct Worker<'a> {
    pub(crate) tunables: &'a Tunables,
    pub(crate) maxmem: Bytes,
    pub(crate) current: Bytes,
    /// The target in force.
    pub(crate) target: Bytes,
    /// The guest is in distress: whatever it was given stands, and the next step down waits its full time.
    pub(crate) distressed: bool,
    /// The report came after the one that was looked at last.
    pub(crate) fresh: bool,
}

impl Worker<'_> {
    /// The goal for what the agent says; `None` if it does not say what was promised.
    pub(crate) fn goal(&self, stats: &AgentStats, kernel: Bytes) -> Option<Goal> {
        let reserved = self.tunables.reserved_mb.map_or(Bytes(self.maxmem.0 / 10), Bytes::mib);
        let pages = |bytes: Bytes| bytes.min(self.maxmem).pages_ceil();
        Some(Goal {
            committed: pages(stats.committed?),
            kernel: pages(kernel),
            reserve: pages(stats.reserve.unwrap_or(Bytes::ZERO)),
            reserved: pages(reserved),
            stored: PageCount(0),
        })
    }

    /// The proposal at `now`.
    pub(crate) fn propose(&self, before: Option<Voluntary>, goal: Goal, now: MonoTime) -> Voluntary {
        let next = |from: MonoTime| from.plus_millis(self.tunables.selfballoon_interval.saturating_mul(1000));
        let pages = goal.pages();
        let goal_bytes = pages.bytes().min(self.maxmem);
        // Switched on: the first step comes after a full interval, as that of a worker that was just armed.
        let Some(before) = before else {
            let due = next(now);
            let target = self.bound(self.target.max(goal_bytes), goal.reserve);
            return Voluntary { target, due, goal: goal_bytes };
        };
        let (down, up) = (self.tunables.selfballoon_downhysteresis, self.tunables.selfballoon_uphysteresis);
        let stepped = step(self.current.pages_floor(), pages, down, up).bytes();
        // What was granted to it in distress is where it starts from.
        let base = before.target.max(self.target);
        let (target, due) = if self.distressed {
            (base, next(now))
        } else if self.current < goal_bytes {
            // It need not wait for the interval: who allocates now would be killed before that.
            (if self.fresh { base.max(stepped) } else { base }, before.due)
        } else if now >= before.due {
            let due = next(before.due);
            (base.min(stepped).max(goal_bytes), if due > now { due } else { next(now) })
        } else {
            // The goal may have risen since.
            (base.max(goal_bytes), before.due)
        };
        Voluntary { target: self.bound(target, goal.reserve), due, goal: goal_bytes }
    }

    fn bound(&self, target: Bytes, reserve: PageCount) -> Bytes {
        let least = floor(self.maxmem.pages_floor(), reserve, self.tunables.min_usable_mb).bytes();
        target.max(least).min(self.maxmem)
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    const M: fn(u64) -> PageCount = |mib| PageCount(mib * MIB);

    #[test]
    fn the_divisions_are_integer_divisions() {
        assert_eq!(step(PageCount(1000), PageCount(993), 8, 1), PageCount(1000), "less than a step is none");
        assert_eq!(step(PageCount(1000), PageCount(992), 8, 1), PageCount(999));
        assert_eq!(step(PageCount(1000), PageCount(1007), 8, 8), PageCount(1000));
        assert_eq!(step(PageCount(1000), PageCount(1007), 8, 1), PageCount(1007));
        assert_eq!(step(PageCount(1000), PageCount(1000), 8, 1), PageCount(1000));
        assert_eq!(step(PageCount(1000), PageCount(0), 0, 0), PageCount(0));
    }

    /// The published half-life: 26 s at the defaults of 5 s and 8.
    #[test]
    fn the_half_life_is_as_published() {
        let (mut current, mut seconds) = (PageCount(1 << 20), 0);
        while current.0 > 1 << 19 {
            current = step(current, PageCount(0), 8, 1);
            seconds += 5;
        }
        // Six steps of 5 s are the first to pass the half; the curve passes it at 5.19 steps, 26 s.
        assert_eq!(seconds, 30);
    }

    /// The field result: an idle guest of 5 GiB falls to about 900 MB in under 3 minutes.
    #[test]
    fn an_idle_guest_of_5_gib_falls_as_it_did_in_the_field() {
        let mut current = M(5 * 1024);
        let mut seconds = 0;
        let goal = M(860);
        while current > M(920) {
            current = step(current, goal, 8, 1);
            seconds += 5;
        }
        assert!(seconds < 180, "{seconds}");
    }

    #[test]
    fn floors_are_as_merged() {
        for (usable, least) in
            [(8, 8), (16, 16), (40, 28), (63, 39), (64, 43), (456, 92), (512, 111), (1123, 131)]
        {
            let floor = floor(M(usable + 10), M(10), 0);
            assert_eq!(floor.0 / MIB, least + 10, "{usable} MiB usable");
        }
        assert_eq!(floor(M(1000), M(10), 64), M(74));
        assert_eq!(floor(M(100), M(10), 1 << 40), M(100), "never more than the guest has");
        assert_eq!(floor(M(100), M(4000), 0), M(100));
    }

    #[test]
    fn what_the_kernel_keeps_is_the_same_whether_or_not_its_total_follows_the_balloon() {
        let (maxmem, kept) = (Bytes::mib(512), Bytes::mib(30));
        for falls in [false, true] {
            let total = |actual: Bytes| if falls { actual.minus(kept) } else { maxmem.minus(kept) };
            let mut ram = TotalRam::new(maxmem, maxmem, total(maxmem));
            assert_eq!(ram.kernel(), kept);
            for actual in [512, 500, 300, 100, 400].map(Bytes::mib) {
                // While the balloon moves, what the two sides say is of different moments.
                ram.read(maxmem, actual, Bytes::mib(7), false);
                ram.read(maxmem, actual, total(actual), true);
                assert_eq!(ram.kernel(), kept, "at {actual}, falls: {falls}");
            }
        }
    }

    fn worker(tunables: &Tunables, current: u64, target: u64) -> Worker<'_> {
        Worker {
            tunables,
            maxmem: Bytes::mib(1024),
            current: Bytes::mib(current),
            target: Bytes::mib(target),
            distressed: false,
            fresh: true,
        }
    }

    fn goal(mib: u64) -> Goal {
        Goal { committed: M(mib), ..Goal::default() }
    }

    #[test]
    fn down_it_goes_at_the_interval_and_up_at_once() {
        let tunables = Tunables::default();
        let at = |s: u64| MonoTime(s * 1_000_000);
        let on = worker(&tunables, 1024, 1024).propose(None, goal(224), at(0));
        assert_eq!((on.target, on.due), (Bytes::mib(1024), at(5)));
        let early = worker(&tunables, 1024, 1024).propose(Some(on), goal(224), at(4));
        assert_eq!(early, on);
        let down = worker(&tunables, 1024, 1024).propose(Some(on), goal(224), at(5));
        assert_eq!((down.target, down.due), (Bytes::mib(924), at(10)));
        let up = worker(&tunables, 924, 924).propose(Some(down), goal(1000), at(6));
        assert_eq!((up.target, up.due), (Bytes::mib(1000), at(10)));
        let late = worker(&tunables, 924, 924).propose(Some(down), goal(224), at(33));
        assert_eq!(late.due, at(38), "missed intervals are not made up for");
        let hurt = Worker { distressed: true, ..worker(&tunables, 924, 980) };
        let hurt = hurt.propose(Some(down), goal(224), at(10));
        assert_eq!((hurt.target, hurt.due), (Bytes::mib(980), at(15)));
        // The grant came after that; nothing of it is taken before the interval is over, and nothing below the goal ever.
        let better = worker(&tunables, 1000, 1000).propose(Some(hurt), goal(224), at(11));
        assert_eq!(better.target, Bytes::mib(1000));
        let low = Voluntary { target: Bytes::mib(91), ..hurt };
        for second in [11, 15] {
            let next = worker(&tunables, 512, 91).propose(Some(low), goal(347), at(second));
            assert!(next.target >= Bytes::mib(347), "{next:?}");
        }
    }

    #[test]
    fn it_stops_at_the_floor_for_the_guests_size() {
        let tunables = Tunables::default();
        let mut v = None;
        let mut current = 1024 << 20;
        for second in 0..600u64 {
            let w = Worker { current: Bytes(current), target: Bytes(current), ..worker(&tunables, 0, 0) };
            let next = w.propose(v, goal(0), MonoTime(second * 1_000_000));
            current = next.target.0;
            v = Some(next);
        }
        assert_eq!(Bytes(current), floor(M(1024), PageCount(0), 0).bytes());
    }

    proptest! {
        #[test]
        fn a_step_lies_between_where_it_is_and_where_it_goes(current: u64, goal: u64, down: u64, up: u64) {
            let (current, goal) = (PageCount(current >> 1), PageCount(goal >> 1));
            let next = step(current, goal, down, up);
            prop_assert!(next >= current.min(goal) && next <= current.max(goal));
        }

        #[test]
        fn a_floor_is_within_the_guest(max: u64, reserve: u64, mb: u64) {
            let (max, reserve) = (PageCount(max), PageCount(reserve));
            let floor = floor(max, reserve, mb);
            prop_assert!(floor <= max && floor >= reserve.min(max));
        }

        #[test]
        fn no_report_makes_it_leave_the_guest(
            committed: u64, reserve: u64, total: u64, current: u64, target: u64, due: u64, goal: u64, now: u64,
            distressed: bool, fresh: bool, min_usable_mb: u64, reserved_mb: u64,
        ) {
            let tunables = Tunables { min_usable_mb, reserved_mb: Some(reserved_mb), ..Tunables::default() };
            let maxmem = Bytes::gib(1);
            let stats = AgentStats { committed: Some(Bytes(committed)), reserve: Some(Bytes(reserve)), ..AgentStats::default() };
            let ram = TotalRam::new(maxmem, Bytes(current), Bytes(total));
            let worker = Worker { tunables: &tunables, maxmem, current: Bytes(current), target: Bytes(target), distressed, fresh };
            let goal_now = worker.goal(&stats, ram.kernel()).unwrap();
            let before = Voluntary { target: Bytes(target), due: MonoTime(due), goal: Bytes(goal) };
            let next = worker.propose(Some(before), goal_now, MonoTime(now));
            prop_assert!(next.target <= maxmem);
        }
    }
}
