//! Dividing an amount.

use alloc::vec;
use alloc::vec::Vec;

/// One who gives or takes: at most `cap`, in proportion to `share`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) cap: u64,
    pub(crate) share: u64,
}

/// Divides `total` in proportion to the shares, nobody beyond the cap, what one cannot take going to the
/// others (water filling). The parts add up to `total`, or to all caps if that is less.
/// A share of 0 counts as 1. Takes n log n steps.
pub(crate) fn divide(total: u64, claims: &[Claim]) -> Vec<u64> {
    let mut parts = vec![0; claims.len()];
    let mut order: Vec<(usize, Claim)> =
        claims.iter().map(|c| Claim { cap: c.cap, share: c.share.max(1) }).enumerate().collect();
    // Whoever fills up first (smallest cap for its share) is served first, so that one pass is enough.
    order.sort_by(|(_, a), (_, b)| {
        let left = u128::from(a.cap).saturating_mul(u128::from(b.share));
        let right = u128::from(b.cap).saturating_mul(u128::from(a.share));
        left.cmp(&right)
    });
    let mut rest = u128::from(total);
    let mut shares: u128 = order.iter().map(|(_, c)| u128::from(c.share)).fold(0, u128::saturating_add);
    for (index, claim) in order {
        let fair = rest.saturating_mul(u128::from(claim.share)).checked_div(shares).unwrap_or(0);
        let part = u64::try_from(fair).unwrap_or(u64::MAX).min(claim.cap);
        rest = rest.saturating_sub(u128::from(part));
        shares = shares.saturating_sub(u128::from(claim.share));
        if let Some(slot) = parts.get_mut(index) {
            *slot = part;
        }
    }
    parts
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_one_cannot_take_goes_to_the_others() {
        let claims =
            [Claim { cap: 10, share: 1 }, Claim { cap: 100, share: 1 }, Claim { cap: 100, share: 2 }];
        assert_eq!(divide(100, &claims), vec![10, 30, 60]);
        assert_eq!(divide(1000, &claims), vec![10, 100, 100]);
        assert_eq!(divide(0, &claims), vec![0, 0, 0]);
        assert_eq!(divide(5, &[]), Vec::<u64>::new());
    }

    proptest! {
        #[test]
        fn parts_add_up_and_respect_caps(
            total: u64,
            raw in prop::collection::vec((any::<u64>(), 0u64..20_000), 0..20),
        ) {
            let claims: Vec<Claim> = raw.iter().map(|&(cap, share)| Claim { cap: cap >> 5, share }).collect();
            let parts = divide(total, &claims);
            let caps: u128 = claims.iter().map(|c| u128::from(c.cap)).sum();
            let sum: u128 = parts.iter().map(|&p| u128::from(p)).sum();
            prop_assert_eq!(sum, caps.min(u128::from(total)));
            prop_assert!(parts.iter().zip(&claims).all(|(part, claim)| *part <= claim.cap));
        }
    }
}
