//! Giving memory back to the host.

use std::sync::atomic::AtomicU64;

use plimsoll_frames::Discard;
use plimsoll_units::{Bytes, PAGES_PER_FRAME, PageCount};

use crate::file::{Pages, bytes};
use crate::shared::{Shared, pages_of};

/// Pages punched by one call: 8 MiB, some 2 ms. The kernel lets nobody populate meanwhile, who has to write to the file for it.
pub(crate) const PIECE: u64 = 4 * PAGES_PER_FRAME;
/// How often memory that is still there after a call is punched again: the kernel does not split a huge page that somebody
/// happens to be looking at, and does not say so.
const TRIES: usize = 3;

impl<W: AsRef<[AtomicU64]>> Shared<W> {
    /// Carries out discards, answers the ledger, and lets those go on who came to these pages meanwhile.
    pub(crate) fn carry_out(&self, discards: &[Discard]) {
        for discard in discards {
            for piece in pieces(&pages_of(discard), PIECE) {
                self.discard(&piece);
                self.wake(&piece);
            }
        }
    }

    /// Carries out a piece of a discard and answers the ledger. Wakes nobody.
    pub(crate) fn discard(&self, pages: &Pages) {
        let left = self.punch(pages);
        let mut state = self.lock();
        let mut from = pages.start;
        for there in &left {
            state.ledger.discarded(self.discard_of(&(from..there.start)));
            state.ledger.discard_failed(self.discard_of(there));
            from = there.end;
        }
        state.ledger.discarded(self.discard_of(&(from..pages.end)));
        self.settle(state);
    }

    /// Punches, and returns what is there all the same.
    fn punch(&self, pages: &Pages) -> Vec<Pages> {
        let mut left = Vec::new();
        for _ in 0..TRIES {
            // Whatever the call says: what counts is what is there afterwards. Nobody populates these pages meanwhile.
            let _ = self.file.punch(pages);
            left.clear();
            match self.file.data(pages, &mut left) {
                Ok(()) if left.is_empty() => break,
                Ok(()) => {}
                Err(_) => return vec![pages.clone()],
            }
        }
        left
    }

    fn discard_of(&self, pages: &Pages) -> Discard {
        let (offset, len) = bytes(pages);
        Discard { space: self.space, offset: Bytes(offset), len: Bytes(len) }
    }
}

/// Pages in pieces of at most `most`, cut at multiples of it.
pub(crate) fn pieces(pages: &Pages, most: u64) -> impl Iterator<Item = Pages> + use<> {
    let (mut from, end, most) = (pages.start, pages.end, most.max(1));
    std::iter::from_fn(move || {
        let cut = from.checked_div(most).unwrap_or(0).saturating_add(1).saturating_mul(most).min(end);
        let piece = (from < end).then_some(from..cut);
        from = cut;
        piece
    })
}

/// How many pages these are.
pub(crate) fn count(runs: &[Pages]) -> PageCount {
    PageCount(runs.iter().map(|run| run.end.saturating_sub(run.start)).sum())
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_make_up_the_whole(start in 0..5000_u64, len in 0..5000_u64, most in 0..600_u64) {
            let all: Vec<_> = pieces(&(start..start + len), most).collect();
            prop_assert!(all.iter().all(|piece| piece.start < piece.end && piece.end - piece.start <= most.max(1)));
            prop_assert_eq!(count(&all), PageCount(len));
            prop_assert!(all.windows(2).all(|two| two[0].end == two[1].start && two[0].end % most.max(1) == 0));
            prop_assert!(all.first().is_none_or(|first| first.start == start));
        }
    }
}
