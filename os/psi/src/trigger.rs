//! Being woken when tasks wait too long.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{PsiError, pressure::is_absent};

/// Whose waiting counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// That of at least one task.
    Some,
    /// That of all tasks at once.
    Full,
}

/// So much waiting within so much time. The kernel tells at most once per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    kind: Kind,
    stall: Duration,
    window: Duration,
}

impl Threshold {
    /// The shortest window (`WINDOW_MIN_US` in the kernel's `kernel/sched/psi.c`).
    pub const SHORTEST_WINDOW: Duration = Duration::from_millis(500);
    /// The longest window (`WINDOW_MAX_US`).
    pub const LONGEST_WINDOW: Duration = Duration::from_secs(10);
    /// Without CAP_SYS_RESOURCE a window must be a multiple of this (`PSI_FREQ`).
    pub const UNPRIVILEGED_STEP: Duration = Duration::from_secs(2);

    /// `stall` within `window`, both in whole microseconds.
    pub fn new(kind: Kind, stall: Duration, window: Duration) -> Result<Self, PsiError> {
        let fits = (Self::SHORTEST_WINDOW..=Self::LONGEST_WINDOW).contains(&window);
        if !fits || stall.as_micros() == 0 || stall > window {
            return Err(PsiError::BadThreshold { stall, window });
        }
        Ok(Self { kind, stall, window })
    }

    /// Whether a program without CAP_SYS_RESOURCE may have it (Linux 6.5 on).
    #[must_use]
    pub fn is_for_everybody(&self) -> bool {
        self.window.as_micros().is_multiple_of(Self::UNPRIVILEGED_STEP.as_micros())
    }

    /// What is written to the pressure file.
    fn text(&self) -> String {
        let kind = match self.kind {
            Kind::Some => "some",
            Kind::Full => "full",
        };
        format!("{kind} {} {}", self.stall.as_micros(), self.window.as_micros())
    }
}

/// What a wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// The threshold was passed.
    Pressure,
    /// The time is over.
    TimedOut,
}

/// An armed trigger. Dropping it disarms it.
#[derive(Debug)]
pub struct Trigger {
    file: File,
    path: PathBuf,
}

impl Trigger {
    /// Arms a trigger on a pressure file. Costs the kernel a timer while tasks stall, nothing otherwise.
    pub fn new(path: &Path, threshold: Threshold) -> Result<Self, PsiError> {
        let text = threshold.text();
        let armed = OpenOptions::new().read(true).write(true).open(path).and_then(|mut file| {
            // One write, ended by a NUL as psi.rst has it.
            file.write_all(format!("{text}\0").as_bytes())?;
            Ok(file)
        });
        match armed {
            Ok(file) => Ok(Self { file, path: path.to_path_buf() }),
            Err(err) if is_absent(&err) => Err(PsiError::Absent { path: path.to_path_buf() }),
            Err(source) => Err(PsiError::Refused { path: path.to_path_buf(), text, source }),
        }
    }

    /// The pressure file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the threshold is passed, at most `within`. [`PsiError::Gone`] once the group is removed.
    pub fn wait(&self, within: Duration) -> Result<Wakeup, PsiError> {
        let begun = Instant::now();
        loop {
            let left = within.saturating_sub(begun.elapsed());
            let timeout = Timespec::try_from(left).map_err(|err| self.failed(io::Error::other(err)))?;
            let mut fds = [PollFd::new(&self.file, PollFlags::PRI)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(Wakeup::TimedOut),
                Ok(_) => return self.judge(fds.first().map_or(PollFlags::ERR, PollFd::revents)),
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(self.failed(err.into())),
            }
        }
    }

    /// Says what a wake-up of an event loop means, without waiting. [`Wakeup::TimedOut`] when there is no news,
    /// which with an event loop that asks the kernel itself is the usual answer: being woken by POLLPRI *was* the
    /// news, and it is told once. So call this to tell pressure from a group that is gone.
    pub fn check(&self) -> Result<Wakeup, PsiError> {
        self.wait(Duration::ZERO)
    }

    pub(crate) fn judge(&self, seen: PollFlags) -> Result<Wakeup, PsiError> {
        // A removed group raises both; only the error lasts.
        if seen.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Err(PsiError::Gone { path: self.path.clone() });
        }
        Ok(Wakeup::Pressure)
    }

    pub(crate) fn failed(&self, source: io::Error) -> PsiError {
        PsiError::Wait { path: self.path.clone(), source }
    }
}

impl AsFd for Trigger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Trigger {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_is_what_the_kernel_documents() {
        let threshold =
            Threshold::new(Kind::Some, Duration::from_millis(150), Duration::from_secs(2)).unwrap();
        assert_eq!(threshold.text(), "some 150000 2000000");
        assert!(threshold.is_for_everybody());
        let threshold =
            Threshold::new(Kind::Full, Duration::from_millis(50), Duration::from_secs(1)).unwrap();
        assert_eq!(threshold.text(), "full 50000 1000000");
        assert!(!threshold.is_for_everybody());
    }

    proptest! {
        #[test]
        fn exactly_the_thresholds_a_kernel_takes(stall_us in 0u64..12_000_000, window_us in 0u64..12_000_000) {
            let (stall, window) = (Duration::from_micros(stall_us), Duration::from_micros(window_us));
            let want = (500_000..=10_000_000).contains(&window_us) && (1..=window_us).contains(&stall_us);
            prop_assert_eq!(Threshold::new(Kind::Some, stall, window).is_ok(), want);
        }
    }
}
