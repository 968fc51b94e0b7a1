//! What the tick and the API share.
//!
//! Everything lives behind one lock that is held for moments: no await, no file and no socket is touched
//! under it. There is one thread that serves (the journal has its own), so nobody ever waits for the lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plimsoll_api::http::Event;
use plimsoll_model::{HostSample, HostState, VmName};
use plimsoll_policy::History;
use plimsoll_units::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    config::Config,
    events::{EventLog, Kind},
    journal::Journal,
    metrics::Metrics,
    process::Death,
    registry::{Registry, Vm},
    state::{SavedVm, StateDir},
};

/// The daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    inner: Mutex<Inner>,
    /// As it was read.
    pub(crate) config: Config,
    /// Where the VMs are written down.
    pub(crate) state: StateDir,
    /// Asks for a tick now. Drivers have it too.
    pub(crate) poke: Arc<Notify>,
    /// Ticks that have ended.
    pub(crate) ticks: watch::Sender<u64>,
    /// The newest event.
    pub(crate) event_seq: watch::Sender<u64>,
    /// Where the end of a VM's process is told.
    pub(crate) deaths: mpsc::Sender<Death>,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) history: History,
    pub(crate) journal: Journal,
    pub(crate) metrics: Metrics,
    events: EventLog,
    /// The last reading of the host.
    pub(crate) host: HostSample,
    pub(crate) last: LastTick,
    /// VMs whose files are to be removed.
    pub(crate) forgotten: Vec<VmName>,
}

/// What is shown of the last tick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastTick {
    pub(crate) state: HostState,
    pub(crate) claimed: Bytes,
    pub(crate) waiting: Bytes,
    pub(crate) ticks: u64,
    pub(crate) micros: u64,
}

impl Daemon {
    /// A daemon without VMs.
    pub(crate) fn new(
        config: Config,
        state: StateDir,
        journal: Journal,
        host: HostSample,
        deaths: mpsc::Sender<Death>,
    ) -> Self {
        let last = LastTick {
            state: HostState::Ample,
            claimed: Bytes::ZERO,
            waiting: Bytes::ZERO,
            ticks: 0,
            micros: 0,
        };
        let inner = Inner {
            registry: Registry::default(),
            history: History::default(),
            journal,
            metrics: Metrics::new(),
            events: EventLog::default(),
            host,
            last,
            forgotten: Vec::new(),
        };
        Self {
            inner: Mutex::new(inner),
            config,
            state,
            poke: Arc::new(Notify::new()),
            ticks: watch::Sender::new(0),
            event_seq: watch::Sender::new(0),
            deaths,
        }
    }

    /// The lock. Not to be held across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock ends the program in release builds; in tests the data is still whole enough.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for events, after some were told under the lock.
    pub(crate) fn announce(&self, last_seq: u64) {
        self.event_seq.send_if_modified(|seq| {
            let newer = last_seq > *seq;
            *seq = last_seq.max(*seq);
            newer
        });
    }

    /// Takes the lock, does `change`, writes down the VMs it touched, wakes whoever waits for events.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (result, forgotten, dirty, last_seq) = {
            let mut inner = self.lock();
            let result = change(&mut inner);
            let forgotten = std::mem::take(&mut inner.forgotten);
            (result, forgotten, inner.take_dirty(), inner.events.last_seq())
        };
        // In this order: a VM that took the name of one that is gone is to stay.
        for name in &forgotten {
            self.state.remove(name);
        }
        for saved in &dirty {
            self.state.save(saved);
        }
        self.announce(last_seq);
        result
    }
}

impl Inner {
    /// Something has happened: for the log, for the journal, for whoever asks.
    pub(crate) fn tell(&mut self, vm: Option<&VmName>, kind: Kind, text: String) {
        match (vm, kind) {
            // There may be one for each VM at each tick.
            (Some(vm), Kind::Target) => tracing::debug!(%vm, kind = kind.as_str(), "{text}"),
            (Some(vm), _) => tracing::info!(%vm, kind = kind.as_str(), "{text}"),
            (None, _) => tracing::info!(kind = kind.as_str(), "{text}"),
        }
        let event: &Event = self.events.push(vm, kind, text);
        self.journal.event(event);
    }

    pub(crate) const fn events(&self) -> &EventLog {
        &self.events
    }

    /// The VMs whose files are not what they should be.
    fn take_dirty(&mut self) -> Vec<SavedVm> {
        let dirty = |vm: &mut Vm| vm.gone.is_none() && std::mem::take(&mut vm.dirty);
        self.registry.iter_mut().filter_map(|vm| dirty(vm).then(|| vm.saved.clone())).collect()
    }
}
