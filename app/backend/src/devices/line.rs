//! The line from the agent in the guest.
//!
//! Everything that comes is hostile. How much is read is bounded, so that a guest that sends as fast as it can costs
//! this process less than a hundredth of a core: what is not read stays in the socket, and the guest waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use plimsoll_agent_proto::{Intake, Report};
use plimsoll_api::control::AgentCounters;
use rustix::io::Errno;
use rustix::net::RecvFlags;

/// The most that is read at once, in bytes: some 20 reports.
const READ: usize = 4096;

/// From one reading to the next. A report is at most this late, and only where another came just before it.
const PAUSE: Duration = Duration::from_millis(50);

/// The most that is thrown away when another guest begins, in readings: more than any socket holds (net.core.wmem_max).
const LEFT_OVER: usize = 256;

/// The host's end of the line, and what was heard.
pub(crate) struct Line {
    /// Gone once the other end is.
    socket: Option<OwnedFd>,
    intake: Intake,
    /// Readings in which something was urgent.
    urgent: u64,
    /// The intake's clock counts from here.
    start: Instant,
    /// Nothing is read before.
    resume: Instant,
    /// The guest that speaks.
    generation: u64,
}

impl Line {
    /// Over the host's end of a stream socket. `anew`: another guest begins, and what the last one sent is not its own.
    pub(crate) fn new(socket: OwnedFd, anew: bool, now: Instant) -> Self {
        let mut line = Self {
            socket: Some(socket),
            intake: Intake::new(),
            urgent: 0,
            start: now,
            resume: now,
            generation: 0,
        };
        if anew {
            line.throw_away();
        }
        line
    }

    /// What to wait on for more to read; nothing while it rests.
    pub(crate) fn poll(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().filter(|_| now >= self.resume).map(AsFd::as_fd)
    }

    /// When it has rested, if it rests.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        (self.socket.is_some() && now < self.resume).then_some(self.resume)
    }

    /// Something has come, or the other end is gone. `generation` is the guest's: what another said is forgotten.
    pub(crate) fn ready(&mut self, generation: u64, now: Instant) {
        if generation != self.generation {
            self.generation = generation;
            self.intake.forget();
        }
        let at = self.millis(now);
        self.resume = now + PAUSE.max(Duration::from_millis(self.intake.wait_ms(at)));
        let mut buffer = [0; READ];
        let allowed = self.intake.allowance(at).min(READ);
        let Some(n) = self.receive(buffer.get_mut(..allowed).unwrap_or_default()) else { return };
        self.intake.feed(at, buffer.get(..n).unwrap_or_default());
        if self.intake.take_urgent() {
            self.urgent = self.urgent.saturating_add(1);
        }
    }

    /// How often the agent was urgent so far. Reports that came together count as one.
    pub(crate) fn urgent(&self) -> u64 {
        self.urgent
    }

    /// The latest report of this guest, and how old it is in milliseconds.
    pub(crate) fn latest(&self, generation: u64, now: Instant) -> Option<(Report, u64)> {
        let (report, at) = self.intake.latest().filter(|_| generation == self.generation)?;
        Some((report, self.millis(now).saturating_sub(at)))
    }

    /// What came so far.
    pub(crate) fn counters(&self) -> AgentCounters {
        self.intake.counters()
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn throw_away(&mut self) {
        let mut buffer = [0; READ];
        for _ in 0..LEFT_OVER {
            if self.receive(&mut buffer).is_none() {
                return;
            }
        }
    }

    /// Reads what is there; `None` if nothing is, or ever will be.
    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if buffer.is_empty() {
            return None;
        }
        match rustix::net::recv(self.socket.as_ref()?, buffer, RecvFlags::DONTWAIT) {
            Ok((n, _)) if n > 0 => Some(n),
            Err(Errno::AGAIN | Errno::INTR) => None,
            end => {
                tracing::info!(?end, "the agent's line is closed");
                self.socket = None;
                None
            }
        }
    }
}

#[cfg(test)]
mod test {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    use plimsoll_agent_proto::encode;
    use plimsoll_model::AgentStats;
    use plimsoll_units::Bytes;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn line(anew: bool, before: &[u8]) -> (Line, UnixStream, Instant) {
        let (host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(before).unwrap();
        let now = Instant::now();
        (Line::new(host.into(), anew, now), guest, now)
    }

    fn frame(seq: u64, urgent: bool) -> Vec<u8> {
        let stats = AgentStats { free: Some(Bytes(seq)), ..AgentStats::default() };
        let mut bytes = Vec::new();
        encode(&Report { session: 1, seq, urgent, stats }, &mut bytes);
        bytes
    }

    fn free(line: &Line, generation: u64, now: Instant) -> Option<u64> {
        line.latest(generation, now).map(|(report, _)| report.stats.free.unwrap().0)
    }

    #[test]
    fn a_report_is_taken_and_ages() {
        let (mut line, mut guest, now) = line(false, &[]);
        assert!(line.poll(now).is_some() && line.deadline(now).is_none());
        guest.write_all(&frame(1, false)).unwrap();
        line.ready(3, now + MS);
        assert_eq!((free(&line, 3, now), line.urgent()), (Some(1), 0));
        assert_eq!(line.latest(3, now + 400 * MS).map(|(_, age)| age), Some(399));
        assert!(line.poll(now + 2 * MS).is_none(), "it rests");
        assert_eq!(line.deadline(now + 2 * MS), Some(now + MS + PAUSE));
        guest.write_all(&[frame(2, true), frame(3, true), frame(4, false)].concat()).unwrap();
        line.ready(3, now + 60 * MS);
        assert_eq!((free(&line, 3, now), line.urgent(), line.counters().frames), (Some(4), 1, 4));
    }

    #[test]
    fn what_another_guest_said_is_forgotten() {
        let (mut line, mut guest, now) = line(true, &frame(1, true).repeat(100));
        line.ready(1, now);
        assert_eq!((free(&line, 1, now), line.counters()), (None, AgentCounters::default()));
        guest.write_all(&frame(2, false)).unwrap();
        line.ready(1, now + 100 * MS);
        assert_eq!(free(&line, 1, now), Some(2));
        assert_eq!(free(&line, 2, now), None, "before the next guest has said anything");
        guest.write_all(&frame(3, false)[..9]).unwrap();
        line.ready(2, now + 200 * MS);
        assert_eq!(free(&line, 2, now), None);
    }

    #[test]
    fn a_flood_is_left_to_wait_in_the_socket() {
        let (mut line, mut guest, start) = line(false, &[]);
        guest.set_nonblocking(true).unwrap();
        let noise = [0xF5; 4096];
        let (mut taken, mut readings) = (0, 0);
        for ms in 0..2000 {
            loop {
                match guest.write(&noise) {
                    Ok(n) => taken += n,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        break;
                    }
                }
            }
            let now = start + ms * MS;
            if line.poll(now).is_some() {
                line.ready(1, now);
                readings += 1;
            }
        }
        assert!(readings <= 41, "{readings}");
        assert!(taken < 1 << 20, "{taken} bytes in two seconds, what the socket holds among them");
        assert_eq!(line.counters().dropped_bytes, 0, "what was read was paid for");
    }

    #[test]
    fn the_end_of_the_line_is_no_end_of_the_world() {
        let (mut line, mut guest, now) = line(false, &frame(7, false));
        guest.read_exact(&mut []).unwrap();
        drop(guest);
        line.ready(1, now);
        assert_eq!(free(&line, 1, now), Some(7));
        line.ready(1, now + 60 * MS);
        assert!(line.poll(now + 200 * MS).is_none() && line.deadline(now + 61 * MS).is_none());
        assert_eq!(free(&line, 1, now), Some(7), "it ages, and whoever asks sees that");
    }
}
