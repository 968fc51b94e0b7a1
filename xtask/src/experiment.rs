//! `cargo xtask experiment NAME`: the published experiments, each as the command that repeats it.
//!
//! What they share is here: the file with raw counters and a summary ([`sheet`]), medians and ratios ([`figures`]),
//! the chart ([`chart`]) and the table ([`table`]). Guests come from [`crate::fleet`], so that all experiments and
//! the demonstration start them alike.

pub(crate) mod chart;
mod consolidation;
pub(crate) mod figures;
mod pod;
mod selfballoon;
pub(crate) mod sheet;
pub(crate) mod table;

use anyhow::Result;

/// Which experiment.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Experiment {
    /// Many guests on a host that is too small for what they are told, in three columns
    ///
    /// Each run boots User Mode Linux guests in one memory cgroup with a swap file, lets all of them compile C
    /// sources with the host's compiler at the same time, and then lets them fill, check and free most of their
    /// memory by turns. The columns alternate: `nothing` (bare guests), `careful` (free page reporting and zswap,
    /// nobody decides) and `plimsoll`. Everything is counted by the kernel, and everything is put back, also after
    /// Ctrl-C.
    Consolidation(consolidation::Options),
    /// Whether self-ballooning does what its arithmetic says, and gives memory back in time
    ///
    /// Real guests with Plimsoll's agent (User Mode Linux, and Debian's kernel in QEMU) shrink towards their goal:
    /// the half-life is fitted over the whole curve and compared with the formula. Then programs want most of the
    /// memory at once, again and again: how long until they have it, and is one killed? All of it is counted by the
    /// guests' own kernels. Fails, and says which, when a limit is missed.
    Selfballoon(selfballoon::Options),
    /// Whether guests boot on a half and a quarter of the memory they are told of, and how fast they are served
    ///
    /// Debian's kernel in QEMU, both as they are, its memory populated on demand: a plain boot, and one that writes
    /// zeros to all it is told of. The guest's memory is looked at 20 times a second, by the kernel's count. The pager's
    /// rates beside the kernel's come from its benchmark. Fails, and says which, when a limit is missed.
    Pod(pod::Options),
}

pub(crate) fn command(experiment: &Experiment) -> Result<()> {
    match experiment {
        Experiment::Consolidation(options) => consolidation::command(options),
        Experiment::Selfballoon(options) => selfballoon::command(options),
        Experiment::Pod(options) => pod::command(options),
    }
}
