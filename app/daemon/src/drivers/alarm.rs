//! What is rung when a guest cannot wait for the next tick.

use std::sync::Arc;

use tokio::sync::Notify;

use super::Slot;

/// Calls for a tick now, and for asking this VM at it.
#[derive(Clone, Debug)]
pub(super) struct Alarm {
    slot: Arc<Slot>,
    wake: Arc<Notify>,
}

impl Alarm {
    pub(super) const fn new(slot: Arc<Slot>, wake: Arc<Notify>) -> Self {
        Self { slot, wake }
    }

    pub(super) fn ring(&self) {
        self.slot.alarm();
        self.wake.notify_one();
    }
}
