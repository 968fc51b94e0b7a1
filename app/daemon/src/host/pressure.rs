//! Being woken when the host stalls for want of memory.

use std::{
    future::pending,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use plimsoll_psi::{Kind, PsiError, Threshold, Trigger};
use tokio::io::{Interest, unix::AsyncFd};

use crate::readiness;

/// Something waited this long for memory...
const STALL: Duration = Duration::from_millis(100);

/// ...within this: half the arbiter's own threshold for `short`, so that it looks before it is.
const WINDOW: Duration = Duration::from_secs(2);

/// A pressure trigger, armed where and while there is a pressure file.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    armed: Option<Armed>,
    /// A file that refused a trigger is not asked again.
    refused: Option<PathBuf>,
}

#[derive(Debug)]
struct Armed {
    path: PathBuf,
    trigger: Trigger,
    ready: AsyncFd<OwnedFd>,
}

impl Pressure {
    /// Arms the trigger on that file unless it is armed there, or was refused.
    pub(crate) fn arm(&mut self, path: Option<&Path>) {
        let Some(path) = path else {
            self.armed = None;
            return;
        };
        let same = |known: &Path| known == path;
        if self.armed.as_ref().is_some_and(|armed| same(&armed.path))
            || self.refused.as_deref().is_some_and(same)
        {
            return;
        }
        match arm(path) {
            Ok(armed) => self.armed = Some(armed),
            Err(error) => {
                tracing::warn!(%error, "not woken by stalls of the host: they are seen at the next tick");
                self.refused = Some(path.to_owned());
                self.armed = None;
            }
        }
    }

    /// Waits for a stall; for ever where nothing is armed. May be cancelled at any time.
    pub(crate) async fn event(&mut self) {
        let Some(armed) = &self.armed else { return pending().await };
        let woken = match armed.ready.ready(Interest::PRIORITY | Interest::ERROR).await {
            Ok(mut guard) => {
                guard.clear_ready();
                armed.trigger.check().map(drop).map_err(|e| e.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = woken {
            tracing::debug!(%error, "the pressure trigger is gone");
            self.armed = None;
        }
    }
}

fn arm(path: &Path) -> Result<Armed, PsiError> {
    let trigger = Trigger::new(path, Threshold::new(Kind::Some, STALL, WINDOW)?)?;
    let path = path.to_owned();
    match readiness::watch(&trigger, Interest::PRIORITY | Interest::ERROR) {
        Ok(ready) => Ok(Armed { path, trigger, ready }),
        Err(source) => Err(PsiError::Wait { path, source }),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_quiet_host_and_a_missing_file_wake_nobody() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut pressure = Pressure::default();
            pressure.arm(Some(Path::new("/nowhere/memory.pressure")));
            assert!(pressure.armed.is_none());
            tokio::time::timeout(Duration::from_millis(20), pressure.event()).await.unwrap_err();
            pressure.arm(None);
            tokio::time::timeout(Duration::from_millis(20), pressure.event()).await.unwrap_err();
        });
    }
}
