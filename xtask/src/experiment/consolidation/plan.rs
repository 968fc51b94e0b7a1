//! What is run: sizes, numbers and order, all of it settled before the first guest boots.

use std::time::Duration;

use anyhow::{Result, bail};
use plimsoll_units::Bytes;
use serde::Serialize;

/// How the guests are cared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Column {
    /// Bare guests, zswap off.
    Nothing,
    /// Free page reporting and zswap; memory.reclaim where the host has it. Nobody decides anything.
    Careful,
    /// Plimsoll, zswap off.
    Plimsoll,
}

impl Column {
    /// As people type it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Careful => "careful",
            Self::Plimsoll => "plimsoll",
        }
    }
}

/// How small the host is for what its guests are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Setting {
    /// Limit : told = 32 : 35 and swap half of the limit, as in the experiment of 2013.
    Field,
    /// Limit : told = 1 : 2. Swap takes all that the guests are told, so that the unmanaged guests get slow and are
    /// not killed: the time of a killed guest compares with nothing.
    Hard,
}

impl Setting {
    /// As people type it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Field => "field",
            Self::Hard => "hard",
        }
    }

    /// Numerator and denominator of limit : told.
    const fn share(self) -> (u64, u64) {
        match self {
            Self::Field => (32, 35),
            Self::Hard => (1, 2),
        }
    }
}

/// The sizes of one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    pub(crate) setting: Setting,
    pub(crate) vms: u64,
    /// What each guest is told it has.
    pub(crate) told: Bytes,
    /// What all may use together: the limit of their memory cgroup.
    pub(crate) limit: Bytes,
    /// The swap they may use together.
    pub(crate) swap: Bytes,
    /// Each guest's own swap disk.
    pub(crate) guest_swap: Bytes,
    /// Under Plimsoll, each VM's baseline.
    pub(crate) memory: Bytes,
    /// Under Plimsoll, each VM's guarantee.
    pub(crate) floor: Bytes,
    /// Files each guest compiles.
    pub(crate) files: u64,
    /// What a guest fills at its turn.
    pub(crate) fill: Bytes,
    /// Guests that have their turn at the same time.
    pub(crate) at_a_time: u64,
    /// How often each guest has its turn.
    pub(crate) rounds: u64,
    /// Swapped pages, in and out together, below which the unmanaged side was under no real pressure.
    pub(crate) least_swapped: u64,
}

/// What a guest uses when it does nothing: its kernel and busybox, 33 to 36 MiB as measured, and its VMM.
const IDLE: Bytes = Bytes::mib(40);
/// What lives at one moment, as a share of the limit.
const LIVE_PERCENT: u64 = 75;
/// Unmanaged guests that swap less than this share of the limit are no comparison.
const PRESSURE_PERCENT: u64 = 20;
/// Files all guests compile together, and the least each does: fewer would be all loading of the compiler.
const FILES: u64 = 160;
const LEAST_FILES: u64 = 12;
/// How often each guest has its turn, where they are few and where they are many.
const ROUNDS: [u64; 2] = [2, 1];
/// From so many on guests are many.
const MANY: u64 = 16;
/// A guest's own swap disk: enough to live on when it is squeezed, not to hide all of its memory in.
const GUEST_SWAP: Bytes = Bytes::mib(64);

/// No guest's compiling takes longer.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_secs(300);
/// No single step of a turn takes longer: a guest that swaps its heart out is slow, not dead.
pub(crate) const STEP_LIMIT: Duration = Duration::from_secs(120);
/// No phase of turns takes longer.
pub(crate) const TURNS_LIMIT: Duration = Duration::from_secs(600);
/// No boot of all guests takes longer.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(180);

impl Plan {
    /// The sizes for so many guests told of `told` each.
    ///
    /// # Errors
    /// When they are too few, or too small for the setting.
    pub(crate) fn new(setting: Setting, vms: u64, told: Bytes) -> Result<Self> {
        let mib = |bytes: Bytes| Bytes::mib(bytes.whole_mib());
        let (numerator, denominator) = setting.share();
        let all = told.scale(vms, 1);
        let limit = mib(all.scale(numerator, denominator));
        let share = limit.scale(1, vms);
        // A guest cannot fill all it was told of: its kernel needs some, and at the very edge it kills.
        let fill = mib(told.scale(5, 8));
        let live = limit.scale(LIVE_PERCENT, 100).minus(IDLE.scale(vms, 1));
        let at_a_time = live.0.checked_div(fill.0).unwrap_or(0).min(vms.saturating_sub(1));
        let plan = Self {
            setting,
            vms,
            told,
            limit,
            swap: if setting == Setting::Field { mib(limit.scale(1, 2)) } else { all },
            guest_swap: GUEST_SWAP,
            memory: mib(share.scale(7, 8)),
            floor: mib(share.scale(1, 2)),
            files: (FILES / vms.max(1)).max(LEAST_FILES),
            fill,
            at_a_time,
            rounds: if vms < MANY { ROUNDS[0] } else { ROUNDS[1] },
            least_swapped: limit.scale(PRESSURE_PERCENT, 100).pages_floor().0,
        };
        if vms < 4 {
            bail!("--vms {vms} is too few to move memory between; at least 4");
        }
        if plan.floor < Bytes::mib(40) || at_a_time == 0 {
            bail!("--told {told} is too little for setting `{}`; at least 160M", setting.name());
        }
        Ok(plan)
    }

    /// The guest that has the n-th turn. No guest has two turns at a time, for fewer have turns than there are.
    pub(crate) fn guest_of_turn(&self, seed: u64, turn: u64) -> u64 {
        (turn % self.vms.max(1) + seed % self.vms.max(1)) % self.vms.max(1)
    }

    /// The line of the list where a guest's compiling begins: another one for each guest and each round, the same
    /// one in each column.
    pub(crate) fn first_file(&self, seed: u64, round: u64, guest: u64) -> u64 {
        let stretch = round.saturating_mul(self.vms).saturating_add(guest);
        seed.wrapping_mul(97).wrapping_add(stretch.saturating_mul(self.files))
    }
}

/// One run of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Counted from 0.
    pub(crate) round: u64,
    pub(crate) setting: Setting,
    pub(crate) column: Column,
}

/// All runs in their order. Within a round the columns alternate, and each round begins with another one, so that
/// none always comes first.
pub(crate) fn order(rounds: u64, settings: &[Setting], columns: &[Column]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for round in 0..rounds {
        for &setting in settings {
            let shift = usize::try_from(round).unwrap_or(0) % columns.len().max(1);
            let rotated = columns.iter().cycle().skip(shift).take(columns.len());
            turns.extend(rotated.map(|&column| Turn { round, setting, column }));
        }
    }
    turns
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;
    use proptest::prelude::proptest;

    use super::{Column, IDLE, Plan, Setting, order};

    const COLUMNS: [Column; 3] = [Column::Nothing, Column::Careful, Column::Plimsoll];

    #[test]
    fn the_published_sizes() {
        let hard = Plan::new(Setting::Hard, 35, Bytes::mib(256)).expect("possible");
        assert_eq!((hard.limit, hard.swap), (Bytes::mib(4480), Bytes::mib(8960)));
        assert_eq!((hard.at_a_time, hard.fill, hard.rounds), (12, Bytes::mib(160), 1));
        let field = Plan::new(Setting::Field, 35, Bytes::mib(256)).expect("possible");
        assert_eq!((field.limit, field.swap), (Bytes::mib(8192), Bytes::mib(4096)));
        let quick = Plan::new(Setting::Hard, 8, Bytes::mib(256)).expect("possible");
        assert_eq!((quick.limit, quick.at_a_time, quick.files), (Bytes::mib(1024), 2, 20));
        assert_eq!((quick.least_swapped, quick.rounds), (52_428, 2));
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let few = Plan::new(Setting::Hard, 3, Bytes::mib(192)).expect_err("few").to_string();
        assert!(few.contains("at least 4"), "{few}");
        let little = Plan::new(Setting::Hard, 8, Bytes::mib(100)).expect_err("little").to_string();
        assert!(little.contains("at least 160M"), "{little}");
        Plan::new(Setting::Hard, 8, Bytes::mib(160)).expect("enough");
    }

    #[test]
    fn columns_alternate_and_none_always_comes_first() {
        let turns = order(2, &[Setting::Field, Setting::Hard], &COLUMNS);
        let names: Vec<_> = turns.iter().map(|turn| turn.column.name()).collect();
        assert_eq!(names[..6], ["nothing", "careful", "plimsoll", "nothing", "careful", "plimsoll"]);
        assert_eq!(names[6..9], ["careful", "plimsoll", "nothing"]);
        assert_eq!((turns[3].setting, turns[11].round, turns.len()), (Setting::Hard, 1, 12));
        assert!(order(2, &[], &COLUMNS).is_empty() && order(2, &[Setting::Hard], &[]).is_empty());
    }

    proptest! {
        #[test]
        fn what_lives_fits_and_no_guest_has_two_turns_at_a_time(vms in 4_u64..200, told in 160_u64..4096, seed: u64) {
            for setting in [Setting::Field, Setting::Hard] {
                let plan = Plan::new(setting, vms, Bytes::mib(told)).expect("possible");
                let live = plan.fill.scale(plan.at_a_time, 1).plus(IDLE.scale(vms, 1));
                assert!(live <= plan.limit.scale(3, 4), "{plan:?}");
                assert!(plan.floor <= plan.memory && plan.memory <= plan.told);
                assert!(plan.memory.scale(vms, 1) <= plan.limit);
                for turn in 0..plan.vms {
                    let together: std::collections::BTreeSet<_> =
                        (turn..turn + plan.at_a_time).map(|turn| plan.guest_of_turn(seed, turn)).collect();
                    assert_eq!(together.len(), usize::try_from(plan.at_a_time).expect("small"));
                }
            }
        }
    }
}
