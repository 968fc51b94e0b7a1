//! Who has connected and not yet handed anything over.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use plimsoll_shm::ShmError;
use plimsoll_uffd::UffdError;
use plimsoll_uffd::handover::{HandedOver, HandoverError, Heard, Refusal, VmmSocket};

/// The most at a time. Whoever comes then waits until one has spoken, or was too slow.
const MAX_CALLERS: usize = 4;

/// How long one may take to hand over. The library does so as soon as it is connected.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that wants to hand a mapping over.
#[derive(Debug)]
pub(super) struct Caller {
    id: u64,
    pub(super) socket: VmmSocket,
    pub(super) pid: u32,
    due: Instant,
}

/// Why a mapping is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    /// What came is not what should have.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// It did not hand over first.
    #[error("it speaks of memory that it has not handed over")]
    TooEarly,
    /// Another process was first.
    #[error("process {0} has the memory of this VM")]
    Owned(u32),
    /// The same process still has it in another mapping.
    #[error("it has the memory of this VM in another mapping already")]
    Twice,
    /// Faults would not be told of, or could not be answered.
    #[error("its userfaultfd does not watch the memory: {0}")]
    Unseen(#[source] UffdError),
    /// Its end could not be seen.
    #[error("its process cannot be watched: {0}")]
    Unwatched(#[source] ShmError),
}

impl NotTaken {
    /// What to tell it.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Handover(error) => error.refusal(),
            Self::TooEarly => Refusal::Protocol,
            Self::Owned(_) | Self::Twice => Refusal::Taken,
            Self::Unseen(_) | Self::Unwatched(_) => Refusal::Other,
        }
    }
}

/// What a caller has said.
#[derive(Debug)]
pub(super) enum Said {
    /// Nothing, or it left.
    Nothing,
    /// It hands over, and waits for an answer.
    HandedOver(Caller, Box<HandedOver>),
    /// What is no handover.
    Nonsense(Caller, NotTaken),
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Callers {
    list: Vec<Caller>,
    next: u64,
}

impl Callers {
    pub(super) fn have_room(&self) -> bool {
        self.list.len() < MAX_CALLERS
    }

    pub(super) fn add(&mut self, socket: VmmSocket, pid: u32, now: Instant) {
        self.next = self.next.wrapping_add(1);
        self.list.push(Caller { id: self.next, socket, pid, due: now + PATIENCE });
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.list.iter().map(|caller| (caller.id, caller.socket.as_fd()))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.list.iter().map(|caller| caller.due).min()
    }

    /// Hears a caller; one that has spoken is none any more.
    pub(super) fn hear(&mut self, id: u64) -> Said {
        let Some(at) = self.list.iter().position(|caller| caller.id == id) else { return Said::Nothing };
        let heard = self.list.get(at).map(|caller| caller.socket.hear());
        if matches!(heard, Some(Ok(Heard::Nothing))) {
            return Said::Nothing;
        }
        let caller = self.list.remove(at);
        match heard {
            Some(Ok(Heard::Handover(taken))) => Said::HandedOver(caller, taken),
            Some(Ok(Heard::Punched { .. } | Heard::Unmapped(_))) => {
                Said::Nonsense(caller, NotTaken::TooEarly)
            }
            Some(Err(error)) => Said::Nonsense(caller, error.into()),
            Some(Ok(Heard::Nothing | Heard::Closed)) | None => Said::Nothing,
        }
    }

    /// Hangs up on those who were too slow. Returns how many.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let before = self.list.len();
        self.list.retain(|caller| now < caller.due);
        before.saturating_sub(self.list.len())
    }
}
