//! Ledger and discarder together: events go in, and what may be discarded is.

use std::sync::atomic::AtomicU64;

use plimsoll_frames::{Discard, Extent, Ledger, Reuse, SpaceKey, Tally};
use plimsoll_units::FRAME_SIZE;

use crate::counters::{Counters, add};
use crate::discard::{DiscardError, Discarder};

/// What a chain of page numbers or ranges says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Inflate(Reuse),
    Deflate,
    Report(Reuse),
}

pub(crate) struct Engine<W, D> {
    pub(crate) ledger: Ledger<W>,
    pub(crate) discarder: D,
    pub(crate) counters: Counters,
    /// The latest failure.
    pub(crate) error: Option<DiscardError>,
    /// Kept for its memory.
    discards: Vec<Discard>,
}

impl<W: AsRef<[AtomicU64]>, D: Discarder> Engine<W, D> {
    pub(crate) fn new(ledger: Ledger<W>, discarder: D) -> Self {
        Self { ledger, discarder, counters: Counters::default(), error: None, discards: Vec::new() }
    }

    /// Records the event, and discards before it returns what may be.
    pub(crate) fn apply(&mut self, event: Event, named: &[Extent]) {
        if named.is_empty() {
            return;
        }
        let tally = match event {
            Event::Inflate(reuse) => self.ledger.inflate(named, reuse, &mut self.discards),
            Event::Report(reuse) => self.ledger.report(named, reuse, &mut self.discards),
            Event::Deflate => self.ledger.deflate(named),
        };
        self.count(event, tally);
        self.carry_out();
    }

    /// I/O is over.
    pub(crate) fn unpin(&mut self, extent: Extent, reuse: Reuse) {
        self.ledger.unpin(extent, reuse, &mut self.discards);
        self.carry_out();
    }

    /// Forgets the spaces that are not to be kept.
    pub(crate) fn keep_spaces(&mut self, keep: impl Fn(SpaceKey) -> bool) {
        let gone: Vec<_> =
            self.ledger.spaces().filter(|(_, key, _)| !keep(*key)).map(|(id, _, _)| id).collect();
        for space in gone {
            self.ledger.remove_space(space);
            self.discarder.forget(space);
        }
    }

    fn count(&mut self, event: Event, tally: Tally) {
        let pages = match event {
            Event::Inflate(_) => &mut self.counters.inflated_pages,
            Event::Report(_) => &mut self.counters.reported_pages,
            Event::Deflate => &mut self.counters.deflated_pages,
        };
        add(pages, tally.named.0);
        add(&mut self.counters.pinned_pages, tally.pinned.0);
        add(&mut self.counters.unmapped_pages, tally.unmapped.0);
        let recorded = tally.named.0.saturating_sub(tally.unmapped.0);
        add(&mut self.counters.repeated_pages, recorded.saturating_sub(tally.changed.0));
    }

    fn carry_out(&mut self) {
        for Discard { space, offset, len } in self.discards.drain(..) {
            match self.discarder.discard(space, offset, len) {
                Ok(done) => {
                    add(&mut self.counters.discards, 1);
                    add(&mut self.counters.discarded_bytes, done.0);
                    let end = offset.plus(done).0 / FRAME_SIZE;
                    let whole = end.saturating_sub(offset.0.div_ceil(FRAME_SIZE));
                    add(&mut self.counters.whole_frames, whole);
                }
                Err(error) => {
                    add(&mut self.counters.discard_errors, 1);
                    self.error = Some(error);
                }
            }
        }
    }
}
