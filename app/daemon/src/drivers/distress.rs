//! The agent inside a User Mode Linux guest, as far as it cannot wait for the next tick: its back end hears it, and a second
//! connection to the back end waits for the word that the guest is in distress.

use std::{path::PathBuf, time::Duration};

use plimsoll_api::control::Op;
use tokio::time::sleep;

use super::agent::{PAUSE, URGENT_PAUSE};
use super::alarm::Alarm;
use super::backoff::Backoff;
use super::control::{Connection, Failure};

const RECONNECT: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// No back end has heard so many urgent reports: the answer comes at once.
const NOT_KNOWN: u64 = u64::MAX;

/// Rings `alarm` whenever the back end that listens at `control` has heard that its guest is in distress. Ends where
/// that cannot be: the VM has no line to an agent, or the back end is older than agents are.
pub(super) async fn listen(control: PathBuf, owner: u32, alarm: Alarm) {
    let mut backoff = RECONNECT;
    loop {
        let failure = match Connection::open(control.clone(), owner).await {
            Ok(connection) => match wait(connection, &alarm, &mut backoff).await {
                Ok(()) => return,
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        tracing::debug!(%failure, "the agent's distress is not awaited");
        sleep(backoff.failed()).await;
    }
}

/// Waits until the connection fails. Returns without a failure if there is nothing to wait for, ever.
async fn wait(mut connection: Connection, alarm: &Alarm, backoff: &mut Backoff) -> Result<(), Failure> {
    let mut known = NOT_KNOWN;
    loop {
        let Ok(status) = connection.exchange(Op::AwaitAgent { after: known }).await? else { return Ok(()) };
        if status.agent_counters.is_none() {
            return Ok(());
        }
        backoff.succeeded();
        let before = std::mem::replace(&mut known, status.agent_urgent);
        let news = before != NOT_KNOWN && before != known;
        if news {
            alarm.ring();
        }
        // Also without news: a back end that answers at once, whatever it was asked, shall not keep the daemon busy.
        sleep(if news { URGENT_PAUSE } else { PAUSE }).await;
    }
}
