//! Whether a VM fits.
//!
//! What is guaranteed is the floors; what a VM begins with is its memory. So a VM fits if the others can be
//! brought down to their floors and what is left holds its memory: the rest is the arbiter's business.

use plimsoll_model::VmName;
use plimsoll_units::Bytes;

/// Why a VM does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` does not fit: it needs {memory} and {overhead} for its VMM, {guaranteed} are guaranteed to others \
     (floors and overheads), together {}, and the budget is {budget}; {hint}",
    memory.plus(*overhead).plus(*guaranteed)
)]
pub(crate) struct DoesNotFit {
    name: VmName,
    memory: Bytes,
    overhead: Bytes,
    guaranteed: Bytes,
    budget: Bytes,
    hint: String,
}

/// Checks that a VM of that memory fits beside what is `guaranteed` to the others.
pub(crate) fn admit(
    name: &VmName,
    memory: Bytes,
    overhead: Bytes,
    guaranteed: Bytes,
    budget: Bytes,
) -> Result<(), DoesNotFit> {
    if memory.plus(overhead).plus(guaranteed) <= budget {
        return Ok(());
    }
    let most = budget.minus(guaranteed).minus(overhead).pages_floor().bytes();
    let hint = if most >= plimsoll_model::Sizes::LEAST {
        format!("memory may be {most} at most")
    } else {
        "stop another VM first".to_owned()
    };
    Err(DoesNotFit { name: name.clone(), memory, overhead, guaranteed, budget, hint })
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn name() -> VmName {
        VmName::new("web").unwrap()
    }

    #[test]
    fn the_numbers_are_told() {
        let m = Bytes::mib;
        let message = admit(&name(), m(300), m(16), m(800), m(1024)).unwrap_err().to_string();
        for part in ["`web`", "300M", "16M", "800M", "1116M", "budget is 1G", "may be 208M at most"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let message = admit(&name(), m(300), m(16), m(1024), m(1024)).unwrap_err().to_string();
        assert!(message.contains("stop another VM"), "{message}");
    }

    proptest! {
        /// Guarantees are kept whatever is asked for, overflow included.
        #[test]
        fn floors_never_exceed_the_budget(budget: u64, asked in prop::collection::vec((any::<u64>(), any::<u64>(), 0u64..1 << 40), 0..40)) {
            let mut guaranteed = 0u128;
            for (memory, floor, overhead) in asked {
                let sum = Bytes(u64::try_from(guaranteed).unwrap());
                let floor = floor.min(memory);
                if admit(&name(), Bytes(memory), Bytes(overhead), sum, Bytes(budget)).is_ok() {
                    // A sum that saturates fits only into a budget of everything there is.
                    guaranteed = (guaranteed + u128::from(floor) + u128::from(overhead)).min(u128::from(u64::MAX));
                }
            }
            prop_assert!(guaranteed <= u128::from(budget));
        }

        #[test]
        fn the_hint_fits(memory: u64, overhead in 0u64..1 << 40, guaranteed: u64, budget: u64) {
            let (overhead, guaranteed, budget) = (Bytes(overhead), Bytes(guaranteed), Bytes(budget));
            if let Err(refused) = admit(&name(), Bytes(memory), overhead, guaranteed, budget)
                && let Some(most) = refused.hint.strip_prefix("memory may be ").and_then(|h| h.strip_suffix(" at most"))
            {
                let most: Bytes = most.parse().unwrap();
                prop_assert!(most < Bytes(memory));
                admit(&name(), most, overhead, guaranteed, budget).unwrap();
            }
        }
    }
}
