//! Finding the shared memory as the process before left it, or clearing it for a new guest.

use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, anyhow};
use plimsoll_frames::Ledger;
use plimsoll_shm::SharedWords;
use plimsoll_units::{BalloonSize, PageCount};
use plimsoll_vhost_user::Ring;
use plimsoll_vhost_user::layout::{Layout, MAX_RINGS};

use crate::args::Args;

/// Positions in a device's own words. The first four are the balloon's configuration, as
/// `plimsoll_balloon::SharedConfig` has them: `num_pages`, `actual`, `poison_val`, generation.
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 1;
const POISON: usize = 2;
pub(crate) const CONFIG_WORDS: usize = 4;

/// One more than the number of the clearing that was carried out last; 0: never used.
const CLEARED: usize = 8;

/// One more than the interval of statistics in milliseconds; 0: as it is by default.
pub(crate) const STATS_INTERVAL: usize = 9;

/// The words of the one device there is, ready for use.
pub(crate) struct Prepared {
    pub(crate) private: SharedWords,
    pub(crate) rings: Vec<SharedWords>,
    pub(crate) ledger: Ledger<SharedWords>,
    /// The guest that was there before is gone: it was cleared after.
    pub(crate) anew: bool,
}

/// Finds the words of device 0. If the guest they tell of is gone, they are cleared first: only the last store
/// says that this was done, so that death on the way means that it is done again. What the guest is asked
/// for stays: that is the host's wish.
pub(crate) fn prepare(layout: &Layout, args: &Args) -> anyhow::Result<Prepared> {
    const DEVICE: usize = 0;
    let missing = || anyhow!("shared memory has no device {DEVICE}");
    let private = layout.private(DEVICE).ok_or_else(missing)?;
    let rings: Vec<_> = (0..MAX_RINGS).filter_map(|ring| layout.ring(DEVICE, ring)).collect();
    let words = layout.ledger().ok_or_else(missing)?;

    let mark = layout.clearings(DEVICE).saturating_add(1);
    let found = private[CLEARED].load(SeqCst);
    let ledger = if found == mark {
        take_over(words, args)?
    } else {
        rings.iter().for_each(|ring| Ring::attach(ring).set_base(0));
        private[ACTUAL].store(0, SeqCst);
        private[POISON].store(0, SeqCst);
        if found == 0 {
            let wanted = BalloonSize(PageCount(args.initial_balloon)).config_field();
            private[NUM_PAGES].store(u64::from(wanted), SeqCst);
        }
        let ledger = format(words, args)?;
        private[CLEARED].store(mark, SeqCst);
        ledger
    };
    Ok(Prepared { private, rings, ledger, anew: found != mark && found != 0 })
}

fn format(words: SharedWords, args: &Args) -> anyhow::Result<Ledger<SharedWords>> {
    Ledger::format(words, args.ledger_frames, args.ledger_frames).context("cannot lay out the ledger")
}

fn take_over(words: SharedWords, args: &Args) -> anyhow::Result<Ledger<SharedWords>> {
    match Ledger::attach(words.clone()) {
        Ok((ledger, repairs)) => {
            tracing::debug!(?repairs, "took the ledger over");
            Ok(ledger)
        }
        Err(error) => {
            // It can only be damaged by a fault of ours. The guest goes on; that less is known of it only means
            // that less is joined to whole frames.
            tracing::error!(%error, "the ledger is damaged and begins anew");
            format(words, args)
        }
    }
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::*;

    fn args() -> Args {
        let maxmem = Bytes::mib(64);
        let ledger_frames = Ledger::frames_for(maxmem);
        Args { name: "test".into(), maxmem, initial_balloon: 500, target: Bytes::ZERO, ledger_frames }
    }

    fn layout() -> Layout {
        let frames = args().ledger_frames;
        let ledger = Ledger::words_needed(frames, frames).unwrap();
        let words = SharedWords::create("plimsoll-test", Layout::words_needed(1, ledger).unwrap()).unwrap().0;
        Layout::format(words, 1, ledger).unwrap()
    }

    #[test]
    fn a_successor_finds_what_was_left_and_a_new_guest_finds_it_cleared() {
        let (layout, args) = (layout(), args());
        let first = prepare(&layout, &args).unwrap();
        assert_eq!((first.private[NUM_PAGES].load(SeqCst), first.anew), (500, false));
        first.private[NUM_PAGES].store(7, SeqCst);
        first.private[ACTUAL].store(3, SeqCst);
        Ring::attach(&first.rings[1]).set_base(99);

        let second = prepare(&layout, &args).unwrap();
        assert_eq!((second.private[ACTUAL].load(SeqCst), second.anew), (3, false));
        assert_eq!(Ring::attach(&second.rings[1]).base(), 99);

        layout.connected(0);
        layout.disconnected(0);
        let third = prepare(&layout, &args).unwrap();
        assert_eq!((third.private[ACTUAL].load(SeqCst), third.anew), (0, true));
        assert_eq!(third.private[NUM_PAGES].load(SeqCst), 7, "what the host wants stays");
        assert_eq!(Ring::attach(&third.rings[1]).base(), 0);
    }

    #[test]
    fn a_damaged_ledger_begins_anew() {
        let (layout, args) = (layout(), args());
        prepare(&layout, &args).unwrap();
        layout.ledger().unwrap().iter().for_each(|word| word.store(u64::MAX, SeqCst));
        let again = prepare(&layout, &args).unwrap();
        again.ledger.audit().unwrap();
    }
}
