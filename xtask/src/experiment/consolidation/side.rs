//! One column's guests: what is set up for them on the host, and taken down after them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use plimsoll_testbed::guard::{DiskDir, Setting as Knob, TempSwap, TestCgroup, ZSWAP_ENABLED};
use plimsoll_testbed::host::Meminfo;
use plimsoll_units::Bytes;

use super::administrator::Administrator;
use super::plan::{BOOT_LIMIT, Column, Plan};
use crate::fleet::{Bare, Care, Fleet, GuestSpec, Kept, group_name, name};

/// The part of the host's memory that zswap may take, in percent of the machine's.
const ZSWAP_POOL: &str = "/sys/module/zswap/parameters/max_pool_percent";
/// The kernel's default for it, in percent of the host that the cgroup stands for.
const ZSWAP_SHARE: u64 = 20;
/// Swap beyond what the guests may use: the file's own header, and pages in flight.
const SWAP_SLACK: Bytes = Bytes::mib(64);
/// What a User Mode Linux with its keeper and back end uses beyond its guest's memory, at most.
const OVERHEAD: Bytes = Bytes::mib(64);

/// The host as one column has it. Dropped, everything is as before: guests, group, disks, swap and settings go in
/// this order.
pub(crate) struct Side {
    administrator: Option<Administrator>,
    guests: Guests,
    pub(crate) cgroup: TestCgroup,
    _disks: DiskDir,
    _swap: TempSwap,
    _settings: Vec<Knob>,
}

/// How Plimsoll's guests are run, beside their sizes.
#[derive(Clone, Debug)]
pub(crate) struct How<'a> {
    /// Whether they have agents.
    pub(crate) agent: bool,
    /// The folder for what the daemon writes, where it is to be kept.
    pub(crate) logs: Option<&'a Path>,
}

/// The guests.
enum Guests {
    Bare(Bare),
    Kept(Kept),
}

/// The host prepared for a column, with no guest yet.
pub(crate) struct Ground {
    cgroup: TestCgroup,
    disks: DiskDir,
    swap: TempSwap,
    settings: Vec<Knob>,
}

impl Ground {
    /// Empties the page cache, sets zswap, adds swap and makes the group.
    ///
    /// # Errors
    /// Without the right to do so, or without zswap where the column needs it.
    pub(crate) fn prepare(plan: &Plan, column: Column) -> Result<Self> {
        // Otherwise what one column read from disk would be a gift to the next.
        std::fs::write("/proc/sys/vm/drop_caches", "1").context("emptying the page cache needs root")?;
        let settings = zswap(plan, column)?;
        let swap =
            TempSwap::add(plan.swap.plus(SWAP_SLACK)).context("the experiment needs swap, and so root")?;
        let cgroup = TestCgroup::create("consolidation", plan.limit)?;
        cgroup.limit_swap(plan.swap)?;
        Ok(Self { cgroup, disks: DiskDir::create("consolidation")?, swap, settings })
    }

    /// The group, whose counters begin at nothing.
    pub(crate) fn cgroup(&self) -> &TestCgroup {
        &self.cgroup
    }

    /// Boots the guests.
    ///
    /// # Errors
    /// When one does not get ready.
    pub(crate) fn boot(self, plan: &Plan, column: Column, how: &How<'_>) -> Result<Side> {
        let spec = |index| -> Result<GuestSpec> {
            let name = name(index);
            let disk = Some(self.disks.sparse_file(&name, plan.guest_swap)?);
            Ok(GuestSpec { name, told: plan.told, disk, host_files: true, boot_limit: BOOT_LIMIT })
        };
        let specs = (0..plan.vms).map(spec).collect::<Result<Vec<_>>>()?;
        let administrator = (column == Column::Careful)
            .then(|| Administrator::begin(&self.cgroup, plan.limit))
            .transpose()?;
        let guests = match column {
            Column::Nothing => Guests::Bare(Bare::start(&specs, &self.cgroup)?),
            Column::Careful => Guests::Kept(Kept::start(&specs, &undecided(plan, &self.cgroup))?),
            Column::Plimsoll => Guests::Kept(Kept::start(&specs, &decided(plan, how, &self.cgroup)?)?),
        };
        let Self { cgroup, disks, swap, settings } = self;
        Ok(Side { administrator, guests, cgroup, _disks: disks, _swap: swap, _settings: settings })
    }
}

impl Side {
    /// The guests.
    pub(crate) fn fleet(&self) -> &dyn Fleet {
        match &self.guests {
            Guests::Bare(bare) => bare,
            Guests::Kept(kept) => kept,
        }
    }

    /// The guests with their daemon, where they have one.
    pub(crate) fn kept(&self) -> Option<&Kept> {
        match &self.guests {
            Guests::Bare(_) => None,
            Guests::Kept(kept) => Some(kept),
        }
    }

    /// The most memory that compressed swap took.
    pub(crate) fn most_zswap(&self) -> Bytes {
        self.administrator.as_ref().map_or(Bytes::ZERO, Administrator::most_zswap)
    }
}

/// Our device, and nobody who moves anything: baseline, guarantee and size are one, and the daemon is given a budget
/// that holds them all, so every target stays what the guest is told. Guests report free pages, and that is all.
fn undecided<'a>(plan: &Plan, cgroup: &'a TestCgroup) -> Care<'a> {
    let budget = plan.told.plus(OVERHEAD).scale(plan.vms, 1);
    let config = format!("[host]\nbudget = \"{budget}\"\nreserve = \"0\"\n\n[journal]\ndir = \"none\"\n");
    Care { what: "consolidation", config, memory: plan.told, floor: plan.told, cgroup, agent: false }
}

/// Plimsoll as an operator has it: the group is the host, all else is the default.
fn decided<'a>(plan: &Plan, how: &How<'_>, cgroup: &'a TestCgroup) -> Result<Care<'a>> {
    let mut config = format!("[host]\ncgroup = \"{}\"\n", group_name(cgroup)?);
    if let Some(logs) = how.logs {
        let journal = std::path::absolute(logs.join("journal"))?;
        config.push_str(&format!("\n[journal]\ndir = \"{}\"\n", journal.display()));
    }
    let (memory, floor) = (plan.memory, plan.floor);
    Ok(Care { what: "consolidation", config, memory, floor, cgroup, agent: how.agent })
}

/// Turns zswap on for `careful`, with a pool of the usual share of the host that the group stands for, and off for
/// the others.
fn zswap(plan: &Plan, column: Column) -> Result<Vec<Knob>> {
    let there = Path::new(ZSWAP_ENABLED).exists();
    if column != Column::Careful {
        return Ok(if there { vec![Knob::zswap(false)?] } else { Vec::new() });
    }
    if !there {
        bail!(
            "this kernel has no zswap, so there is no careful administrator to compare with; leave out `careful`"
        );
    }
    let percent = pool_percent(plan.limit, Meminfo::read()?.total);
    Ok(vec![Knob::set(Path::new(ZSWAP_POOL), &percent.to_string())?, Knob::zswap(true)?])
}

/// The share of the machine that is [`ZSWAP_SHARE`] percent of the limit, rounded up to the whole percent that the
/// kernel takes.
fn pool_percent(limit: Bytes, machine: Bytes) -> u64 {
    let share = u128::from(limit.0) * u128::from(ZSWAP_SHARE);
    u64::try_from(share.div_ceil(u128::from(machine.0.max(1)))).unwrap_or(100).clamp(1, 100)
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::pool_percent;

    #[test]
    fn the_pool_is_a_share_of_the_host_that_is_played() {
        assert_eq!(pool_percent(Bytes::gib(4), Bytes::gib(24)), 4);
        assert_eq!(pool_percent(Bytes::mib(768), Bytes::gib(24)), 1);
        assert_eq!(pool_percent(Bytes::gib(24), Bytes::gib(24)), 20);
        assert_eq!(pool_percent(Bytes::gib(24), Bytes::ZERO), 100);
    }
}
