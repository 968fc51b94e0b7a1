//! What happens, on the ledger and on the model.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_units::{MemTarget, PageCount};

use super::crash::{crash, reboot};
use super::model::{FRAME, Page, Space, index, number};
use super::ops::{Op, Range};
use super::world::{Kind, World, data};
use crate::{Discard, Extent, PageState, RemovedBy, Reuse, Tally};

pub(super) fn step(world: &mut World, op: &Op) {
    match op {
        Op::Touch(space, page, write, now) => {
            let page = index(*page) % world.spaces[*space].pages.len();
            world.touch(*space, page, *write, *now);
        }
        Op::LateFault(space, page) => {
            let page = index(*page) % world.spaces[*space].pages.len();
            world.fault(*space, page, true);
        }
        Op::Stray(range, kind) => stray(world, *range, *kind),
        Op::Fill(range, stamp) => {
            for page in world.pages(*range) {
                if !world.touch(range.0, page, Some(*stamp), true) {
                    break;
                }
            }
        }
        Op::Inflate(ranges) => give_up(world, ranges, PageState::Ballooned),
        Op::Report(ranges) => give_up(world, ranges, PageState::Reported),
        Op::Deflate(ranges) => {
            let extents: Vec<_> = ranges.iter().map(|range| world.extent(*range)).collect();
            world.ledger.deflate(&extents);
            for (space, page) in named(world, ranges) {
                take_back(&mut world.spaces[space].pages[page]);
            }
        }
        Op::Reset => {
            world.ledger.reset();
            world.spaces.iter_mut().flat_map(|space| &mut space.pages).for_each(take_back);
        }
        Op::Removed(ranges, by) => removed(world, ranges, *by),
        Op::Unseen(range) => {
            for page in whole_frames(world, *range) {
                lose(&mut world.spaces[range.0].pages[page]);
            }
            world.note();
        }
        Op::SetTarget(target) => {
            world.ledger.set_target(MemTarget(PageCount(*target).bytes()));
            world.target = *target;
            world.limit = world.resident().max(*target);
        }
        Op::Execute(n) | Op::Finish(n, _) | Op::Split(n) => {
            if let Some(n) = n.checked_rem(world.flights.len()) {
                move_on(world, op, n);
            }
        }
        Op::Pin(range) => pin(world, *range),
        Op::Dma(n, stamp) => dma(world, *n, *stamp),
        Op::Unpin(n) => unpin(world, *n),
        Op::BeginSweep => world.ledger.begin_sweep(),
        Op::NextBatch(most) => world.next_batch(*most),
        Op::Scan => scan(world),
        Op::Swept(need) => swept(world, *need),
        Op::EndBatch => end_batch(world),
        Op::Correct(range) => {
            let extent = world.extent(*range);
            correct(world, extent);
        }
        Op::Reboot(most, kill) => reboot(world, *most, *kill),
        Op::Crash(done) => crash(world, *done),
    }
}

/// One of the calls under way comes further.
fn move_on(world: &mut World, op: &Op, n: usize) {
    if let Op::Finish(_, ok) = op {
        world.finish(n, *ok || world.flights[n].done);
    } else if matches!(op, Op::Split(_)) {
        world.split(n);
    } else {
        world.execute(n);
    }
}

/// Answers where nothing is under way, which must change nothing.
fn stray(world: &mut World, range: Range, kind: u8) {
    let pages = world.pages(range);
    let page = |page: &Page| page.arriving || page.leaving || page.pins > 0;
    if world.spaces[range.0].pages[pages].iter().any(page) {
        return;
    }
    let extent = world.extent(range);
    let (offset, len) = (PageCount(extent.first).bytes(), PageCount(extent.count).bytes());
    let discard = Discard { space: extent.space, offset, len };
    let mut out = vec![];
    match kind {
        0 => world.ledger.discarded(discard),
        1 => world.ledger.discard_failed(discard),
        2 => world.ledger.populated(extent, world.reuse, &mut out),
        _ => world.ledger.populate_failed(extent),
    }
    world.ledger.unpin(extent, world.reuse, &mut out);
    assert_eq!(out, []);
}

fn named(world: &World, ranges: &[Range]) -> BTreeSet<(usize, usize)> {
    ranges.iter().flat_map(|range| world.pages(*range).map(|page| (range.0, page))).collect()
}

pub(super) fn take_back(page: &mut Page) {
    page.given = false;
    if matches!(page.state, PageState::Ballooned | PageState::Reported) {
        page.set(if page.held && !page.leaving { PageState::Present } else { PageState::Outstanding });
    }
}

fn give_up(world: &mut World, ranges: &[Range], to: PageState) {
    let extents: Vec<_> = ranges.iter().map(|range| world.extent(*range)).collect();
    let named = named(world, ranges);
    let tells = world.reuse == Reuse::TellsFirst;
    let mut want = BTreeSet::new();
    let mut tally = Tally { named: PageCount(number(named.len())), ..Tally::default() };
    for n in 0..world.spaces.len() {
        let pages: BTreeSet<usize> = named.iter().filter(|(s, _)| *s == n).map(|(_, page)| *page).collect();
        let may = |space: &Space, page: usize| {
            pages.contains(&page) || (tells && space.pages[page].state == PageState::Ballooned)
        };
        let space = &mut world.spaces[n];
        want.extend(space.discard(&pages, may).into_iter().map(|page| (n, page)));
        for page in pages {
            let at = &mut space.pages[page];
            tally.pinned.0 += u64::from(at.resident() && (at.pins > 0 || at.arriving));
            tally.changed.0 += u64::from(at.state != to);
            at.set(to);
            at.want = None;
            at.given = tells && to == PageState::Ballooned;
        }
    }
    let mut out = vec![];
    let got = if to == PageState::Ballooned {
        world.ledger.inflate(&extents, world.reuse, &mut out)
    } else {
        world.ledger.report(&extents, world.reuse, &mut out)
    };
    assert_eq!(got, tally);
    world.set_going(&out, &want, Kind::Discard);
}

/// Somebody else punches what the guest no longer needs.
fn lose(page: &mut Page) {
    page.want = None;
    page.punch();
}

/// A hole in a file of huge pages is as large as they are.
fn whole_frames(world: &World, range: Range) -> Vec<usize> {
    let space = &world.spaces[range.0];
    let pages = world.pages(range);
    let whole = |frame: &core::ops::Range<usize>| {
        space.granule == crate::Granule::Page || (pages.start <= frame.start && frame.end <= pages.end)
    };
    pages.clone().filter(|page| whole(&space.frame(*page))).collect()
}

fn removed(world: &mut World, ranges: &[Range], by: RemovedBy) {
    let to = match by {
        RemovedBy::Balloon => PageState::Ballooned,
        RemovedBy::Report => PageState::Reported,
        RemovedBy::Other => PageState::Outstanding,
    };
    let pages: BTreeSet<(usize, usize)> = ranges
        .iter()
        .flat_map(|range| whole_frames(world, *range).into_iter().map(|page| (range.0, page)))
        .collect();
    let extents: Vec<_> = pages.iter().map(|(n, page)| world.extent((*n, number(*page), 1))).collect();
    for (n, page) in pages {
        let at = &mut world.spaces[n].pages[page];
        lose(at);
        if !at.arriving {
            at.set(to);
            at.held = false;
        }
    }
    world.note();
    if world.ledger.removed(&extents, by).arriving.0 > 0 {
        world.seen.insert("removed while arriving");
    }
}

fn pin(world: &mut World, range: Range) {
    let extent = world.extent(range);
    let mut missing = 0;
    for page in world.pages(range) {
        let at = &mut world.spaces[range.0].pages[page];
        at.pins += 1;
        at.takeable = false;
        missing += u64::from(!at.settled());
    }
    assert_eq!(world.ledger.pin(extent), PageCount(missing));
    world.pinned.push(extent);
}

/// The device writes, if the ledger says that it may.
fn dma(world: &mut World, n: usize, stamp: u64) {
    let Some(n) = n.checked_rem(world.pinned.len()) else { return };
    let extent = world.pinned[n];
    let space = world.space_of(extent.space);
    let pages = world.pages((space, extent.first, extent.count));
    let first = pages.clone().find(|page| !world.spaces[space].pages[*page].settled());
    let got = world.ledger.missing(extent);
    assert_eq!(got.map(|run| index(run.first)), first);
    if let Some(run) = got {
        let missing = |page: u64| !world.spaces[space].pages[index(page)].settled();
        assert!((run.first..run.end()).all(missing) && run.end() <= extent.end());
        return;
    }
    world.seen.insert("device wrote");
    for page in pages {
        let at = &mut world.spaces[space].pages[page];
        // A page that was punched unseen under the device is lost to it, not to the ledger's account.
        if at.memory && !at.given {
            (at.content, at.want) = (stamp, Some(stamp));
        }
    }
}

pub(super) fn unpin(world: &mut World, n: usize) {
    let Some(n) = n.checked_rem(world.pinned.len()) else { return };
    let extent = world.pinned.remove(n);
    let space = world.space_of(extent.space);
    let mut released = BTreeSet::new();
    for page in world.pages((space, extent.first, extent.count)) {
        let at = &mut world.spaces[space].pages[page];
        at.pins -= 1;
        if at.pins == 0 && at.state == PageState::Ballooned {
            released.insert(page);
        }
    }
    let mut out = vec![];
    world.ledger.unpin(extent, world.reuse, &mut out);
    if !out.is_empty() {
        world.seen.insert("given up while pinned");
    }
    world.after_release(space, released, &out);
}

/// Reads the batch, which is protected, with a call that does not put memory anywhere.
fn scan(world: &mut World) {
    let mut zero = vec![];
    for extent in &world.batch {
        let space = &world.spaces[world.space_of(extent.space)];
        let pages = (extent.first..extent.end()).filter(|page| space.pages[index(*page)].content == 0);
        zero.extend(pages.map(|page| Extent { first: page, count: 1, ..*extent }));
    }
    world.zero = zero;
}

fn swept(world: &mut World, need: u64) {
    let Some(space) = world.batch.first().map(|extent| world.space_of(extent.space)) else { return };
    let zero: BTreeSet<usize> = world.zero.iter().map(|extent| index(extent.first)).collect();
    let frames: Vec<_> = world.spaces[space].frames().collect();
    let mut chosen = vec![];
    for frame in frames {
        let pages = &world.spaces[space].pages;
        let take: BTreeSet<usize> =
            frame.clone().filter(|page| pages[*page].takeable && zero.contains(page)).collect();
        let whole = frame.clone().all(|page| !pages[page].resident() || take.contains(&page));
        if take.len() == frame.len() || world.spaces[space].granule == crate::Granule::Page {
            chosen.push((take, whole));
        }
    }
    let mut taken: usize = chosen.iter().filter(|(_, whole)| *whole).map(|(take, _)| take.len()).sum();
    let mut want = BTreeSet::new();
    for (take, whole) in chosen {
        if !whole && number(taken) >= need {
            continue;
        }
        taken += if whole { 0 } else { take.len() };
        let all = world.spaces[space].discard(&take, |_, page| take.contains(&page));
        assert_eq!(all, take);
        for page in take {
            assert_eq!(world.spaces[space].pages[page].content, 0, "page {page} was written since");
            world.spaces[space].pages[page].set(PageState::Outstanding);
            want.insert((space, page));
        }
    }
    let mut out = vec![];
    let tally = world.ledger.swept(&world.zero, PageCount(need), &mut out);
    assert_eq!(tally.pages, PageCount(number(taken)));
    assert_eq!(tally.pages.0 + tally.left.0, number(zero.len()));
    if tally.frames > 0 {
        world.seen.insert("swept a frame");
    }
    if !taken.is_multiple_of(FRAME) {
        world.seen.insert("swept a part of a frame");
    }
    if zero.iter().any(|page| !world.spaces[space].pages[*page].leaving) {
        world.seen.insert("left zero pages alone");
    }
    world.set_going(&out, &want, Kind::Swept);
}

pub(super) fn end_batch(world: &mut World) {
    // The protection holds until what was taken is gone.
    while let Some(n) = world.flights.iter().position(|flight| flight.kind == Kind::Swept) {
        world.finish(n, true);
    }
    world.ledger.end_batch();
    for page in world.spaces.iter_mut().flat_map(|space| &mut space.pages) {
        (page.protected, page.takeable) = (false, false);
    }
    (world.batch, world.zero) = (vec![], vec![]);
}

pub(super) fn correct(world: &mut World, within: Extent) {
    let data = data(&world.spaces);
    let corrected = world.ledger.correct(within, &data);
    let space = world.space_of(within.space);
    let (mut found, mut lost) = (0, 0);
    for page in world.pages((space, within.first, within.count)) {
        let at = &mut world.spaces[space].pages[page];
        if at.arriving || at.leaving || at.memory == at.resident() {
            continue;
        }
        if at.memory {
            found += 1;
            at.set(PageState::Present);
        } else {
            lost += 1;
            at.state = if at.state == PageState::Present { PageState::Outstanding } else { at.state };
            (at.held, at.takeable) = (false, false);
        }
    }
    if lost > 0 {
        world.seen.insert("corrected a hole");
    }
    if found > 0 {
        world.seen.insert("corrected data");
    }
    assert_eq!((corrected.found, corrected.lost), (PageCount(found), PageCount(lost)));
}
