//! A thread that waits for a trigger.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::{PsiError, Trigger};

/// Waits for a trigger in a thread of its own and calls back. Dropping it ends the thread and waits for it.
#[derive(Debug)]
pub struct Watch {
    /// Written to when the thread shall end.
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `tell(Ok(()))` each time the threshold is passed, at most once per window. After `tell(Err(_))`, for
    /// instance when the group was removed, nothing more is told. `tell` runs in the watch's thread and must not
    /// block: let it wake somebody.
    pub fn start(
        trigger: Trigger,
        tell: impl FnMut(Result<(), PsiError>) + Send + 'static,
    ) -> Result<Self, PsiError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|err| trigger.failed(err.into()))?;
        let stop = Arc::new(stop);
        let path = trigger.path().to_path_buf();
        let heard = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("psi".to_owned())
            .spawn(move || wait(&trigger, &heard, tell))
            .map_err(|source| PsiError::Wait { path, source })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Neither can fail in a way that could be mended here: an eventfd takes 2^64-2 such writes, and a thread
        // that panicked has said so.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn wait(trigger: &Trigger, stop: &OwnedFd, mut tell: impl FnMut(Result<(), PsiError>)) {
    loop {
        let mut fds = [PollFd::new(trigger, PollFlags::PRI), PollFd::new(stop, PollFlags::IN)];
        if let Err(err) = poll(&mut fds, None) {
            if err == rustix::io::Errno::INTR {
                continue;
            }
            return tell(Err(trigger.failed(io::Error::from(err))));
        }
        let [pressure, stopped] = fds.map(|fd| fd.revents());
        if !stopped.is_empty() {
            return;
        }
        match trigger.judge(pressure) {
            Ok(_) => tell(Ok(())),
            Err(error) => return tell(Err(error)),
        }
    }
}
