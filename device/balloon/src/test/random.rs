//! Arbitrary chains. Whatever they are, no page of a real memfd loses its pattern that was not named.

use std::collections::BTreeSet;

use proptest::prelude::*;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestAddress};

use super::rig::{BUFFERS, BUFFERS_END, NEXT, RAM, RAM_OFFSET, Rig, WRITE};
use crate::{Features, Outcome, Role};

/// Pages that can be ballooned; the last frame is half one.
const PAGES: u64 = 1280;
const FIRST: u64 = RAM_OFFSET >> 12;

#[derive(Clone, Debug)]
struct Chain {
    role: Role,
    head: u16,
    table: Vec<(u64, u32, u16, u16)>,
    /// Page numbers written to the buffers first: (where, numbers).
    numbers: Vec<(u64, Vec<u32>)>,
}

fn address() -> impl Strategy<Value = u64> {
    let offset = prop_oneof![Just(0u64), 0u64..8192, Just(4096), Just(2048)];
    let near = (
        prop::sample::select(vec![BUFFERS, BUFFERS_END, RAM, RAM + (PAGES << 12), u64::MAX]),
        offset,
        any::<bool>(),
    )
        .prop_map(
            |(base, offset, up)| if up { base.saturating_add(offset) } else { base.saturating_sub(offset) },
        );
    let page = (0..PAGES).prop_map(|page| RAM + (page << 12));
    prop_oneof![4 => Just(BUFFERS), 2 => Just(BUFFERS + 4096), 3 => page, 2 => near, 1 => any::<u64>()]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..64,
        0u32..5000,
        Just(1024),
        Just(4096),
        (0u32..600).prop_map(|pages| pages << 12),
        any::<u32>()
    ]
}

fn number() -> impl Strategy<Value = u32> {
    let first = u32::try_from(RAM >> 12).unwrap();
    let pages = u32::try_from(PAGES).unwrap();
    prop_oneof![8 => first..first + pages, 1 => first - 3..first + pages + 3, 1 => Just(0), 1 => any::<u32>()]
}

/// Single pages, or a run up or down as drivers send them.
fn numbers() -> impl Strategy<Value = Vec<u32>> {
    let run = (number(), 1u32..700, any::<bool>()).prop_map(|(start, len, down)| {
        let step = |n| if down { start.wrapping_sub(n) } else { start.wrapping_add(n) };
        (0..len).map(step).collect::<Vec<_>>()
    });
    prop_oneof![prop::collection::vec(number(), 0..300), run]
}

fn chain() -> impl Strategy<Value = Chain> {
    let role =
        prop::sample::select(vec![Role::Inflate, Role::Inflate, Role::Deflate, Role::Reporting, Role::Stats]);
    let flags = prop_oneof![6 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    let descriptor = (address(), length(), flags, 0u16..6);
    let at = prop::sample::select(vec![BUFFERS, BUFFERS + 4096]);
    let wild = (
        role,
        0u16..4,
        prop::collection::vec(descriptor, 1..5),
        prop::collection::vec((at, numbers()), 0..3),
    )
        .prop_map(|(role, head, table, numbers)| Chain { role, head, table, numbers });
    // What a driver would send; it is among these that frames get whole.
    let role = prop::sample::select(vec![Role::Inflate, Role::Inflate, Role::Deflate]);
    let good = (role, numbers()).prop_map(|(role, numbers)| Chain {
        role,
        head: 0,
        table: vec![(BUFFERS, u32::try_from(numbers.len() * 4).unwrap(), 0, 0)],
        numbers: vec![(BUFFERS, numbers)],
    });
    let report = (0..PAGES, 0u32..600).prop_map(|(page, len)| Chain {
        role: Role::Reporting,
        head: 0,
        table: vec![(RAM + (page << 12), len << 12, WRITE, 0)],
        numbers: vec![],
    });
    prop_oneof![3 => wild, 3 => good, 1 => report]
}

/// As many little-endian words as can be read.
fn words_at(rig: &Rig, start: u64, len: u64) -> Vec<u32> {
    let mut words = Vec::new();
    for piece in (0..len / 4 * 4).step_by(4096) {
        let size = usize::try_from((len / 4 * 4 - piece).min(4096)).unwrap();
        let mut bytes = vec![0; size];
        let Some(at) = start.checked_add(piece) else { break };
        let read = rig.memory.read(&mut bytes, GuestAddress(at)).unwrap_or(0);
        words.extend(bytes[..read].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
        if read < size {
            break;
        }
    }
    words
}

/// Every page of the file that the chain can be said to name, by the letter of the specification: all words
/// of all readable buffers, or all bytes of all writable ones.
fn named<M>(rig: &Rig, role: Role, chain: DescriptorChain<M>) -> BTreeSet<u64>
where
    M: std::ops::Deref,
    M::Target: vm_memory::GuestMemory,
{
    let mut pages = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for descriptor in chain {
        let (start, len) = (descriptor.addr().0, u64::from(descriptor.len()));
        // A chain in a circle names the same again and again.
        if !seen.insert((start, len, descriptor.flags())) {
            continue;
        }
        match role {
            Role::Inflate | Role::Deflate if !descriptor.is_write_only() => {
                for number in words_at(rig, start, len) {
                    let page = u64::from(number).checked_sub(RAM >> 12).filter(|page| *page < PAGES);
                    pages.extend(page.map(|page| page + FIRST));
                }
            }
            Role::Reporting if descriptor.is_write_only() => {
                let whole = start.div_ceil(4096)..start.saturating_add(len) / 4096;
                let inside = whole.start.max(RAM >> 12)..whole.end.min((RAM >> 12) + PAGES);
                pages.extend(inside.map(|page| page - (RAM >> 12) + FIRST));
            }
            Role::Inflate | Role::Deflate | Role::Reporting | Role::Stats => {}
        }
    }
    pages
}

fn is_driverlike(chain: &Chain) -> bool {
    chain.table.len() == 1 && chain.table[0].2 & (NEXT | 4) == 0 && chain.head == 0
}

fn check(chains: &[Chain], features: Features) {
    let mut rig = Rig::new(PAGES, features);
    let promise = features.contains(Features::MUST_TELL_HOST);
    // Pages in the balloon, as the guest sees it: those it has promised not to touch.
    let mut balloon: BTreeSet<u64> = BTreeSet::new();
    for sent in chains {
        for (at, numbers) in &sent.numbers {
            rig.pfns(*at, numbers.iter().map(|&number| u64::from(number)));
        }
        let pages = named(&rig, sent.role, rig.chain(sent.head, &sent.table));
        let chain = rig.chain(sent.head, &sent.table);
        let outcome = rig.device.handle(sent.role, chain);
        if sent.role == Role::Stats {
            rig.device.take_held();
        } else {
            assert_eq!(outcome, Outcome::Complete { written: 0 });
        }
        let discards = matches!(sent.role, Role::Inflate | Role::Reporting);
        let lost: BTreeSet<u64> = rig.lost().into_iter().collect();
        for page in &lost {
            let due = discards && (pages.contains(page) || (promise && balloon.contains(page)));
            assert!(due, "page {page} is gone; {sent:?} did not name it");
        }
        // And what was named is gone, unless a chain was too wild to say what it names.
        if discards && is_driverlike(sent) && rig.device.counters().over_limit == 0 {
            let buffer_is_whole =
                sent.role == Role::Reporting || u64::from(sent.table[0].1) <= BUFFERS_END - BUFFERS;
            let numbers_at_buffers = sent.role == Role::Reporting || sent.table[0].0 == BUFFERS;
            if buffer_is_whole && numbers_at_buffers {
                assert_eq!(pages.difference(&lost).count(), 0, "{sent:?} named more than was discarded");
            }
        }
        match sent.role {
            Role::Inflate => balloon.extend(&pages),
            Role::Deflate => balloon.retain(|page| !pages.contains(page)),
            Role::Reporting | Role::Stats => {}
        }
        rig.device.ledger().audit().unwrap();
        // The guest uses all its memory; that of the balloon too, which it should not.
        lost.iter().for_each(|page| rig.refill(*page));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_page_is_lost_that_was_not_named(
        chains in prop::collection::vec(chain(), 1..12),
        promise in any::<bool>(),
    ) {
        let features = if promise { Features::DEFAULT } else { Features::DEFAULT.without(Features::MUST_TELL_HOST) };
        check(&chains, features);
    }
}
