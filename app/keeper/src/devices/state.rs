//! What a front end has set, as it would have to be said to a new back end.

use std::collections::BTreeMap;

use plimsoll_vhost_user::layout::MAX_RINGS;
use plimsoll_vhost_user::wire::{Code, F_PROTOCOL_FEATURES, Request};

use crate::leavings::Memory;

/// The last request of each kind, for each ring. Not a log: what was said before the last is of no interest.
///
/// Never remembered are SET_VRING_BASE and SET_CONFIG. Their values live in the shared memory and have moved on
/// since; a base said again would run old inflations and reports a second time.
#[derive(Debug, Default)]
pub(crate) struct State {
    kept: BTreeMap<(u32, u32), Request>,
}

/// Position in the order of saying it all again: the device's own first, then ring by ring.
const FEATURES: (u32, u32) = (0, 0);
const MEMORY: (u32, u32) = (0, 1);
const KICK: u32 = 4;
const ENABLE: u32 = 5;

/// Where a request is kept, if it is.
fn place(request: &Request) -> Option<(u32, u32)> {
    let step = match request.code()? {
        Code::SetFeatures => return Some(FEATURES),
        Code::SetMemTable => return Some(MEMORY),
        Code::SetVringNum => 0,
        Code::SetVringAddr => 1,
        Code::SetVringCall => 2,
        Code::SetVringErr => 3,
        Code::SetVringKick => KICK,
        Code::SetVringEnable => ENABLE,
        Code::GetFeatures
        | Code::SetOwner
        | Code::ResetOwner
        | Code::SetVringBase
        | Code::GetVringBase
        | Code::GetProtocolFeatures
        | Code::SetProtocolFeatures
        | Code::GetQueueNum
        | Code::SetBackendReqFd
        | Code::GetConfig
        | Code::SetConfig => return None,
    };
    let ring = request.ring()?;
    let known = usize::try_from(ring).is_ok_and(|ring| ring < MAX_RINGS);
    known.then_some((ring + 1, step))
}

impl State {
    /// The back end has carried this out.
    pub(crate) fn record(&mut self, request: &Request) {
        if let Request::GetVringBase { ring } = request {
            // The ring is stopped until it gets a new kick.
            self.kept.remove(&(ring.saturating_add(1), KICK));
        }
        if matches!(request, Request::GetFeatures) && self.is_plain() {
            // How User Mode Linux stops its rings, see `plimsoll_vhost_user::Session`.
            self.kept.retain(|(_, step), request| *step != KICK || request.ring().is_none());
        }
        if matches!(request, Request::SetFeatures(acked) if acked & F_PROTOCOL_FEATURES == 0) {
            self.enable_by_kick();
        }
        if let Some(place) = place(request) {
            self.kept.insert(place, request.clone());
        }
    }

    /// The back end has refused this. A memory table that was refused leaves none.
    pub(crate) fn refused(&mut self, request: &Request) {
        if matches!(request, Request::SetMemTable(_)) {
            self.kept.remove(&MEMORY);
        }
    }

    /// The memory table, empty if there is none.
    pub(crate) fn memory(&self) -> &Memory {
        if let Some(Request::SetMemTable(table)) = self.kept.get(&MEMORY) { table } else { &[] }
    }

    fn is_plain(&self) -> bool {
        let features = self.kept.get(&FEATURES);
        matches!(features, Some(Request::SetFeatures(acked)) if acked & F_PROTOCOL_FEATURES == 0)
    }

    /// Features without bit 30 were accepted: what rings were told before of enabling is void, and one that was disabled waits for
    /// a new kick. See `plimsoll_vhost_user::Session`.
    fn enable_by_kick(&mut self) {
        for ring in (1u32..).take(MAX_RINGS) {
            if let Some(Request::SetVringEnable { on: false, .. }) = self.kept.remove(&(ring, ENABLE)) {
                self.kept.remove(&(ring, KICK));
            }
        }
    }

    /// Everything, in an order in which it can be said to a back end that knows nothing.
    pub(crate) fn replay(&self) -> impl Iterator<Item = Request> {
        self.kept.values().cloned()
    }
}

#[cfg(test)]
mod test {
    use std::sync::Arc;

    use plimsoll_vhost_user::wire::{Region, RingAddresses};
    use proptest::prelude::*;

    use super::*;

    fn fd() -> Arc<std::os::fd::OwnedFd> {
        Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap())
    }

    fn table(guest: u64) -> Request {
        Request::SetMemTable(vec![(Region { guest, length: 4096, user: 0, offset: 0 }, fd())])
    }

    fn codes(state: &State) -> Vec<(Code, Option<u32>)> {
        state.replay().map(|request| (request.code().unwrap(), request.ring())).collect()
    }

    #[test]
    fn the_last_word_counts_and_comes_in_order() {
        let mut state = State::default();
        let at = RingAddresses { descriptors: 0, used: 0, available: 0 };
        for ring in [1, 0] {
            state.record(&Request::SetVringEnable { ring, on: true });
            state.record(&Request::SetVringFd { which: Code::SetVringKick, ring, fd: Some(fd()) });
            state.record(&Request::SetVringFd { which: Code::SetVringCall, ring, fd: Some(fd()) });
            state.record(&Request::SetVringBase { ring, base: 9 });
            state.record(&Request::SetVringAddr { ring, at });
            state.record(&Request::SetVringNum { ring, num: 64 });
            state.record(&Request::SetVringNum { ring, num: 128 });
        }
        state.record(&table(1));
        state.record(&table(2));
        state.record(&Request::SetConfig { offset: 4, flags: 0, bytes: vec![0; 4] });
        state.record(&Request::SetFeatures(F_PROTOCOL_FEATURES));
        let order = [
            Code::SetVringNum,
            Code::SetVringAddr,
            Code::SetVringCall,
            Code::SetVringKick,
            Code::SetVringEnable,
        ];
        let rings = [0, 1].into_iter().flat_map(|ring| order.map(|code| (code, Some(ring))));
        let want: Vec<_> =
            [(Code::SetFeatures, None), (Code::SetMemTable, None)].into_iter().chain(rings).collect();
        assert_eq!(codes(&state), want);
        let said: Vec<_> = state.replay().collect();
        assert!(matches!(&said[1], Request::SetMemTable(regions) if regions[0].0.guest == 2));
        assert!(matches!(said[2], Request::SetVringNum { num: 128, .. }));

        state.record(&Request::GetVringBase { ring: 0 });
        assert!(!codes(&state).contains(&(Code::SetVringKick, Some(0))));
        state.record(&Request::SetVringEnable { ring: 0, on: false });
        state.record(&Request::SetFeatures(1));
        assert!(!codes(&state).iter().any(|(code, _)| *code == Code::SetVringEnable));
        assert!(codes(&state).contains(&(Code::SetVringKick, Some(1))), "ring 1 goes on");
        state.record(&Request::GetFeatures);
        assert!(!codes(&state).iter().any(|(code, _)| *code == Code::SetVringKick));
        state.refused(&table(3));
        assert!(!codes(&state).contains(&(Code::SetMemTable, None)));
    }

    proptest! {
        #[test]
        fn no_front_end_makes_it_grow(rings in prop::collection::vec(any::<u32>(), 0..2000)) {
            let mut state = State::default();
            for ring in rings {
                state.record(&Request::SetVringNum { ring, num: 1 });
                state.record(&Request::SetVringEnable { ring: ring % 300, on: true });
                state.record(&Request::GetVringBase { ring });
            }
            prop_assert!(state.kept.len() <= 2 * MAX_RINGS);
        }
    }
}
