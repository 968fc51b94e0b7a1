//! Taking over from a pager that is gone, and from a guest that begins anew.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use plimsoll_frames::Reboot;
use plimsoll_uffd::Events;

use crate::shared::{Shared, after};
use crate::{ResetError, StartError};

/// Reads of events that nobody will answer. A VMM has no more threads than that many times a batch; what is left is answered
/// as if it came now.
const READS: usize = 1024;
/// Events a read.
const BATCH: usize = 64;
/// Frames taken back at once in a reboot: 128 MiB, some 30 ms.
const FRAMES: usize = 64;
/// How long a recovery waits for what it has itself begun: nothing, so hardly at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait where nobody tells when it is over.
const SOON: Duration = Duration::from_millis(10);

impl<W: AsRef<[AtomicU64]> + Send> Shared<W> {
    /// Brings the ledger, the file and those who wait together again, before anything is served. The process before may have
    /// been killed at any instant, or there was none.
    pub(crate) fn recover(&self) -> Result<(), StartError> {
        // Faults read by the process before are lost, so that everybody is woken in the end. Those not read yet are dropped with
        // them: who is woken comes back.
        let mut events = Events::with_room_for(BATCH);
        for _ in 0..READS {
            if self.mapping.uffd.read(&mut events)?.len() == 0 {
                break;
            }
        }
        // What was recorded and not done, or done and not recorded.
        self.correct_everywhere();
        let mut tries = 0_usize;
        while !self.lift_leftover() {
            tries = tries.saturating_add(1);
            if tries > READS {
                return Err(StartError::Recovery { what: "lift the write protection of a sweep" });
            }
            // Whoever is in the way waits for its event to be read.
            drop(self.mapping.uffd.read(&mut events)?);
        }
        if self.lock().ledger.is_rebooting() {
            self.continue_reset(PATIENCE)
                .map_err(|_| StartError::Recovery { what: "take the memory of a rebooted guest back" })?;
        }
        self.wake(&(0..self.file.pages()));
        Ok(())
    }

    /// The guest begins anew: all its memory is taken back.
    pub(crate) fn reset(&self, patience: Duration) -> Result<(), ResetError> {
        let mut state = self.lock();
        state.ledger.begin_reboot();
        self.settle(state);
        self.continue_reset(patience)
    }

    fn continue_reset(&self, patience: Duration) -> Result<(), ResetError> {
        let began = Instant::now();
        loop {
            let mut discards = Vec::new();
            let mut state = self.lock();
            let reboot = state.ledger.continue_reboot(FRAMES, &mut discards);
            match reboot {
                Reboot::Waiting { left, .. } if discards.is_empty() => {
                    drop(self.watch(state, after(SOON.min(patience))));
                    if began.elapsed() >= patience || self.is_stopping() {
                        let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                        return Err(ResetError { left: left.0, waited_ms });
                    }
                }
                Reboot::Done => {
                    self.settle(state);
                    return Ok(());
                }
                Reboot::More | Reboot::Waiting { .. } => {
                    self.settle(state);
                    self.carry_out(&discards);
                }
            }
        }
    }
}
