//! Ledgers whose words somebody else wrote to.

use alloc::vec::Vec;

use plimsoll_units::{MemTarget, PageCount};
use proptest::prelude::*;

use super::ops::{Op, story};
use super::steps::step;
use super::world::World;
use crate::test::{Words, from_image, image};
use crate::{Extent, Ledger, Reuse};

/// Words that mean something here or there.
fn word() -> impl Strategy<Value = u64> {
    let flags = (0u64..12, 0u64..4).prop_map(|(low, high)| high << 62 | low);
    prop_oneof![any::<u64>(), 0u64..20, (0u64..20, 0u64..20).prop_map(|(a, b)| a << 32 | b), flags]
}

/// Asks something of a ledger of which nobody knows what it should be.
fn disturb(ledger: &mut Ledger<Words>, op: &Op, reuse: Reuse) {
    let Some((space, ..)) = ledger.spaces().next() else { return };
    let extent = |&(_, first, count): &(usize, u64, u64)| Extent { space, first, count };
    let mut out = Vec::new();
    match op {
        Op::Inflate(ranges) => {
            ledger.inflate(&ranges.iter().map(extent).collect::<Vec<_>>(), reuse, &mut out);
        }
        Op::Deflate(ranges) => {
            ledger.deflate(&ranges.iter().map(extent).collect::<Vec<_>>());
        }
        Op::Touch(_, page, ..) | Op::LateFault(_, page) => {
            ledger.fault(space, *page);
        }
        Op::Fill(range, _) | Op::Correct(range) | Op::Unseen(range) => {
            ledger.correct(Extent { space, first: 0, count: u64::MAX }, &[extent(range)]);
        }
        Op::NextBatch(most) => {
            let mut batch = Vec::new();
            ledger.begin_sweep();
            ledger.next_batch(*most, &mut batch);
            ledger.swept(&batch, PageCount(9), &mut out);
            ledger.end_batch();
        }
        Op::Reboot(most, _) => {
            ledger.begin_reboot();
            ledger.continue_reboot(*most, &mut out);
        }
        Op::Report(ranges) => {
            ledger.report(&ranges.iter().map(extent).collect::<Vec<_>>(), reuse, &mut out);
        }
        Op::Removed(ranges, by) => {
            ledger.removed(&ranges.iter().map(extent).collect::<Vec<_>>(), *by);
        }
        Op::Pin(range) => {
            ledger.pin(extent(range));
        }
        Op::SetTarget(target) => ledger.set_target(MemTarget(PageCount(*target).bytes())),
        Op::Reset => ledger.reset(),
        // The rest needs to know what came before.
        Op::Stray(..)
        | Op::Split(_)
        | Op::Execute(_)
        | Op::Finish(..)
        | Op::Dma(..)
        | Op::Unpin(_)
        | Op::BeginSweep => {}
        Op::Scan | Op::Swept(_) | Op::EndBatch | Op::Crash(_) => {}
    }
    out.into_iter().for_each(|discard| ledger.discarded(discard));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damage_is_an_error_or_harmless(
        before in story(),
        damage in prop::collection::vec((0usize..240, word()), 1..4),
        (_, reuse, after) in story(),
    ) {
        let mut world = World::new(before.0, before.1);
        before.2.iter().take(10).for_each(|op| { step(&mut world, op); });
        let mut image = image(&world.ledger);
        for (at, value) in damage {
            let len = image.len();
            image[at % len] = value;
        }
        let Ok((mut ledger, _)) = Ledger::attach(from_image(&image)) else { return Ok(()) };
        prop_assert!(ledger.audit().is_ok());
        for op in after.iter().take(10) {
            disturb(&mut ledger, op, reuse);
            prop_assert_eq!(ledger.audit(), Ok(ledger.counts()));
        }
    }
}
