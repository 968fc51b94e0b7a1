//! Pages that are kept while I/O goes on in them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::PinError;
use crate::faults::{Answer, page_alone};
use crate::file::Pages;
use crate::shared::{Shared, State, after};

/// How long to wait where nobody tells when it is over.
const SOON: Duration = Duration::from_millis(10);

/// Pages that have memory, and keep it until this is dropped: nobody discards or sweeps them. Not persistent: I/O that
/// outlives this process is to be ended before the next one starts.
pub struct Pinned<W: AsRef<[AtomicU64]>> {
    shared: Arc<Shared<W>>,
    pages: Pages,
}

impl<W: AsRef<[AtomicU64]>> Pinned<W> {
    /// Which pages: of the file, the first one and the one after the last.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages.clone()
    }
}

impl<W: AsRef<[AtomicU64]>> std::fmt::Debug for Pinned<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl<W: AsRef<[AtomicU64]>> Drop for Pinned<W> {
    fn drop(&mut self) {
        let mut discards = Vec::new();
        let mut state = self.shared.lock();
        let reuse = state.reuse;
        state.ledger.unpin(self.shared.extent(&self.pages), reuse, &mut discards);
        self.shared.settle(state);
        self.shared.carry_out(&discards);
    }
}

/// Pins pages, and puts memory behind those that have none. Waits for room until `deadline`.
pub(crate) fn pin<W: AsRef<[AtomicU64]>>(
    shared: &Arc<Shared<W>>,
    pages: Pages,
    patience: Duration,
) -> Result<Pinned<W>, PinError> {
    let outside = PinError::Outside { first: pages.start, end: pages.end, pages: shared.file.pages() };
    if pages.start > pages.end || pages.end > shared.file.pages() {
        return Err(outside);
    }
    let (began, deadline) = (Instant::now(), after(patience));
    shared.lock().ledger.pin(shared.extent(&pages));
    let pinned = Pinned { shared: Arc::clone(shared), pages };
    let mut state = shared.lock();
    while let Some(page) = missing(shared, &mut state, &pinned.pages) {
        let left = match shared.ask_ledger(&mut state, page) {
            Answer::Populate(pages) => {
                shared.settle(state);
                shared.populate(page, &pages);
                state = shared.lock();
                continue;
            }
            Answer::InHand => patience,
            // The ledger and the file disagree, and the file does not answer: nothing to go round and round for.
            Answer::Wake | Answer::Refused => SOON.min(patience),
            Answer::Full => {
                state.starving = state.starving.saturating_add(1);
                shared.work.notify_one();
                let (mut after, _) = shared.watch(state, deadline);
                after.starving = after.starving.saturating_sub(1);
                state = after;
                Duration::ZERO
            }
            Answer::Odd => {
                drop(state);
                return Err(outside);
            }
        };
        if !left.is_zero() {
            state = shared.watch(state, after(left).min(deadline)).0;
        }
        if began.elapsed() >= patience || shared.is_stopping() {
            drop(state);
            let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            return Err(PinError::NoRoom { page, waited_ms });
        }
    }
    drop(state);
    Ok(pinned)
}

/// The first page of these that has no memory, by the ledger or, where it thinks that all have, by the file.
fn missing<W: AsRef<[AtomicU64]>>(shared: &Shared<W>, state: &mut State<W>, pages: &Pages) -> Option<u64> {
    if let Some(extent) = state.ledger.missing(shared.extent(pages)) {
        return Some(extent.first);
    }
    if pages.is_empty() {
        return None;
    }
    let hole = shared.file.next_hole(pages.start).unwrap_or(pages.end);
    if hole >= pages.end || shared.file.has(hole) != Ok(false) {
        return None;
    }
    shared.correct(state, &page_alone(hole));
    Some(hole)
}
