//! What can happen.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::{RemovedBy, Reuse};

/// First page and length in one of the two spaces.
pub(super) type Range = (usize, u64, u64);

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The guest reads or writes a page, and whatever that starts is carried out at once or stays under way.
    Touch(usize, u64, Option<u64>, bool),
    /// A fault that was read late is asked about, whatever has become of its page.
    LateFault(usize, u64),
    /// An answer to a call that was never asked for.
    Stray(Range, u8),
    /// The guest writes something, or zeros, to a whole range, which is populated as far as there is room.
    Fill(Range, u64),
    Inflate(Vec<Range>),
    Report(Vec<Range>),
    Deflate(Vec<Range>),
    /// The guest's device is reset.
    Reset,
    /// The VMM punches on the guest's behalf and tells, or does not tell.
    Removed(Vec<Range>, RemovedBy),
    Unseen(Range),
    SetTarget(u64),
    /// Carries out one of the calls to the kernel that are under way, without saying so yet.
    Execute(usize),
    /// Says that it was carried out, or that it was not.
    Finish(usize, bool),
    /// Answers it in two pieces from here on.
    Split(usize),
    Pin(Range),
    /// The device writes to what it pinned.
    Dma(usize, u64),
    Unpin(usize),
    BeginSweep,
    NextBatch(usize),
    Scan,
    Swept(u64),
    EndBatch,
    Correct(Range),
    /// A reboot, its process being killed after so many steps.
    Reboot(usize, Option<usize>),
    /// The process is killed; calls that were under way were carried out, or not.
    Crash(u64),
}

fn range() -> impl Strategy<Value = Range> {
    let start = prop_oneof![0u64..1300, Just(0), Just(512), Just(1024), Just(511), any::<u64>()];
    let count = prop_oneof![0u64..20, Just(1), Just(256), Just(512), Just(1024), 0u64..1200, any::<u64>()];
    (0usize..2, start, count)
}

/// Few places, so that events meet.
fn near() -> impl Strategy<Value = Range> {
    let start = prop::sample::select(vec![0u64, 3, 100, 300, 511, 512, 700, 1024]);
    (0usize..2, start, prop::sample::select(vec![1u64, 2, 30, 512]))
}

fn ranges() -> impl Strategy<Value = Vec<Range>> {
    prop::collection::vec(prop_oneof![range(), near()], 1..4)
}

/// What may be populated: all, none, about a frame, odd ones.
fn target() -> impl Strategy<Value = u64> {
    prop_oneof![5 => Just(4096u64), 2 => 512u64..2500, 1 => Just(1024), 1 => Just(512), 1 => 0u64..600, 1 => Just(0)]
}

/// Mostly zeros: what a sweep looks for.
fn stamp() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), 1u64..1000]
}

fn of_guest() -> impl Strategy<Value = Op> {
    let some = prop::sample::select(vec![0u64, 3, 100, 511, 512, 700, 1024, 1223]);
    let page = prop_oneof![1 => 0u64..1300, 5 => some];
    prop_oneof![
        8 => (0usize..2, page, prop::option::of(stamp()), any::<bool>())
            .prop_map(|(space, page, write, now)| Op::Touch(space, page, write, now)),
        4 => (prop_oneof![range(), near()], stamp()).prop_map(|(range, stamp)| Op::Fill(range, stamp)),
        3 => ranges().prop_map(Op::Inflate),
        2 => ranges().prop_map(Op::Report),
        2 => ranges().prop_map(Op::Deflate),
        1 => Just(Op::Reset),
    ]
}

fn of_host() -> impl Strategy<Value = Op> {
    let by = prop_oneof![Just(RemovedBy::Balloon), Just(RemovedBy::Report), Just(RemovedBy::Other)];
    prop_oneof![
        2 => (ranges(), by).prop_map(|(named, by)| Op::Removed(named, by)),
        1 => near().prop_map(Op::Unseen),
        1 => near().prop_map(|(space, page, _)| Op::LateFault(space, page)),
        3 => target().prop_map(Op::SetTarget),
        2 => (0usize..8).prop_map(Op::Execute),
        5 => (0usize..8, prop::bool::weighted(0.7)).prop_map(|(n, ok)| Op::Finish(n, ok)),
        1 => (0usize..8).prop_map(Op::Split),
        3 => near().prop_map(Op::Pin),
        3 => (0usize..4, stamp()).prop_map(|(n, stamp)| Op::Dma(n, stamp)),
        2 => (0usize..4).prop_map(Op::Unpin),
        1 => range().prop_map(Op::Correct),
        1 => (1usize..4, prop::option::of(0usize..3)).prop_map(|(most, kill)| Op::Reboot(most, kill)),
        1 => any::<u64>().prop_map(Op::Crash),
    ]
}

fn of_sweep() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::BeginSweep),
        4 => (0usize..4).prop_map(Op::NextBatch),
        3 => Just(Op::Scan),
        3 => prop_oneof![Just(0u64), Just(u64::MAX), 0u64..600].prop_map(Op::Swept),
        1 => Just(Op::EndBatch),
    ]
}

/// Modulo any number of calls under way up to ten, the last of them.
const LAST: usize = 2519;

/// A sweep from end to end, with something between its steps.
fn sweep() -> impl Strategy<Value = Vec<Op>> {
    let between = || prop::collection::vec(prop_oneof![of_guest(), of_host()], 0..3);
    let need = prop_oneof![Just(0u64), Just(u64::MAX), 0u64..600];
    let fill = (near(), stamp()).prop_map(|(range, stamp)| Op::Fill(range, stamp));
    let answer = prop::option::of((any::<bool>(), any::<bool>()));
    (between(), between(), between(), need, fill, answer).prop_map(|(one, two, three, need, fill, answer)| {
        let mut all = vec![Op::EndBatch, fill, Op::BeginSweep, Op::NextBatch(4)];
        all.extend(one);
        all.push(Op::Scan);
        all.extend(two);
        all.push(Op::Swept(need));
        all.extend(answer.map(|(last, ok)| Op::Finish(if last { LAST } else { 0 }, ok)));
        all.extend(three);
        all.push(Op::EndBatch);
        all
    })
}

fn of_nobody() -> impl Strategy<Value = Op> {
    (range(), 0u8..4).prop_map(|(range, kind)| Op::Stray(range, kind))
}

/// Events that meet on the same pages.
fn meeting() -> impl Strategy<Value = Vec<Op>> {
    let met = |(range, kind, stamp): (Range, u8, u64)| {
        let touch = |now| Op::Touch(range.0, range.1, Some(stamp), now);
        match kind {
            0 => vec![touch(false), Op::Inflate(vec![range]), Op::Finish(7, true)],
            1 => vec![Op::Fill(range, stamp), Op::Pin(range), Op::Inflate(vec![range]), Op::Unpin(0)],
            2 => vec![Op::Fill(range, stamp), Op::Unseen(range), touch(true)],
            3 => vec![touch(false), Op::Removed(vec![range], RemovedBy::Balloon), Op::Finish(0, true)],
            _ => {
                vec![Op::Fill(range, stamp), Op::Inflate(vec![range]), Op::Deflate(vec![range]), touch(false)]
            }
        }
    };
    (near(), 0u8..5, stamp()).prop_map(met)
}

/// A world with its target, whether its guest tells before it uses pages of the balloon again, and what happens to it.
pub(super) fn story() -> impl Strategy<Value = (u64, Reuse, Vec<Op>)> {
    let reuse = prop_oneof![Just(Reuse::TellsFirst), Just(Reuse::AtOnce)];
    let single = prop_oneof![12 => of_guest(), 10 => of_host(), 2 => of_sweep(), 1 => of_nobody()];
    let single = single.prop_map(|op| vec![op]);
    let steps = prop::collection::vec(prop_oneof![9 => single, 1 => sweep(), 1 => meeting()], 1..60);
    (target(), reuse, steps.prop_map(|steps| steps.concat()))
}
