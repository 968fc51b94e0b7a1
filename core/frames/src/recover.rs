//! Taking over a ledger from a process that is gone.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;

use crate::discard::Extent;
use crate::error::LedgerError;
use crate::layout::{self, Entry, Layout, MAX_SPACES, Words};
use crate::ledger::{Ledger, Place};
use crate::residency::Totals;
use crate::space::{Space, SpaceId};
use crate::state::PageState;

/// What [`Ledger::attach`] found half done, and completed where it could. All zero and false if the last writer ended between events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// A reset had begun.
    pub reset: bool,
    /// Frames outside every space that were not `Present`: a space was being removed.
    pub stray_frames: u64,
    /// Maps whose pages all share a state: a frame was about to become uniform.
    pub uniform_maps: u64,
    /// The counters in the words were not those of the entries.
    pub counters: bool,
    /// A reboot is under way. It is not completed: go on with it ([`Ledger::continue_reboot`]).
    pub reboot: bool,
    /// What may be write-protected for a sweep. Lift it, then say so ([`Ledger::end_batch`]).
    pub protected: Option<Extent>,
}

impl<W: AsRef<[AtomicU64]>> Ledger<W> {
    /// Takes over the ledger in `words`. The previous writer must be gone. Every value is checked; counters are
    /// counted anew; what a kill between two stores can leave is put right. Where memory is in spaces on demand, only the
    /// kernel knows: [`Ledger::correct`] is to come next.
    ///
    /// # Errors
    /// [`LedgerError`] if the words are not a ledger that this crate wrote. Nothing has been stored then.
    pub fn attach(words: W) -> Result<(Self, Repairs), LedgerError> {
        let layout = layout::read_header(words.as_ref())?;
        let mut ledger = Self::over(Words::new(words), layout);
        ledger.spaces = read_spaces(&ledger.words, layout)?;
        let used = used_maps(&ledger.words, layout)?;
        ledger.check_states()?;
        ledger.maps.fresh =
            used.iter().rposition(|&used| used).map_or(0, |last| number(last).saturating_add(1));
        ledger.maps.freed = used
            .iter()
            .enumerate()
            .filter(|(map, used)| !**used && number(*map) < ledger.maps.fresh)
            .map(|(map, _)| number(map))
            .collect();
        let repairs = ledger.repair();
        Ok((ledger, repairs))
    }

    /// Pages are outstanding only where they are populated on demand.
    pub(crate) fn check_states(&self) -> Result<(), LedgerError> {
        for (id, space) in self.spaces.iter().filter(|(_, space)| !space.on_demand) {
            for frame in 0..space.frames() {
                let place = Place::of(*id, *space, frame);
                if self.states(&place).1.mask(PageState::Outstanding).meets(place.valid) {
                    let frame = u32::try_from(place.entry).unwrap_or(u32::MAX);
                    return Err(LedgerError::PageState { frame });
                }
            }
        }
        Ok(())
    }

    fn repair(&mut self) -> Repairs {
        let mut repairs = Repairs::default();
        for (id, space) in self.spaces.clone() {
            for frame in 0..space.frames() {
                let place = Place::of(id, space, frame);
                repairs.uniform_maps = repairs.uniform_maps.saturating_add(self.unify(&place));
                let counts = self.states(&place).1.counts(place.valid);
                self.counts.add(counts);
                if space.on_demand {
                    self.present_on_demand = self.present_on_demand.saturating_add(counts.present.0);
                }
            }
        }
        for frame in self.strays() {
            self.clear_stray(frame);
            repairs.stray_frames = repairs.stray_frames.saturating_add(1);
        }
        self.totals = Totals::from_words(self.words.load_array(layout::AT_TOTALS));
        let kept = layout::peek_counts(self.words.as_slice()).ok();
        let resident = self.words.load(layout::AT_RESIDENT);
        repairs.counters = kept != Some(self.counts) || resident != self.resident_pages();
        repairs.reset = self.words.load(layout::AT_RESETTING) != 0;
        repairs.reboot = self.is_rebooting();
        if repairs.reset || repairs.reboot {
            self.finish_reset();
        }
        self.check_mark();
        repairs.protected = self.protected();
        self.store_counters();
        repairs
    }

    /// Gives a map back whose pages turn out to share a state.
    fn unify(&mut self, place: &Place) -> u64 {
        let (entry, states) = self.states(place);
        match (entry, states.shared(place.valid)) {
            (Entry::Mixed(_), Some(state)) => {
                self.put_uniform(place, entry, state);
                1
            }
            _ => 0,
        }
    }

    /// Frames that belong to no space and are not `Present`.
    pub(crate) fn strays(&self) -> Vec<u32> {
        let in_space = |frame: u64| {
            let covers = |space: &Space| u64::from(space.first_frame) <= frame && frame < space.end_frame();
            self.spaces.iter().any(|(_, space)| covers(space))
        };
        (0..self.layout.frames)
            .filter(|&frame| {
                self.words.load(self.layout.entry(u64::from(frame))) != 0 && !in_space(u64::from(frame))
            })
            .collect()
    }

    fn clear_stray(&mut self, frame: u32) {
        let at = self.layout.entry(u64::from(frame));
        let word = self.words.load(at);
        self.words.store(at, 0);
        if let Some(Entry::Mixed(map)) = Entry::decode(word) {
            self.maps.give(map);
        }
    }
}

/// An index that came from a `u32`.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn read_spaces<W: AsRef<[AtomicU64]>>(
    words: &Words<W>,
    layout: Layout,
) -> Result<Vec<(SpaceId, Space)>, LedgerError> {
    let mut spaces: Vec<(SpaceId, Space)> = Vec::new();
    for index in 0..MAX_SPACES {
        let entry = words.load_array(layout::space_at(index));
        let Some(space) = Space::decode(entry).ok_or(LedgerError::Space(index))? else { continue };
        let collides = spaces.iter().any(|(_, other)| {
            other.key == space.key
                || (u64::from(other.first_frame) < space.end_frame()
                    && u64::from(space.first_frame) < other.end_frame())
        });
        let exact = !space.on_demand || layout.is_exact();
        if collides || !exact || space.end_frame() > u64::from(layout.frames) {
            return Err(LedgerError::Space(index));
        }
        spaces.push((SpaceId(index), space));
    }
    Ok(spaces)
}

/// For every map whether a frame points to it.
pub(crate) fn used_maps<W: AsRef<[AtomicU64]>>(
    words: &Words<W>,
    layout: Layout,
) -> Result<Vec<bool>, LedgerError> {
    let mut used = vec![false; usize::try_from(layout.maps).unwrap_or(0)];
    for frame in 0..layout.frames {
        let word = words.load(layout.entry(u64::from(frame)));
        match Entry::decode(word) {
            Some(Entry::Uniform(_)) => {}
            Some(Entry::Mixed(map)) => {
                let slot = usize::try_from(map).ok().and_then(|map| used.get_mut(map));
                let slot = slot.ok_or(LedgerError::Entry { frame, word })?;
                if core::mem::replace(slot, true) {
                    return Err(LedgerError::MapShared { frame, map });
                }
            }
            None => return Err(LedgerError::Entry { frame, word }),
        }
    }
    Ok(used)
}
