//! What this process knows of its VM and can do with it: everything but the sockets by which it is asked.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::Context;
use plimsoll_api::control::{ErrorKind, Op, Reply};
use plimsoll_shm::{Notifier, SharedWords};
use plimsoll_units::{BalloonSize, Bytes};
use plimsoll_vhost_user::Session;
use plimsoll_vhost_user::layout::Layout;
use rustix::event::Timespec;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::device::BalloonDevice;
use super::line::Line;
use super::prepare::STATS_INTERVAL;
use super::status::{DEVICE, status};
use crate::args::Args;

/// How often the guest is asked for statistics unless somebody says otherwise, in milliseconds.
const STATS_DEFAULT_MS: u32 = 1000;

/// The intervals that may be asked for, in milliseconds; 0 stops asking.
const STATS_RANGE_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// A VM.
pub(crate) struct Vm {
    pub(crate) args: Args,
    pub(crate) session: Session<BalloonDevice>,
    pub(crate) layout: Layout,
    private: SharedWords,
    poke: Notifier,
    /// Readable when the guest is to be asked for statistics.
    pub(crate) timer: OwnedFd,
    /// From the agent in the guest, where there may be one.
    pub(crate) line: Option<Line>,
}

impl Vm {
    pub(crate) fn new(
        args: Args,
        session: Session<BalloonDevice>,
        layout: Layout,
        private: SharedWords,
        poke: Notifier,
        line: Option<Line>,
    ) -> anyhow::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Boottime, flags).context("cannot create a timer")?;
        let vm = Self { args, session, layout, private, poke, timer, line };
        vm.set_timer()?;
        Ok(vm)
    }

    /// Does what a peer asks. No answer yet to who waits for the agent, unless it has spoken.
    pub(crate) fn carry_out(&mut self, id: u64, op: Op) -> Option<Reply> {
        match op {
            Op::Status => {}
            Op::SetBalloon { pages } if pages.0.bytes() > self.args.maxmem => {
                return Some(out_of_range(id, too_many(pages, self.args.maxmem)));
            }
            Op::SetBalloon { pages } => {
                if self.session.device_mut().balloon_mut().config().set_num_pages(pages) {
                    self.poke.poke();
                }
            }
            Op::StatsInterval { ms } if ms != 0 && !STATS_RANGE_MS.contains(&ms) => {
                let message = format!("{ms} ms is no interval; it is 100 to 60000, or 0 to stop asking");
                return Some(out_of_range(id, message));
            }
            Op::StatsInterval { ms } => {
                self.private[STATS_INTERVAL].store(u64::from(ms) + 1, SeqCst);
                if let Err(error) = self.set_timer() {
                    tracing::warn!(%error, "the interval of statistics stays as it was");
                }
            }
            Op::AwaitAgent { after } if after == self.line.as_ref().map_or(0, Line::urgent) => return None,
            Op::AwaitAgent { .. } => {}
            Op::SetTarget { .. } | Op::AwaitPager { .. } | Op::Sweep | Op::Reset => {
                let message = "this VM's memory is not populated on demand; its balloon sets how much it has";
                return Some(Reply::error(id, ErrorKind::Unsupported, message));
            }
        }
        Some(Reply::ok(id, status(&self.session, &self.layout, self.args.maxmem, self.line.as_ref())))
    }

    /// Something has come on the agent's line.
    pub(crate) fn listen(&mut self, now: Instant) {
        let generation = self.layout.generation(DEVICE);
        if let Some(line) = &mut self.line {
            line.ready(generation, now);
        }
    }

    /// Returns the statistics buffer, which asks the guest to fill it anew.
    pub(crate) fn ask_for_stats(&mut self) {
        // Nobody is interested in how many ticks have passed.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        if let Some((ring, head)) = self.session.device_mut().take_held() {
            self.session.complete(ring, head, 0);
        }
    }

    fn interval_ms(&self) -> u32 {
        let word = self.private[STATS_INTERVAL].load(SeqCst);
        word.checked_sub(1).and_then(|ms| u32::try_from(ms).ok()).unwrap_or(STATS_DEFAULT_MS)
    }

    fn set_timer(&self) -> anyhow::Result<()> {
        let every = Duration::from_millis(u64::from(self.interval_ms()));
        let every = Timespec::try_from(every).unwrap_or_default();
        let setting = Itimerspec { it_interval: every, it_value: every };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)
            .context("cannot set the timer for statistics")?;
        Ok(())
    }
}

fn out_of_range(id: u64, message: String) -> Reply {
    Reply::error(id, ErrorKind::OutOfRange, message)
}

fn too_many(pages: BalloonSize, maxmem: Bytes) -> String {
    let have = maxmem.pages_floor().0;
    format!("a balloon of {} pages is larger than the guest, which has {have}", pages.0.0)
}
