//! Memory on its way, and memory that could not go. Kept in this process only, like pins: the next process asks the kernel where
//! memory is ([`crate::Ledger::correct`]).

use alloc::collections::BTreeMap;

use crate::bits::PageMask;

/// What moves in one frame of a space that is populated on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    /// Not `Present`, and memory is behind them all the same. Disjoint from `Present`.
    pub(crate) held: PageMask,
    /// Being populated: told to the caller, not answered. All of them count as having memory.
    pub(crate) arriving: PageMask,
    /// Being discarded: told to the caller, not answered. None of them is `Present`.
    pub(crate) leaving: PageMask,
}

/// The frames in which anything moves, by number in the ledger.
#[derive(Default)]
pub(crate) struct Transit {
    frames: BTreeMap<u64, Moves>,
    held: u64,
    arriving: u64,
    leaving: u64,
    going: u64,
}

impl Transit {
    pub(crate) fn of(&self, frame: u64) -> Moves {
        self.frames.get(&frame).copied().unwrap_or_default()
    }

    pub(crate) fn set(&mut self, frame: u64, moves: Moves) {
        let old = if moves == Moves::default() {
            self.frames.remove(&frame)
        } else {
            self.frames.insert(frame, moves)
        };
        let old = old.unwrap_or_default();
        let swap = |sum: &mut u64, old: PageMask, new: PageMask| {
            *sum = sum.saturating_sub(old.count()).saturating_add(new.count());
        };
        swap(&mut self.held, old.held, moves.held);
        swap(&mut self.arriving, old.arriving, moves.arriving);
        swap(&mut self.leaving, old.leaving, moves.leaving);
        swap(&mut self.going, old.leaving.and(old.held), moves.leaving.and(moves.held));
    }

    /// Pages with memory that are not `Present`.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// Pages that are being populated.
    pub(crate) fn arriving(&self) -> u64 {
        self.arriving
    }

    /// Pages that are being discarded, with those that have no memory.
    pub(crate) fn leaving(&self) -> u64 {
        self.leaving
    }

    /// Pages whose memory is being discarded.
    pub(crate) fn going(&self) -> u64 {
        self.going
    }

    /// Forgets what moves in these frames.
    pub(crate) fn forget(&mut self, frames: core::ops::Range<u64>) {
        while let Some((&frame, _)) = self.frames.range(frames.clone()).next() {
            self.set(frame, Moves::default());
        }
    }
}
