//! Pages somebody waits for and for which there is no memory.

use std::collections::{BTreeSet, VecDeque};

use crate::file::Pages;

/// First come, first served; each page once, however many threads wait for it. It cannot grow beyond the pages the guest has.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// In the order of coming, with pages that are not waited for any more.
    order: VecDeque<u64>,
    known: BTreeSet<u64>,
}

/// Pages no longer waited for that are kept in the order, beside as many as are waited for.
const STALE: usize = 64;

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The page that has been waited for the longest.
    pub(crate) fn first(&self) -> Option<u64> {
        self.order.iter().copied().find(|page| self.known.contains(page))
    }

    /// Somebody waits for a page, after all others.
    pub(crate) fn push(&mut self, page: u64) {
        if self.known.insert(page) {
            self.order.push_back(page);
        }
    }

    /// Takes the page that has been waited for the longest.
    pub(crate) fn pop(&mut self) -> Option<u64> {
        while let Some(page) = self.order.pop_front() {
            if self.known.remove(&page) {
                return Some(page);
            }
        }
        None
    }

    /// Pages that have memory now, and whose waiters are about to be woken.
    pub(crate) fn served(&mut self, pages: &Pages) {
        while let Some(&page) = self.known.range(pages.clone()).next() {
            self.known.remove(&page);
        }
        if self.order.len() > self.known.len().saturating_mul(2).saturating_add(STALE) {
            let known = &self.known;
            let mut once = BTreeSet::new();
            self.order.retain(|page| known.contains(page) && once.insert(*page));
        }
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Push(u64),
        Pop,
        Served(Pages),
    }

    fn an_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => (0..200_u64).prop_map(Op::Push),
            1 => Just(Op::Pop),
            1 => (0..200_u64, 0..60_u64).prop_map(|(start, len)| Op::Served(start..start + len)),
        ]
    }

    proptest! {
        // The model is a plain list. A page that was served and comes again may keep its old place.
        #[test]
        fn pages_wait_once_and_none_is_forgotten(ops in proptest::collection::vec(an_op(), 0..400)) {
            let mut waiting = Waiting::default();
            let mut model: BTreeSet<u64> = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Push(page) => {
                        waiting.push(page);
                        model.insert(page);
                    }
                    Op::Pop => {
                        let first = waiting.first();
                        let popped = waiting.pop();
                        prop_assert_eq!(popped, first);
                        prop_assert_eq!(popped.is_none(), model.is_empty());
                        if let Some(page) = popped {
                            prop_assert!(model.remove(&page));
                        }
                    }
                    Op::Served(pages) => {
                        waiting.served(&pages);
                        model.retain(|page| !pages.contains(page));
                    }
                }
                prop_assert_eq!(waiting.len(), model.len());
                prop_assert_eq!(waiting.is_empty(), model.is_empty());
                prop_assert!(waiting.order.len() <= 2 * 200 + STALE + 200);
            }
        }
    }

    #[test]
    fn who_came_first_is_served_first() {
        let mut waiting = Waiting::default();
        for page in [9, 3, 9, 7, 3] {
            waiting.push(page);
        }
        waiting.served(&(3..4));
        assert_eq!([waiting.pop(), waiting.pop(), waiting.pop()], [Some(9), Some(7), None]);
    }
}
