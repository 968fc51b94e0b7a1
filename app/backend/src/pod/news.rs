//! What the pager's threads tell this process's main thread.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use plimsoll_pager::PagerEvent;
use plimsoll_shm::{Notifier, SharedWords};
use plimsoll_vhost_user::Throttle;

/// The position of the count of stalls among the words that outlive this process.
const STALLS: usize = 16;

/// Told by the pager's threads, read by the main one.
pub(crate) struct News {
    /// Wakes the main thread.
    poke: Notifier,
    /// See `PagerStatus::turns`.
    turns: AtomicU64,
    /// The guest waits, and sweeping does not help.
    stalled: AtomicBool,
    /// Why this process has to end.
    failure: Mutex<Option<String>>,
    /// The words that outlive this process.
    words: SharedWords,
    /// The guest causes these lines.
    log: Mutex<Throttle>,
}

impl News {
    /// Nothing yet, in the `epoch`th back end of this VM.
    pub(crate) fn new(epoch: u64, words: SharedWords) -> anyhow::Result<Self> {
        Ok(Self {
            poke: Notifier::new()?,
            // So that no back end ever says what another has said.
            turns: AtomicU64::new(epoch << 32),
            stalled: AtomicBool::new(false),
            failure: Mutex::new(None),
            words,
            log: Mutex::new(Throttle::default()),
        })
    }

    /// Something has happened. Does not wait.
    pub(crate) fn tell(&self, event: PagerEvent) {
        self.say(&event);
        match event {
            PagerEvent::Exhausted { .. } => {
                if !self.stalled.swap(true, SeqCst) {
                    self.count_stall();
                    self.turn();
                }
            }
            PagerEvent::Relieved { .. } => {
                if self.stalled.swap(false, SeqCst) {
                    self.turn();
                }
            }
            PagerEvent::Failed { reason } => {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
            }
            PagerEvent::Refused { .. }
            | PagerEvent::HintsEnded { .. }
            | PagerEvent::Unmapped
            | PagerEvent::VmmGone
            | _ => {}
        }
        self.poke.poke();
    }

    /// Puts it into the log; at a limited rate what a guest can make happen again and again.
    fn say(&self, event: &PagerEvent) {
        let pass = || self.log.lock().unwrap_or_else(PoisonError::into_inner).pass(Instant::now());
        match event {
            PagerEvent::Exhausted { residency, waiting } => {
                if let Some(more) = pass() {
                    let target = residency.target;
                    tracing::warn!(%target, waiting, more, "the guest waits: it may have no more memory");
                }
            }
            PagerEvent::Refused { page, errno } => {
                if let Some(more) = pass() {
                    tracing::error!(page, %errno, more, "the guest waits: the host has no memory for it");
                }
            }
            PagerEvent::Relieved { after } => {
                if let Some(more) = pass() {
                    tracing::info!(?after, more, "the guest goes on");
                }
            }
            PagerEvent::HintsEnded { reason: Some(reason) } => {
                tracing::warn!(reason, "the VMM is not listened to any more; holes are found when touched");
            }
            PagerEvent::HintsEnded { reason: None }
            | PagerEvent::Unmapped
            | PagerEvent::VmmGone
            | PagerEvent::Failed { .. }
            | _ => tracing::debug!(?event, "told by the pager"),
        }
    }

    /// Something is as nobody was told yet.
    pub(crate) fn turn(&self) {
        self.turns.fetch_add(1, SeqCst);
        self.poke.poke();
    }

    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(SeqCst)
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(SeqCst)
    }

    /// Stalls of this VM, over all back ends. One that outlasts a back end is counted by the next one too.
    pub(crate) fn stalls(&self) -> u64 {
        self.words.get(STALLS).map_or(0, |word| word.load(SeqCst))
    }

    /// Why this process has to end, if it has to.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The main thread has been woken.
    pub(crate) fn take(&self) {
        self.poke.take();
    }

    fn count_stall(&self) {
        if let Some(word) = self.words.get(STALLS) {
            word.fetch_add(1, SeqCst);
        }
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poke.as_fd()
    }
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use plimsoll_frames::Residency;

    use super::*;

    fn news(epoch: u64) -> (News, SharedWords) {
        let words = SharedWords::create("plimsoll-test", 64).unwrap().0;
        (News::new(epoch, words.clone()).unwrap(), words)
    }

    fn exhausted() -> PagerEvent {
        PagerEvent::Exhausted { residency: Residency::default(), waiting: 1 }
    }

    #[test]
    fn a_stall_is_a_turn_and_its_end_another() {
        let (news, words) = news(1);
        let first = news.turns();
        news.tell(exhausted());
        news.tell(exhausted());
        assert_eq!((news.turns(), news.stalls(), news.is_stalled()), (first + 1, 1, true));
        let end = || PagerEvent::Relieved { after: Duration::ZERO };
        news.tell(end());
        news.tell(end());
        assert_eq!((news.turns(), news.stalls(), news.is_stalled()), (first + 2, 1, false));
        let next = News::new(2, words).unwrap();
        assert_eq!(next.stalls(), 1, "over the lives of all back ends");
        assert!(next.turns() > news.turns());
    }

    #[test]
    fn the_main_thread_is_woken_and_hears_of_a_failure_once() {
        let (news, _) = news(1);
        assert!(!plimsoll_shm::is_ready(&news, rustix::event::PollFlags::IN));
        news.tell(PagerEvent::VmmGone);
        assert!(plimsoll_shm::is_ready(&news, rustix::event::PollFlags::IN));
        news.take();
        assert_eq!(news.failure(), None);
        news.tell(PagerEvent::Failed { reason: "first".into() });
        news.tell(PagerEvent::Failed { reason: "second".into() });
        assert_eq!(news.failure().as_deref(), Some("first"));
        assert_eq!(news.failure(), None);
    }
}
