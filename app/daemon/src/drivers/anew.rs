//! A QEMU guest that begins anew with no memory behind it.
//!
//! When QEMU tells of a reset (event `RESET`), it has reset its devices, has written what it loads into memory for the new
//! start, and its CPUs run already: taking the memory away then would take it from the firmware. So the machine is
//! stopped, emptied, and **reset once more**, which loads again what QEMU loads; then it goes on.
//!
//! ```text
//! heard late -> nothing                          RESET of our own
//! heard -> stop -> empty -> ask for a reset -> (that is waited for) -> continue
//!            |       | refused, nobody there                            ^
//!            | late  `--------------------------------------------------|
//!            `----------------------------------------------------------`
//! ```
//!
//! The second reset is as a press of the reset button, which is harmless only while firmware runs: nothing is done
//! unless the machine is stopped within [`PROMPT`] of the first reset. A guest whose reset is not heard in time, or while
//! nobody listens, begins with the memory it had: its limit holds all the same, and a sweep finds what it clears.
//! Once the machine is stopped this is carried to its end, over failures and new connections.

use std::time::Duration;

use plimsoll_qmp::{Event, QmpClient, QmpError};
use plimsoll_units::MonoTime;
use tokio::time::timeout;

use super::pager::{Emptied, PagerSlot, empty};
use crate::clock;

/// Within so long of a reset nothing but firmware runs: it counts memory and looks for what to boot. Linux has not mounted
/// anything before a few times that.
const PROMPT: Duration = Duration::from_millis(200);

/// How long a machine may take to be reset.
const RESET_WAIT: Duration = Duration::from_secs(2);

/// A guest that begins anew more often keeps its memory: nobody is to be kept busy by it.
const LEAST_GAP_MS: u64 = 2_000;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Stop,
    Empty { begun: bool },
    Reset,
    Go,
}

/// How far it has come.
#[derive(Debug, Default)]
pub(super) struct Anew {
    stage: Option<Stage>,
    /// When the guest was reset, by the wall clock in microseconds.
    at_us: u64,
    /// When that was last begun.
    begun: Option<MonoTime>,
}

impl Anew {
    /// A guest was reset at this moment.
    pub(super) fn begin(&mut self, at_us: Option<u64>, now: MonoTime) {
        let often = self.begun.is_some_and(|begun| now.millis_since(begun) < LEAST_GAP_MS);
        let Some(at_us) = at_us.filter(|_| !often && self.stage.is_none()) else { return };
        *self = Self { stage: Some(Stage::Stop), at_us, begun: Some(now) };
    }

    /// Whether there is something left to do.
    pub(super) fn is_due(&self) -> bool {
        self.stage.is_some()
    }

    /// Does what is left. An error leaves the rest for the next time.
    pub(super) async fn go_on(&mut self, on: &mut QmpClient, pager: &PagerSlot) -> Result<(), QmpError> {
        while let Some(stage) = self.stage {
            self.stage = match stage {
                Stage::Stop if is_late(self.at_us, clock::wall_us()) => None,
                Stage::Stop => {
                    // If the answer does not come, the machine may stop later all the same: it must go on.
                    self.stage = Some(Stage::Go);
                    on.stop().await?;
                    let late = is_late(self.at_us, clock::wall_us());
                    Some(if late { Stage::Go } else { Stage::Empty { begun: false } })
                }
                Stage::Empty { begun } => Some(emptied(pager, begun).await),
                Stage::Reset => {
                    reset(on).await?;
                    Some(Stage::Go)
                }
                Stage::Go => {
                    on.cont().await?;
                    None
                }
            };
            if let Some(Stage::Empty { begun: true }) = self.stage {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether more than firmware may run by now. A clock that was set back says nothing.
fn is_late(at_us: u64, now_us: u64) -> bool {
    let allowed = u64::try_from(PROMPT.as_micros()).unwrap_or(u64::MAX);
    now_us.checked_sub(at_us).is_none_or(|age| age > allowed)
}

async fn emptied(pager: &PagerSlot, begun: bool) -> Stage {
    let Some(address) = pager.address() else { return if begun { Stage::Reset } else { Stage::Go } };
    match empty(address, begun).await {
        Emptied::Whole => Stage::Reset,
        Emptied::Untouched(why) => {
            tracing::info!(%why, "a guest begins anew with the memory it had");
            Stage::Go
        }
        Emptied::Partly(why) => {
            tracing::warn!(%why, "a guest that begins anew stands still until its memory has been given back");
            Stage::Empty { begun: true }
        }
    }
}

/// Resets the machine and waits until that is done: a CPU must not run before.
async fn reset(on: &mut QmpClient) -> Result<(), QmpError> {
    on.system_reset().await?;
    let done = async {
        while !matches!(on.next_event().await?, Event::Reset { .. }) {}
        Ok(())
    };
    timeout(RESET_WAIT, done).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_what_was_just_reset_is_emptied() {
        let ms = 1_000;
        assert!(!is_late(5_000 * ms, 5_000 * ms) && !is_late(5_000 * ms, 5_200 * ms));
        assert!(is_late(5_000 * ms, 5_201 * ms) && is_late(5_000 * ms, 4_999 * ms) && is_late(0, u64::MAX));
    }

    #[test]
    fn a_guest_that_resets_all_the_time_keeps_its_memory() {
        let mut anew = Anew::default();
        anew.begin(None, MonoTime(0));
        assert!(!anew.is_due(), "nobody knows when it was");
        anew.begin(Some(7), MonoTime(0));
        assert!(anew.is_due());
        anew.stage = None;
        anew.begin(Some(8), MonoTime(1_999_000));
        assert!(!anew.is_due());
        anew.begin(Some(9), MonoTime(2_000_000));
        assert!(anew.is_due());
        anew.begin(Some(10), MonoTime(9_000_000));
        assert_eq!(anew.at_us, 9, "one after the other");
    }
}
