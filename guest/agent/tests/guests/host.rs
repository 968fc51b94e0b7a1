//! The host's end of an agent's line.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use plimsoll_agent_proto::{Counters, Intake, Report, encode_pace};
use plimsoll_testbed::BedError;
use plimsoll_testbed::guest::Guest;
use plimsoll_testbed::paths;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

/// Longer than any step takes under emulation on a busy machine.
pub(crate) const STEP: Duration = Duration::from_secs(120);

/// An error when the images have no agent.
pub(crate) fn agent_built() -> Result<(), BedError> {
    let path = paths::guest_agent();
    let missing = BedError::Missing { what: format!("the agent {}", path.display()), package: "" };
    if path.is_file() { Ok(()) } else { Err(missing) }
}

/// Reads a line as a back end does.
pub(crate) struct Host {
    stream: UnixStream,
    intake: Intake,
    begun: Instant,
    urgent: bool,
}

impl Host {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).expect("sets");
        Self { stream, intake: Intake::new(), begun: Instant::now(), urgent: false }
    }

    /// Connects to a QEMU's socket.
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = poll_until(STEP, "the agent's socket", || {
            UnixStream::connect(path).map_err(|error| error.to_string())
        });
        Self::new(stream.expect("listens"))
    }

    pub(crate) fn counters(&self) -> Counters {
        self.intake.counters()
    }

    pub(crate) fn ask_for(&mut self, interval_ms: u32) {
        let mut frame = Vec::new();
        encode_pace(interval_ms, &mut frame);
        self.stream.write_all(&frame).expect("the line takes a frame");
    }

    /// Writes what no agent can make sense of.
    pub(crate) fn babble(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the line takes it");
    }

    fn pump(&mut self) {
        let mut buffer = [0; 16 << 10];
        loop {
            let now_ms = u64::try_from(self.begun.elapsed().as_millis()).expect("fits");
            let allowed = self.intake.allowance(now_ms);
            match self.stream.read(&mut buffer[..allowed]) {
                Ok(0) => break,
                Ok(n) => self.intake.feed(now_ms, &buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the line: {error}"),
            }
        }
        self.urgent |= self.intake.take_urgent();
    }

    /// Reads until a report is what is wanted.
    pub(crate) fn until(&mut self, limit: Duration, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        let found = poll_until(limit, what, || {
            self.pump();
            let report = self.intake.latest().map(|(report, _)| report);
            report.filter(&wanted).ok_or_else(|| format!("{report:?} {:?}", self.counters()))
        });
        found.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The report after the latest one.
    pub(crate) fn next(&mut self) -> Report {
        self.pump();
        let last = self.intake.latest().map_or(0, |(report, _)| report.seq);
        self.until(STEP, "another report", |report| report.seq != last)
    }

    /// Reads until the agent has nothing urgent to say for three reports in a row.
    pub(crate) fn until_quiet(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            quiet = if self.next().urgent { 0 } else { quiet + 1 };
        }
        self.urgent = false;
    }

    /// Reads nothing until the line is full, and then until a report is missing. Returns how many are.
    pub(crate) fn until_reports_are_lost(&mut self) -> u64 {
        let mut last = self.next().seq;
        let mut pause = Duration::from_secs(2);
        loop {
            // Not to wait for a state: this is the silence that is tried out, and it is doubled until it shows.
            std::thread::sleep(pause);
            let frames = self.counters().frames;
            let seq = self.next().seq;
            let lost = (seq - last).saturating_sub(self.counters().frames - frames);
            last = seq;
            if lost > 0 {
                return lost;
            }
            assert!(pause < STEP, "report {last}, and none is lost");
            pause *= 2;
        }
    }

    /// How long it takes until an urgent report is here.
    pub(crate) fn until_urgent(&mut self) -> Duration {
        let begun = Instant::now();
        // No pauses: they would be counted in.
        while !self.urgent {
            assert!(begun.elapsed() < STEP, "no urgent report; {:?}", self.intake.latest());
            std::thread::yield_now();
            self.pump();
        }
        self.urgent = false;
        begun.elapsed()
    }
}

/// A report taken now agrees with what the guest's own kernel says now.
pub(crate) fn agrees_with_meminfo(guest: &Guest, host: &mut Host) {
    let agreed = poll_until(STEP, "a report that agrees with /proc/meminfo", || {
        let report = host.next().stats;
        let own = guest.send("meminfo", STEP).map_err(|error| error.to_string())?;
        let near = |reported: Option<Bytes>, key: &str, by: Bytes| {
            let own = own.number(key).map(Bytes);
            matches!((reported, own), (Some(a), Some(b)) if a.minus(b).max(b.minus(a)) <= by)
        };
        let same = near(report.total, "total", Bytes(0))
            && near(report.free, "free", Bytes::mib(2))
            && near(report.available, "available", Bytes::mib(2))
            && near(report.committed, "committed", Bytes::mib(2))
            && near(report.swap_total, "swap_total", Bytes(0))
            && near(report.swap_free, "swap_free", Bytes(0));
        if same { Ok(report) } else { Err(format!("{report:?}, and the guest says {}", own.text())) }
    });
    let report = agreed.unwrap_or_else(|error| panic!("{error}"));
    // What is no line of the workload's answer has to be there and to be sane all the same.
    let total = report.total.expect("compared");
    let parts = [report.cached, report.active_file, report.anon, report.reserve];
    assert!(parts.iter().all(|part| part.is_some_and(|part| part < total)), "{report:?}");
    let counts =
        [report.major_faults, report.alloc_stalls, report.oom_kills, report.refaults, report.swap_in];
    assert!(counts.iter().all(Option::is_some), "{report:?}");
}
