//! Finding the ledger as the process before left it.

use anyhow::Context;
use plimsoll_frames::{Granule, Ledger, LedgerError, SpaceKey};
use plimsoll_shm::SharedWords;
use plimsoll_units::{Bytes, MemTarget, PageCount};
use rustix::fs::Stat;

use crate::args::Args;

/// The ledger of a guest whose memory is one file. The first time it is laid out, with the target the VM was started with;
/// from then on the target is what the ledger has.
pub(super) fn find(words: SharedWords, args: &Args, guest: &Stat) -> anyhow::Result<Ledger<SharedWords>> {
    let mut ledger = match Ledger::attach(words.clone()) {
        Ok((ledger, repairs)) => {
            tracing::debug!(?repairs, "took the ledger over");
            ledger
        }
        Err(LedgerError::Magic(0)) => format(words, args)?,
        Err(error) => {
            // It can only be damaged by a fault of ours. What memory the guest has is asked of the kernel.
            tracing::error!(%error, "the ledger is damaged and begins anew");
            format(words, args)?
        }
    };
    // A target of nothing is accepted from nobody: a process before this one did not come to set the first.
    if ledger.target() == MemTarget::default() {
        ledger.set_target(MemTarget(args.target));
    }
    let key = SpaceKey { device: guest.st_dev, inode: guest.st_ino };
    ledger.add_space_on_demand(key, size(guest), Granule::Page)?;
    Ok(ledger)
}

fn format(words: SharedWords, args: &Args) -> anyhow::Result<Ledger<SharedWords>> {
    Ledger::format(words, args.ledger_frames, args.ledger_frames).context("cannot lay out the ledger")
}

fn size(guest: &Stat) -> PageCount {
    Bytes(u64::try_from(guest.st_size).unwrap_or(0)).pages_floor()
}

#[cfg(test)]
mod test {
    use rustix::fs::MemfdFlags;

    use super::*;

    const SIZE: Bytes = Bytes::mib(64);

    fn args(target: Bytes) -> Args {
        let ledger_frames = Ledger::frames_for(SIZE);
        Args { name: "test".into(), maxmem: SIZE, initial_balloon: 0, target, ledger_frames }
    }

    fn words() -> SharedWords {
        let frames = Ledger::frames_for(SIZE);
        SharedWords::create("plimsoll-test", Ledger::words_needed(frames, frames).unwrap()).unwrap().0
    }

    fn guest() -> Stat {
        let file = rustix::fs::memfd_create("plimsoll-test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, SIZE.0).unwrap();
        rustix::fs::fstat(&file).unwrap()
    }

    #[test]
    fn the_first_target_is_set_once_and_what_was_set_later_stays() {
        let (words, guest) = (words(), guest());
        let mut ledger = find(words.clone(), &args(Bytes::mib(16)), &guest).unwrap();
        assert_eq!(ledger.target(), MemTarget(Bytes::mib(16)));
        assert_eq!(ledger.counts().outstanding, SIZE.pages_floor());
        ledger.set_target(MemTarget(Bytes::mib(32)));
        drop(ledger);
        let ledger = find(words, &args(Bytes::mib(16)), &guest).unwrap();
        assert_eq!(ledger.target(), MemTarget(Bytes::mib(32)));
        assert_eq!(ledger.counts().outstanding, SIZE.pages_floor(), "the file is known already");
    }

    #[test]
    fn death_before_the_first_target_was_set_is_made_good() {
        let (words, guest) = (words(), guest());
        let frames = Ledger::frames_for(SIZE);
        drop(Ledger::format(words.clone(), frames, frames).unwrap());
        let ledger = find(words, &args(Bytes::mib(16)), &guest).unwrap();
        assert_eq!(ledger.target(), MemTarget(Bytes::mib(16)));
    }

    #[test]
    fn a_damaged_ledger_begins_anew() {
        let (words, guest) = (words(), guest());
        find(words.clone(), &args(Bytes::mib(16)), &guest).unwrap();
        words.iter().for_each(|word| word.store(u64::MAX, std::sync::atomic::Ordering::SeqCst));
        let ledger = find(words, &args(Bytes::mib(16)), &guest).unwrap();
        ledger.audit().unwrap();
        assert_eq!(ledger.target(), MemTarget(Bytes::mib(16)));
    }
}
