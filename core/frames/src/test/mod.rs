//! The ledger against a plain model, cut short after every single store, and cases by hand.

mod cases;
mod demand;
mod machine;
mod model;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::bits::PageStates;
use crate::ledger::Place;
use crate::{Ledger, SpaceKey};

const FRAMES: u32 = 10;

type Words = Vec<AtomicU64>;

fn words(len: usize) -> Words {
    (0..len).map(|_| AtomicU64::new(0)).collect()
}

fn fresh(frames: u32, maps: u32) -> Ledger<Words> {
    Ledger::format(words(Ledger::words_needed(frames, maps).unwrap()), frames, maps).unwrap()
}

fn image(ledger: &Ledger<Words>) -> Vec<u64> {
    ledger.words.as_slice().iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

fn from_image(image: &[u64]) -> Words {
    image.iter().map(|&word| AtomicU64::new(word)).collect()
}

fn key(n: u8) -> SpaceKey {
    SpaceKey { device: 5, inode: u64::from(n) }
}

/// What the ledger says of every frame, by the file's key and the frame's number in it.
fn snapshot(ledger: &Ledger<Words>) -> BTreeMap<(SpaceKey, u64), PageStates> {
    let mut all = BTreeMap::new();
    for (id, space) in &ledger.spaces {
        for frame in 0..space.frames() {
            all.insert((space.key, frame), ledger.states(&Place::of(*id, *space, frame)).1);
        }
    }
    all
}
