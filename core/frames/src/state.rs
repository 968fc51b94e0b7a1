//! States of a page and how many pages are in each.

use plimsoll_units::PageCount;

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageState {
    /// The guest's own; the ledger says nothing against it being in use. In a space that is populated on demand there is
    /// memory behind it, or it is on its way.
    Present,
    /// Promised to the guest and not touched, or swept since: no memory is behind it. Only in spaces that are populated
    /// on demand.
    Outstanding,
    /// Inside the balloon.
    Ballooned,
    /// Named by a free page report since it was last inflated or deflated. The guest may have taken it into use again
    /// without a word.
    Reported,
}

impl PageState {
    /// Every state.
    pub(crate) const ALL: [Self; 4] = [Self::Present, Self::Outstanding, Self::Ballooned, Self::Reported];

    /// The two bits that stand for the state. 0 is `Present` so that zeroed memory is a valid ledger.
    pub(crate) const fn code(self) -> u64 {
        match self {
            Self::Present => 0,
            Self::Outstanding => 1,
            Self::Ballooned => 2,
            Self::Reported => 3,
        }
    }

    /// The state two bits stand for; `None` for anything larger.
    pub(crate) const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Present),
            1 => Some(Self::Outstanding),
            2 => Some(Self::Ballooned),
            3 => Some(Self::Reported),
            _ => None,
        }
    }
}

/// Pages of all spaces by state. Their sum is the length of all spaces together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages in [`PageState::Present`].
    pub present: PageCount,
    /// Pages in [`PageState::Outstanding`].
    pub outstanding: PageCount,
    /// Pages in [`PageState::Ballooned`].
    pub ballooned: PageCount,
    /// Pages in [`PageState::Reported`].
    pub reported: PageCount,
}

impl Counts {
    /// All pages.
    #[must_use]
    pub const fn total(self) -> PageCount {
        let given_up = self.ballooned.0.saturating_add(self.reported.0);
        PageCount(self.present.0.saturating_add(self.outstanding.0).saturating_add(given_up))
    }

    /// The pages in one state.
    #[must_use]
    pub const fn of(self, state: PageState) -> PageCount {
        match state {
            PageState::Present => self.present,
            PageState::Outstanding => self.outstanding,
            PageState::Ballooned => self.ballooned,
            PageState::Reported => self.reported,
        }
    }

    pub(crate) const fn of_mut(&mut self, state: PageState) -> &mut PageCount {
        match state {
            PageState::Present => &mut self.present,
            PageState::Outstanding => &mut self.outstanding,
            PageState::Ballooned => &mut self.ballooned,
            PageState::Reported => &mut self.reported,
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        for state in PageState::ALL {
            let count = self.of_mut(state);
            count.0 = count.0.saturating_add(other.of(state).0);
        }
    }

    pub(crate) fn remove(&mut self, other: Self) {
        for state in PageState::ALL {
            let count = self.of_mut(state);
            count.0 = count.0.saturating_sub(other.of(state).0);
        }
    }
}
