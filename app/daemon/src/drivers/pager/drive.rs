//! The tasks that speak to a pager: one that asks and sets, one that waits for its guest to stand still.

use std::{sync::Arc, time::Duration};

use plimsoll_api::control::{Op, PagerStatus, Status};
use plimsoll_units::{Bytes, MonoTime};
use tokio::{sync::Notify, time::sleep};

use super::{Pager, PagerSeen, PagerSlot};
use crate::clock;
use crate::drivers::backoff::Backoff;
use crate::drivers::control::{Connection, Failure};

/// A back end restarts within some 10 ms, and a guest may be waiting: it is looked for sooner than others.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));

/// From one alarm to the next look: a guest that is given more in small pieces waits for each of them.
const PAUSE: Duration = Duration::from_millis(20);

/// No pager has turned so often: the answer comes at once.
const NOT_KNOWN: u64 = u64::MAX;

/// Speaks to a pager until it is dropped.
pub(crate) async fn drive(slot: Arc<PagerSlot>) {
    let mut backoff = RECONNECT;
    loop {
        let failure = match open(&slot.of).await {
            Ok(connection) => {
                slot.connected(connection.peer());
                serve(&slot, connection, &mut backoff).await
            }
            Err(failure) => failure,
        };
        slot.disconnected(&failure.to_string());
        sleep(backoff.failed()).await;
    }
}

pub(super) async fn open(pager: &Pager) -> Result<Connection, Failure> {
    Connection::open(pager.control.clone(), pager.owner).await
}

/// Asks and sets until the connection fails.
async fn serve(slot: &PagerSlot, mut connection: Connection, backoff: &mut Backoff) -> Failure {
    loop {
        let _ticket = slot.work().await;
        let op = slot.wanted().map_or(Op::Status, |target| Op::SetTarget { target });
        if let Err(failure) = ask(slot, &mut connection, op).await {
            return failure;
        }
        // What turns out not to be in force is set now, not at the next tick.
        if let (Op::Status, Some(target)) = (op, slot.wanted())
            && let Err(failure) = ask(slot, &mut connection, Op::SetTarget { target }).await
        {
            return failure;
        }
        backoff.succeeded();
    }
}

/// One request; a refusal is noted, and the next tick tries again.
async fn ask(slot: &PagerSlot, connection: &mut Connection, op: Op) -> Result<(), Failure> {
    let target = if let Op::SetTarget { target } = op { Some(target) } else { None };
    match connection.exchange(op).await? {
        Ok(status) => match seen(&status, slot.of.maxmem, clock::now()) {
            Some(seen) => slot.observed(seen),
            None => slot.failed(target, "its back end serves no memory on demand"),
        },
        Err(refusal) => slot.failed(target, &format!("its pager refused a request: {}", refusal.message)),
    }
    Ok(())
}

/// What a status says of a pager, bounded by what the VM was registered with.
fn seen(status: &Status, maxmem: Bytes, at: MonoTime) -> Option<PagerSeen> {
    let said = status.pager?;
    let status_ = PagerStatus {
        limit: said.limit.min(maxmem),
        resident: said.resident.min(maxmem),
        outstanding: said.outstanding.min(maxmem.pages_ceil()),
        ..said
    };
    Some(PagerSeen { at, epoch: status.epoch, status: status_ })
}

/// Calls for a tick whenever the guest begins to wait in its pager, or goes on.
pub(crate) async fn listen(slot: Arc<PagerSlot>, wake: Arc<Notify>) {
    let mut backoff = RECONNECT;
    loop {
        let failure = match open(&slot.of).await {
            Ok(connection) => await_turns(connection, &wake, &mut backoff).await,
            Err(failure) => failure,
        };
        tracing::debug!(%failure, "nobody tells when the guest waits for memory");
        sleep(backoff.failed()).await;
    }
}

async fn await_turns(mut connection: Connection, wake: &Notify, backoff: &mut Backoff) -> Failure {
    let mut known = NOT_KNOWN;
    loop {
        let told = match connection.exchange(Op::AwaitPager { after: known }).await {
            Ok(told) => told.ok().and_then(|status| status.pager),
            Err(failure) => return failure,
        };
        let Some(pager) = told else {
            // It may be another back end next time.
            sleep(backoff.failed()).await;
            continue;
        };
        backoff.succeeded();
        let before = std::mem::replace(&mut known, pager.turns);
        // One that is met while its guest waits has a reason to be asked too.
        if before != known && (before != NOT_KNOWN || pager.stalled.is_some()) {
            wake.notify_one();
        }
        // Also without news: one that answers at once, whatever it was asked, shall not keep the daemon busy.
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod test {
    use plimsoll_units::{MemTarget, PageCount};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_a_pager_says_stays_within_maxmem(limit: u64, resident: u64, outstanding: u64, target: u64) {
            let maxmem = Bytes::mib(64);
            let said = PagerStatus {
                target: MemTarget(Bytes(target)),
                limit: Bytes(limit),
                resident: Bytes(resident),
                outstanding: PageCount(outstanding),
                ..PagerStatus::default()
            };
            let status = Status { pager: Some(said), ..Status::default() };
            let seen = seen(&status, maxmem, MonoTime(7)).unwrap().status;
            prop_assert!(seen.limit <= maxmem && seen.resident <= maxmem);
            prop_assert!(seen.outstanding.bytes() <= maxmem);
        }
    }

    #[test]
    fn a_back_end_without_a_pager_says_nothing() {
        assert_eq!(seen(&Status::default(), Bytes::mib(64), MonoTime(7)), None);
    }
}
