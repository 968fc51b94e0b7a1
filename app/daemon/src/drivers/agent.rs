//! The agent inside a guest, where the daemon hears it itself: behind a virtio-serial port of a QEMU.
//!
//! Everything that comes is hostile. How much is read is bounded, so that a guest that sends as fast as it can costs the
//! daemon less than a hundredth of a core; what is not read stays with QEMU, and the guest waits. A guest without an
//! agent sends nothing and costs nothing.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use plimsoll_agent_proto::Intake;
use plimsoll_api::control::AgentCounters;
use plimsoll_model::AgentSample;
use plimsoll_units::MonoTime;
use tokio::{net::UnixStream, sync::Notify, time::sleep};

use super::alarm::Alarm;
use super::backoff::Backoff;
use super::peer;
use crate::clock;

/// The most that is read at once, in bytes: some 20 reports.
const READ: usize = 4096;

/// From one reading to the next. A report is at most this late, and only where another came just before it.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The same after an urgent report: a guest makes the daemon tick five times a second at most. An agent repeats itself
/// while the distress lasts.
pub(super) const URGENT_PAUSE: Duration = Duration::from_millis(200);

const RECONNECT: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// What was heard of one guest's agent. Shared by the task that listens and the driver that tells.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    intake: Mutex<Intake>,
    /// Another guest begins.
    reboot: Notify,
}

impl Ear {
    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest report of this guest.
    pub(crate) fn sample(&self) -> Option<AgentSample> {
        let (report, at_ms) = self.intake().latest()?;
        Some(AgentSample { at: MonoTime(at_ms.saturating_mul(1000)), stats: report.stats })
    }

    /// What came so far.
    pub(crate) fn counters(&self) -> AgentCounters {
        self.intake().counters()
    }

    /// The guest was rebooted: what it said is forgotten, and what it sent and nobody has read yet is thrown away.
    pub(crate) fn forget(&self) {
        self.intake().forget();
        self.reboot.notify_one();
    }

    /// Listens at `socket` until it is dropped; `alarm` is rung when the agent says that its guest is in distress.
    pub(super) async fn listen(self: Arc<Self>, socket: PathBuf, owner: u32, alarm: Alarm) {
        let mut backoff = RECONNECT;
        loop {
            let why = match peer::connect(&socket, owner).await {
                Ok((stream, _)) => self.hear(&stream, &alarm, &mut backoff).await,
                Err(error) => error.to_string(),
            };
            tracing::debug!(socket = %socket.display(), %why, "the agent's line is not open");
            sleep(backoff.failed()).await;
        }
    }

    /// Takes in what comes until the connection ends or another guest begins; says which.
    async fn hear(&self, stream: &UnixStream, alarm: &Alarm, backoff: &mut Backoff) -> String {
        let mut buffer = [0; READ];
        loop {
            let ready = tokio::select! {
                biased;
                () = self.reboot.notified() => return "its guest was rebooted".into(),
                ready = stream.readable() => ready,
            };
            let allowed = self.intake().allowance(now_ms()).min(READ);
            if allowed == 0 {
                sleep(PAUSE).await;
                continue;
            }
            let part = buffer.get_mut(..allowed).unwrap_or_default();
            let n = match ready.and_then(|()| stream.try_read(part)) {
                Ok(0) => return "it was closed".into(),
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return error.to_string(),
            };
            backoff.succeeded();
            let urgent = self.take_in(part.get(..n).unwrap_or_default());
            if urgent {
                alarm.ring();
            }
            sleep(if urgent { URGENT_PAUSE } else { PAUSE }).await;
        }
    }

    /// Whether it was urgent.
    fn take_in(&self, bytes: &[u8]) -> bool {
        let mut intake = self.intake();
        intake.feed(now_ms(), bytes);
        intake.take_urgent()
    }
}

fn now_ms() -> u64 {
    clock::now().0 / 1000
}

#[cfg(test)]
mod test {
    use plimsoll_agent_proto::{Report, encode};
    use plimsoll_model::AgentStats;
    use plimsoll_units::Bytes;
    use tokio::{io::AsyncWriteExt, net::UnixListener, time::timeout};

    use super::super::Slot;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn frame(seq: u64, urgent: bool) -> Vec<u8> {
        let stats = AgentStats { free: Some(Bytes(seq)), ..AgentStats::default() };
        let mut bytes = Vec::new();
        encode(&Report { session: 1, seq, urgent, stats }, &mut bytes);
        bytes
    }

    /// A listener in the place of QEMU, and an ear.
    struct Rig {
        ear: Arc<Ear>,
        listener: UnixListener,
        wake: Arc<Notify>,
        task: tokio::task::JoinHandle<()>,
        _dir: tempfile::TempDir,
    }

    impl Rig {
        fn new(owner: u32) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("agent.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let (ear, wake) = (Arc::new(Ear::default()), Arc::new(Notify::new()));
            let slot = Slot::new(plimsoll_units::MemTarget::default());
            let alarm = Alarm::new(slot, Arc::clone(&wake));
            let task = tokio::spawn(Arc::clone(&ear).listen(path, owner, alarm));
            Self { ear, listener, wake, task, _dir: dir }
        }

        async fn accept(&self) -> UnixStream {
            timeout(LIMIT, self.listener.accept()).await.unwrap().unwrap().0
        }

        /// Waits until the ear has heard that.
        async fn heard(&self, what: impl Fn(&Ear) -> bool) {
            let until = tokio::time::Instant::now() + LIMIT;
            while !what(&self.ear) {
                assert!(tokio::time::Instant::now() < until, "{:?}", self.ear);
                sleep(Duration::from_millis(5)).await;
            }
        }

        fn free(&self) -> Option<u64> {
            self.ear.sample().map(|sample| sample.stats.free.unwrap().0)
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn reports_are_taken_urgent_ones_wake_and_a_lost_line_is_opened_again() {
        run(async {
            let rig = Rig::new(me());
            let mut guest = rig.accept().await;
            guest.write_all(b"[    1.0] console: noise\r\n").await.unwrap();
            guest.write_all(&frame(1, false)).await.unwrap();
            rig.heard(|ear| ear.sample().is_some()).await;
            let sample = rig.ear.sample().unwrap();
            assert!(sample.at <= clock::now() && clock::now().millis_since(sample.at) < 10_000);
            timeout(Duration::from_millis(20), rig.wake.notified()).await.unwrap_err();
            guest.write_all(&frame(2, true)).await.unwrap();
            timeout(LIMIT, rig.wake.notified()).await.unwrap();
            assert_eq!(rig.free(), Some(2));

            guest.write_all(&frame(3, false)[..20]).await.unwrap();
            drop(guest);
            let mut guest = rig.accept().await;
            assert_eq!(rig.free(), Some(2), "what was known stands");
            guest.write_all(&frame(4, false)).await.unwrap();
            rig.heard(|ear| ear.counters().frames == 3).await;
        });
    }

    #[test]
    fn nothing_of_a_guest_survives_its_reboot() {
        run(async {
            let rig = Rig::new(me());
            let mut guest = rig.accept().await;
            guest.write_all(&frame(1, false)).await.unwrap();
            rig.heard(|ear| ear.sample().is_some()).await;
            // More than is read at once: the rest is still on its way when the guest is reset.
            guest.write_all(&frame(2, false).repeat(500)).await.unwrap();
            rig.ear.forget();
            assert_eq!(rig.free(), None);
            let mut next = rig.accept().await;
            assert_eq!(rig.free(), None);
            next.write_all(&frame(3, false)).await.unwrap();
            rig.heard(|ear| ear.sample().is_some()).await;
            assert_eq!(rig.free(), Some(3));
        });
    }

    #[test]
    fn a_flood_stays_where_it_is() {
        run(async {
            let rig = Rig::new(me());
            let mut guest = rig.accept().await;
            let flood = async {
                let mut sent = 0;
                loop {
                    sent += guest.write(&[0xF5; 4096]).await.unwrap();
                    if sent > 16 << 20 {
                        return;
                    }
                }
            };
            timeout(Duration::from_millis(1500), flood).await.expect_err("it has to wait");
            assert_eq!(rig.ear.counters().dropped_bytes, 0, "what was read was paid for");
            assert!(rig.ear.counters().skipped_bytes > 1000);
        });
    }

    #[test]
    fn a_stranger_is_not_listened_to() {
        run(async {
            let rig = Rig::new(me() + 4242);
            let mut guest = rig.accept().await;
            // It has hung up by now, or will.
            let _ = guest.write_all(&frame(1, true)).await;
            rig.accept().await;
            assert_eq!((rig.free(), rig.ear.counters().frames), (None, 0));
        });
    }
}
