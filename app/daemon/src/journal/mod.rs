//! The journal: every snapshot, every plan, every event, so that any stretch of time can be replayed.
//!
//! The tick never waits for the disk. It hands finished lines to a thread through a bounded queue; when the
//! queue is full or the disk fails, lines are dropped and counted, and the next line that gets through is a
//! `lost` with the count, followed by a `start` from which the replay can go on.

mod file;
mod record;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use plimsoll_api::http::Event;
use plimsoll_model::{Plan, Snapshot, VmName};
use plimsoll_policy::{Config, History};
use plimsoll_units::{Bytes, MemTarget};

use crate::clock;
use file::JournalFile;
use record::{Entry, line};

/// Lines that wait for the disk at most: half a minute of ticks and their events.
const QUEUED_LINES: usize = 256;

/// Bytes that wait for the disk at most, so that a thousand VMs do not fill the memory they are to save.
const QUEUED_BYTES: u64 = 16 << 20;

/// What the thread is told.
enum Order {
    /// Append this line.
    Line(Vec<u8>),
    /// Append a line at which the replay can begin, in a new file or the current one. `told` dropped lines are
    /// told of before it.
    Start { bytes: Vec<u8>, told: u64, rotate: bool },
}

/// What both sides count.
#[derive(Debug, Default)]
struct Shared {
    queued_bytes: AtomicU64,
    /// The thread could not write, and drops until the next start.
    failed: AtomicBool,
    /// Lines dropped since the daemon started.
    dropped: AtomicU64,
    /// Those that no `lost` line has told of yet.
    untold: AtomicU64,
}

impl Shared {
    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.untold.fetch_add(1, Ordering::Relaxed);
    }
}

/// The tick's end of the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    sender: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    max_size: Bytes,
    /// Bytes handed over for the current file.
    filled: u64,
    /// Nothing was written yet, or something is missing: the next tick must begin with a start.
    start_due: bool,
}

impl Journal {
    /// A journal in `dir`.
    pub(crate) fn open(dir: &Path, max_size: Bytes, keep: u32) -> io::Result<Self> {
        let file = JournalFile::create(dir, keep)?;
        let (sender, receiver) = sync_channel(QUEUED_LINES);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || write_all(file, &receiver, &theirs))?;
        Ok(Self { sender: Some(sender), thread: Some(thread), shared, max_size, ..Self::off() })
    }

    /// No journal.
    pub(crate) fn off() -> Self {
        Self {
            sender: None,
            thread: None,
            shared: Arc::default(),
            max_size: Bytes::ZERO,
            filled: 0,
            start_due: true,
        }
    }

    /// Lines dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// To be called before each decision with what it will start from.
    pub(crate) fn before_tick(&mut self, config: &Config, history: &History) {
        if self.sender.is_none() {
            return;
        }
        let failed = self.shared.failed.load(Ordering::Relaxed);
        let full = self.filled >= self.max_size.0;
        if !(self.start_due || failed || full) {
            return;
        }
        let wall = clock::wall_us();
        let mut bytes = Vec::new();
        let told = self.shared.untold.swap(0, Ordering::Relaxed);
        if told > 0 {
            bytes = line(wall, Entry::Lost { lines: told });
        }
        bytes.extend(line(wall, Entry::Start { config, history }));
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.start_due = !self.hand_over(Order::Start { bytes, told, rotate: full }, size);
        if self.start_due {
            self.shared.untold.fetch_add(told, Ordering::Relaxed);
        } else if full {
            self.filled = size;
        }
    }

    /// A decision that was made.
    pub(crate) fn tick(&mut self, snapshot: &Snapshot, plan: &Plan) {
        if self.sender.is_some() && !self.start_due {
            // A plan that is missing breaks the replay until the next start.
            self.start_due = !self.write(Entry::Tick { snapshot, plan });
        }
    }

    /// An event.
    pub(crate) fn event(&mut self, event: &Event) {
        if self.sender.is_some() && !self.start_due {
            self.write(Entry::Event { event });
        }
    }

    /// A target that could not be set.
    pub(crate) fn outcome(&mut self, vm: &VmName, target: MemTarget, error: &str) {
        if self.sender.is_some() && !self.start_due {
            self.write(Entry::Outcome { vm, target, error });
        }
    }

    fn write(&mut self, entry: Entry<'_>) -> bool {
        let bytes = line(clock::wall_us(), entry);
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.hand_over(Order::Line(bytes), size)
    }

    /// Hands a line to the thread; false if it is behind.
    fn hand_over(&mut self, order: Order, size: u64) -> bool {
        let Some(sender) = &self.sender else { return false };
        let waiting = self.shared.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let fits = waiting.saturating_add(size) <= QUEUED_BYTES;
        if fits && sender.try_send(order).is_ok() {
            self.filled = self.filled.saturating_add(size);
            return true;
        }
        self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
        self.shared.drop_one();
        if self.dropped() == 1 {
            tracing::warn!("the journal's disk is too slow: lines are dropped from now on, and counted");
        }
        false
    }
}

impl Drop for Journal {
    /// Waits until what was handed over is written: at most a queue full.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread: writes until the tick's end is dropped.
fn write_all(mut file: JournalFile, orders: &Receiver<Order>, shared: &Shared) {
    for order in orders {
        let (size, result, told) = match order {
            Order::Line(bytes) if shared.failed.load(Ordering::Relaxed) => (bytes.len(), None, 0),
            Order::Line(bytes) => (bytes.len(), Some(file.append(&bytes)), 0),
            Order::Start { bytes, told, rotate } => {
                let ready = if rotate { file.rotate() } else { Ok(()) };
                (bytes.len(), Some(ready.and_then(|()| file.append(&bytes))), told)
            }
        };
        match result {
            Some(Ok(())) => {
                if shared.failed.swap(false, Ordering::Relaxed) {
                    tracing::info!("the journal can be written again");
                }
            }
            Some(Err(error)) => {
                shared.drop_one();
                shared.untold.fetch_add(told, Ordering::Relaxed);
                if !shared.failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the journal cannot be written; the daemon goes on without it");
                }
            }
            None => shared.drop_one(),
        }
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod test;
