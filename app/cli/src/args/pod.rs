//! What `run` says of memory that is populated on demand.

use clap::{Args as Group, ValueEnum};
use plimsoll_model::{OnExhausted, OnPagerLoss};

/// [`OnExhausted`], as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Exhausted {
    /// Give it more, from what is free or others can spare
    Grow,
    /// Let it wait until an operator gives it more
    Wait,
    /// Stop the VM
    Stop,
}

/// [`OnPagerLoss`], as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loss {
    /// It stands still at the next page it has no memory for, and can only be stopped
    Stall,
    /// It goes on, and nothing limits it but its balloon
    Open,
}

/// Whether and how a guest's memory is populated on demand.
#[derive(Clone, Copy, Debug, Default, Group)]
pub(crate) struct PodArgs {
    /// Populate the guest's memory on demand, so that it cannot touch more than it is granted, with a balloon driver or
    /// without; that is the default for QEMU where --memory is less than --maxmem
    #[arg(long, conflicts_with = "no_pod")]
    pub(crate) pod: bool,
    /// Do not: let the guest touch all it was told of until its balloon driver has come up
    #[arg(long)]
    pub(crate) no_pod: bool,
    /// What to do about a guest that needs more than it is granted and waits for it [default: grow]
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "no_pod")]
    pub(crate) on_exhausted: Option<Exhausted>,
    /// What becomes of the guest when what populates its memory is gone for good [default: stall]
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "no_pod")]
    pub(crate) on_pager_loss: Option<Loss>,
}

impl PodArgs {
    /// The option that was typed, if one was that only means something with populate-on-demand.
    pub(crate) fn asked(self) -> Option<&'static str> {
        let given = [
            (self.pod, "--pod"),
            (self.on_exhausted.is_some(), "--on-exhausted"),
            (self.on_pager_loss.is_some(), "--on-pager-loss"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, option)| option)
    }

    /// What to do about a guest that waits.
    pub(crate) fn on_exhausted(self) -> OnExhausted {
        match self.on_exhausted {
            None | Some(Exhausted::Grow) => OnExhausted::Grow,
            Some(Exhausted::Wait) => OnExhausted::Wait,
            Some(Exhausted::Stop) => OnExhausted::Stop,
        }
    }

    /// What becomes of it without its pager.
    pub(crate) fn on_pager_loss(self) -> OnPagerLoss {
        match self.on_pager_loss {
            None | Some(Loss::Stall) => OnPagerLoss::Stall,
            Some(Loss::Open) => OnPagerLoss::Open,
        }
    }
}
