//! A guest that begins anew: all its memory becomes outstanding again.

use std::time::Duration;

use plimsoll_api::control::Op;
use tokio::time::{Instant, sleep};

use super::Pager;
use super::drive::open;
use crate::drivers::control::Failure;

/// How long it may take. Giving memory back goes at some GiB a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often is looked whether it is over.
const LOOK: Duration = Duration::from_millis(5);

/// What has become of the memory.
#[derive(Debug)]
pub(crate) enum Emptied {
    /// All of it is given back.
    Whole,
    /// It is as it was.
    Untouched(String),
    /// Some is given back, and the rest is being or will be.
    Partly(String),
}

/// Has a pager give back all of a guest's memory. The VM must be stopped, and stay so unless nothing was touched.
/// `begun` says that the pager was asked already.
pub(crate) async fn empty(pager: &Pager, mut begun: bool) -> Emptied {
    let until = Instant::now() + PATIENCE;
    loop {
        match try_once(pager, &mut begun).await {
            Ok(None) => return Emptied::Whole,
            Ok(Some(refusal)) => return Emptied::Untouched(refusal),
            Err(failure) if !begun => return Emptied::Untouched(failure.to_string()),
            Err(failure) if Instant::now() > until => return Emptied::Partly(failure.to_string()),
            // Another back end goes on where the last one died.
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// Asks, unless that was done, and waits for the end; the refusal if there is one.
async fn try_once(pager: &Pager, begun: &mut bool) -> Result<Option<String>, Failure> {
    let mut connection = open(pager).await?;
    if !*begun {
        // From here on nobody knows whether it was heard.
        *begun = true;
        match connection.exchange(Op::Reset).await? {
            Ok(_) => {}
            Err(refusal) => {
                *begun = false;
                return Ok(Some(refusal.message));
            }
        }
    }
    loop {
        let resets = match connection.exchange(Op::Status).await? {
            Ok(status) => status.pager.is_some_and(|pager| pager.resetting),
            Err(refusal) => return Ok(Some(refusal.message)),
        };
        if !resets {
            return Ok(None);
        }
        sleep(LOOK).await;
    }
}
