//! The books of an episode: what was granted anew, and what that was taken from.

use std::collections::BTreeMap;
use std::fmt;

use plimsoll_api::http::{Life, ListView, VmView};
use plimsoll_model::{Link, Plan, Snapshot, VmId, VmSample};
use plimsoll_units::Bytes;

/// What one VM may claim of the host, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// What it is allowed.
    pub target: Bytes,
    /// What it holds: maxmem less its balloon. Of a guest without a driver, which was told of all its memory and has
    /// touched only some, what the host counts behind it.
    pub holds: Bytes,
    /// What its VMM takes.
    pub overhead: Bytes,
}

impl Position {
    fn new(target: Bytes, actual: Bytes, overhead: Bytes, counted: Option<Bytes>) -> Self {
        Self { target, holds: counted.map_or(actual, |counted| counted.min(actual)), overhead }
    }

    /// Out of a list.
    #[must_use]
    pub fn of(vm: &VmView) -> Self {
        let counted = vm.resident.filter(|_| vm.link == Link::NoDriver);
        Self::new(vm.target.0, vm.actual.0, vm.overhead, counted)
    }

    fn sampled(vm: &VmSample, target: Bytes) -> Self {
        let counted = vm.resident.filter(|_| vm.link == Link::NoDriver);
        Self::new(target, vm.actual.0, vm.overhead, counted)
    }

    /// The larger of what it is allowed and what it holds.
    #[must_use]
    pub fn claim(&self) -> Bytes {
        self.target.max(self.holds)
    }
}

/// Where every VM stands at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<VmId, Position>);

impl Positions {
    /// By a list.
    #[must_use]
    pub fn listed(list: &ListView) -> Self {
        let alive = list.vms.iter().filter(|vm| vm.life != Life::Gone);
        Self(alive.map(|vm| (vm.id, Position::of(vm))).collect())
    }

    /// By a tick's snapshot, before and after its plan.
    #[must_use]
    pub fn around(snapshot: &Snapshot, plan: &Plan) -> [Self; 2] {
        let at = |decided: bool| {
            let target = |vm: &VmSample| {
                let action = plan.actions.iter().find(|action| decided && action.vm == vm.id);
                action.map_or(vm.target.0, |action| action.to.0)
            };
            Self(snapshot.vms.iter().map(|vm| (vm.id, Position::sampled(vm, target(vm)))).collect())
        };
        [at(false), at(true)]
    }

    /// The sum of the claims and overheads.
    #[must_use]
    pub fn claimed(&self) -> Bytes {
        self.0.values().map(|vm| vm.claim().plus(vm.overhead)).sum()
    }

    /// The sum of the overheads.
    #[must_use]
    pub fn overheads(&self) -> Bytes {
        self.0.values().map(|vm| vm.overhead).sum()
    }
}

/// What was moved since an episode began.
///
/// A rise of a target above what the VM claimed already is a grant. It is undone where the target falls again before
/// the guest took it. What a guest holds beyond its target it took by itself, from a balloon whose driver let go.
#[derive(Clone, Debug)]
pub struct Account {
    budget: Bytes,
    last: Positions,
    /// What of the budget was free when it began.
    pub free: Bytes,
    /// What was granted.
    pub granted: Bytes,
    /// Grants that were undone.
    pub undone: Bytes,
    /// By how much what the VMs hold fell, as far as that lowered their claims.
    pub freed: Bytes,
    /// What guests took by themselves.
    pub taken: Bytes,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { budget, free, granted, undone, freed, taken, .. } = self;
        write!(
            f,
            "of {budget}: {free} free at first, {freed} freed, {granted} granted, {undone} of it undone"
        )?;
        if *taken > Bytes::ZERO { write!(f, ", {taken} taken by guests themselves") } else { Ok(()) }
    }
}

impl Account {
    /// Opens the books where the VMs stand now.
    #[must_use]
    pub fn open(budget: Bytes, start: Positions) -> Self {
        let zero = Bytes::ZERO;
        let free = budget.minus(start.claimed());
        Self { budget, last: start, free, granted: zero, undone: zero, freed: zero, taken: zero }
    }

    /// Enters where the VMs stand now.
    ///
    /// # Errors
    /// When more was granted than was free and has been freed; when the VMs are others than before.
    pub fn enter(&mut self, now: Positions) -> Result<(), String> {
        if !now.0.keys().eq(self.last.0.keys()) {
            return Err(format!("other VMs than before: {now:?} after {:?}", self.last));
        }
        for (vm, was) in now.0.values().zip(self.last.0.values()) {
            self.granted = self.granted.plus(vm.target.minus(was.claim()));
            self.undone = self.undone.plus(was.target.minus(vm.claim().max(was.holds)));
            self.freed = self.freed.plus(was.holds.minus(vm.claim()));
            self.taken = self.taken.plus(vm.holds.minus(vm.target.max(was.claim())));
        }
        let before = std::mem::replace(&mut self.last, now);
        if self.granted > self.free.plus(self.freed).plus(self.undone) {
            return Err(format!("{self}; {before:#?} became {:#?}", self.last));
        }
        Ok(())
    }

    /// What the VMs claim beyond the budget, be it only by what guests took themselves.
    #[must_use]
    pub fn beyond(&self) -> Bytes {
        self.last.claimed().minus(self.budget)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::mib;

    /// Targets and holdings in MiB.
    fn at(vms: &[(u64, u64)]) -> Positions {
        let position = |(target, holds): &(u64, u64)| Position {
            target: mib(*target),
            holds: mib(*holds),
            overhead: mib(1),
        };
        Positions((1..).map(VmId).zip(vms.iter().map(position)).collect())
    }

    #[test]
    fn what_is_granted_must_have_been_freed_before() {
        let mut books = Account::open(mib(212), at(&[(100, 100), (100, 100)]));
        assert_eq!(books.free, mib(10));
        books.enter(at(&[(60, 100), (110, 100)])).unwrap();
        books.enter(at(&[(60, 80), (130, 110)])).unwrap();
        let error = books.enter(at(&[(60, 80), (131, 110)])).unwrap_err();
        assert!(error.contains("10M free at first, 20M freed, 31M granted"), "{error}");
        assert_eq!(books.beyond(), mib(1));
    }

    #[test]
    fn a_grant_that_was_not_used_may_go_to_another() {
        let mut books = Account::open(mib(212), at(&[(100, 100), (100, 100)]));
        books.enter(at(&[(110, 100), (100, 100)])).unwrap();
        books.enter(at(&[(104, 104), (106, 100)])).unwrap();
        assert_eq!((books.granted, books.undone), (mib(16), mib(6)));
        assert!(books.enter(at(&[(105, 104), (106, 100)])).is_err());
    }

    #[test]
    fn the_books_are_balanced() {
        let mut books = Account::open(mib(1000), at(&[(100, 100), (90, 120), (110, 70)]));
        let start = books.last.claimed();
        for vms in
            [[(100, 130), (95, 100), (80, 60)], [(150, 20), (200, 210), (10, 79)], [(1, 2), (3, 4), (90, 0)]]
        {
            books.enter(at(&vms)).unwrap();
            let Account { granted, taken, freed, undone, .. } = books;
            assert_eq!(
                start.plus(granted).plus(taken),
                books.last.claimed().plus(freed).plus(undone),
                "{books}"
            );
        }
    }

    #[test]
    fn what_a_guest_takes_is_no_grant() {
        let mut books = Account::open(mib(202), at(&[(100, 100), (100, 100)]));
        books.enter(at(&[(100, 150), (100, 100)])).unwrap();
        assert_eq!((books.granted, books.taken, books.beyond()), (Bytes::ZERO, mib(50), mib(50)));
        books.enter(at(&[(100, 150), (70, 100)])).unwrap();
        books.enter(at(&[(100, 150), (70, 70)])).unwrap();
        assert_eq!(books.beyond(), mib(20));
    }
}
