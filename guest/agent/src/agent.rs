//! The loop: look, tell, wait.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plimsoll_agent_proto::{MAX_FRAME, PaceDecoder, Report, encode};
use plimsoll_psi::{Kind, Threshold, Trigger, Wakeup};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::args::Args;
use crate::distress::Watch;
use crate::error::AgentError;
use crate::line::Line;
use crate::signs::Signs;
use crate::sources::Sources;
use crate::{note, port, print, protect};

/// Time between two attempts at something that fails now.
const RETRY_MS: u64 = 100;
/// How long a port may take to appear after the start, while the guest still boots.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the host may take to accept the one report of `--once`.
const ONCE_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two attempts to open a port that is gone.
const REOPEN_MS: u64 = 1000;
/// Time between two looks at what the host says.
const HEAR_MS: u64 = 500;
/// Stalls of this length in this span of time wake the agent before its next look.
const STALL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// The same, for an agent without CAP_SYS_RESOURCE.
const STALL_FOR_ALL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Runs until the process is ended, or until one report is out when that is all that was asked for.
pub(crate) fn run(args: &Args) -> Result<(), AgentError> {
    let mut agent = Agent::start(args)?;
    if args.once {
        return agent.once();
    }
    protect::protect();
    loop {
        agent.step()?;
        agent.wait();
    }
}

struct Agent {
    sources: Sources,
    watch: Watch,
    trigger: Option<Trigger>,
    pressure: bool,
    way: Option<Way>,
    print: bool,
    session: u32,
    seq: u64,
    interval_ms: u32,
    begun: Instant,
    next_look_ms: u64,
    last_report_ms: Option<u64>,
    frame: Vec<u8>,
}

/// The way to the host, which may be lost and found.
struct Way {
    /// As given on the command line; else it is searched for, and may have another name each time.
    named: Option<PathBuf>,
    path: PathBuf,
    line: Option<Line>,
    paces: PaceDecoder,
    retry_ms: u64,
    next_hear_ms: u64,
}

impl Agent {
    fn start(args: &Args) -> Result<Self, AgentError> {
        let sources = Sources::open(Path::new("/proc"))?;
        let silent = args.print && args.port.is_none();
        let way = if silent { None } else { Some(Way::open(args.port.as_deref())?) };
        Ok(Self {
            trigger: sources.pressure_path().and_then(|path| trigger(&path)),
            sources,
            watch: Watch::new(),
            pressure: false,
            way,
            print: args.print,
            session: session(),
            seq: 0,
            interval_ms: args.interval_ms,
            begun: Instant::now(),
            next_look_ms: 0,
            last_report_ms: None,
            frame: Vec::with_capacity(MAX_FRAME),
        })
    }

    /// One report, taken by the host or printed.
    fn once(&mut self) -> Result<(), AgentError> {
        let stats = self.sources.look(|_| true)?;
        let now_ms = self.now_ms();
        let mut taken = self.report(now_ms, stats, Signs::NONE)?;
        while let Some(way) = &mut self.way {
            if taken && way.is_flushed() {
                break;
            }
            if self.begun.elapsed() > ONCE_PATIENCE {
                return Err(AgentError::NotTaken { path: way.path.clone() });
            }
            std::thread::sleep(Duration::from_millis(RETRY_MS));
            taken = taken || way.send(now_ms, &self.frame);
        }
        Ok(())
    }

    /// Looks, and tells when it is time to.
    fn step(&mut self) -> Result<(), AgentError> {
        let now_ms = self.now_ms();
        let interval_ms = u64::from(self.interval_ms);
        let regular = self.last_report_ms.is_none_or(|last| now_ms.saturating_sub(last) >= interval_ms);
        let Self { sources, watch, .. } = self;
        let stats = sources.look(|stats| regular || watch.wants_counters(stats))?;
        let pressure = std::mem::take(&mut self.pressure);
        let signs = watch.look(now_ms, &stats, self.interval_ms, pressure);
        let urgent = watch.is_due(now_ms, signs);
        if urgent || regular {
            self.report(now_ms, stats, if urgent { signs } else { Signs::NONE })?;
        }
        if let Some(interval_ms) = self.way.as_mut().and_then(|way| way.keep(now_ms)) {
            self.interval_ms = interval_ms;
        }
        let regular_ms =
            self.last_report_ms.map_or(0, |last| last.saturating_add(u64::from(self.interval_ms)));
        self.next_look_ms = now_ms.saturating_add(self.watch.pause_ms(&stats)).min(regular_ms.max(now_ms));
        Ok(())
    }

    /// Tells; returns whether the host has taken it, or nobody is meant to.
    fn report(
        &mut self,
        now_ms: u64,
        mut stats: plimsoll_model::AgentStats,
        signs: Signs,
    ) -> Result<bool, AgentError> {
        self.sources.complete(now_ms, &mut stats);
        self.seq = self.seq.saturating_add(1);
        let Self { session, seq, .. } = *self;
        let report = Report { session, seq, urgent: signs != Signs::NONE, stats };
        self.frame.clear();
        encode(&report, &mut self.frame);
        self.watch.reported(now_ms, &stats, signs);
        self.last_report_ms = Some(now_ms);
        if self.print {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", print::line(&report, signs)).map_err(AgentError::Print)?;
        }
        Ok(self.way.as_mut().is_none_or(|way| way.send(now_ms, &self.frame)))
    }

    /// Waits for the next look, or until the kernel tells of pressure.
    fn wait(&mut self) {
        let left = Duration::from_millis(self.next_look_ms.saturating_sub(self.now_ms()));
        let Some(trigger) = &self.trigger else { return std::thread::sleep(left) };
        match trigger.wait(left) {
            Ok(Wakeup::Pressure) => self.pressure = true,
            Ok(Wakeup::TimedOut) => {}
            Err(_) => self.trigger = None,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Way {
    /// Opens the port that was named, or that has our name. Waits a little for it: the guest may still boot.
    fn open(named: Option<&Path>) -> Result<Self, AgentError> {
        let begun = Instant::now();
        let mut told = false;
        loop {
            let path = path_of(named);
            let opened = path.as_ref().map(|path| port::open_port(path));
            let error = match (path, opened) {
                (Some(path), Some(Ok(file))) => {
                    let line = Some(Line::new(file));
                    let named = named.map(Path::to_owned);
                    return Ok(Self {
                        named,
                        path,
                        line,
                        paces: PaceDecoder::new(),
                        retry_ms: 0,
                        next_hear_ms: 0,
                    });
                }
                (Some(path), Some(Err(source))) => AgentError::Port { path, source },
                _ => AgentError::NoPort,
            };
            if begun.elapsed() > PATIENCE {
                return Err(error);
            }
            if !std::mem::replace(&mut told, true) {
                note(&format!("{error}; waiting {} s for it", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(RETRY_MS));
        }
    }

    /// Sends a report if the host takes it.
    fn send(&mut self, now_ms: u64, frame: &[u8]) -> bool {
        let Some(line) = &mut self.line else { return false };
        match line.send(frame) {
            Ok(taken) => taken,
            Err(error) => {
                self.lose(now_ms, &error);
                false
            }
        }
    }

    fn is_flushed(&mut self) -> bool {
        self.line.as_mut().is_some_and(|line| line.flush().unwrap_or(false))
    }

    /// Sends what is left, opens the port again if it is gone, and returns the interval that the host asks for.
    fn keep(&mut self, now_ms: u64) -> Option<u32> {
        let Some(line) = &mut self.line else {
            self.reopen(now_ms);
            return None;
        };
        let mut asked = None;
        if now_ms >= self.next_hear_ms {
            self.next_hear_ms = now_ms.saturating_add(HEAR_MS);
            line.hear(|bytes| asked = self.paces.feed(bytes));
        }
        if let Err(error) = line.flush() {
            self.lose(now_ms, &error);
        }
        asked
    }

    fn lose(&mut self, now_ms: u64, error: &std::io::Error) {
        // A dead line may be opened again and be lost again each second: it is told of once.
        if self.retry_ms == 0 {
            note(&format!("lost the port {}: {error}; it is tried again each second", self.path.display()));
        }
        self.line = None;
        self.retry_ms = now_ms.saturating_add(REOPEN_MS);
    }

    fn reopen(&mut self, now_ms: u64) {
        if now_ms < self.retry_ms {
            return;
        }
        self.retry_ms = now_ms.saturating_add(REOPEN_MS);
        let Some(path) = path_of(self.named.as_deref()) else { return };
        self.line = port::open_port(&path).ok().map(Line::new);
        self.path = path;
        self.paces = PaceDecoder::new();
    }
}

fn path_of(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_owned).or_else(port::find)
}

/// Asks the kernel to wake us when programs wait for memory, where it can.
fn trigger(path: &Path) -> Option<Trigger> {
    let armed = |(stall, window)| {
        let threshold = Threshold::new(Kind::Some, stall, window).ok()?;
        Trigger::new(path, threshold).ok()
    };
    armed(STALL).or_else(|| armed(STALL_FOR_ALL))
}

/// A number that the agent before this one most likely had not.
fn session() -> u32 {
    let mut bytes = [0; 4];
    // Early in a boot there may be no randomness yet; then the time and the process will do.
    match getrandom(&mut bytes, GetRandomFlags::NONBLOCK) {
        Ok(4) => u32::from_le_bytes(bytes),
        _ => {
            let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            since.subsec_nanos().wrapping_mul(2_654_435_761) ^ std::process::id()
        }
    }
}
