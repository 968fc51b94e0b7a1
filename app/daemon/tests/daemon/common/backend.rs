//! A back end of straw: the real control protocol on a real socket, in front of a guest that is a few numbers.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use plimsoll_api::control::{
    AWAIT_AGENT_MS, AWAIT_PAGER_MS, ErrorKind, Op, PagerStatus, Reply, Request, Stalled, Status,
};
use plimsoll_model::{AgentStats, GuestStats};
use plimsoll_units::{BalloonSize, Bytes, MemTarget, PageCount};

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Proper,
    /// Reads and says nothing.
    Silent,
    /// Says something else.
    Garbage,
    /// Says very much that nobody asked for.
    Flood,
    /// Refuses every target.
    Refusing,
    /// Is from before there were agents.
    Old,
}

/// The guest.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) manner: Manner,
    pub(crate) status: Status,
    /// What its programs use; the rest of what it holds is available.
    pub(crate) used: Bytes,
    /// How far its balloon moves in a second.
    pub(crate) rate: Bytes,
    moved: Instant,
    /// When its agent spoke last.
    spoke: Option<Instant>,
    /// What it touches, where its memory is populated on demand.
    pub(crate) touches: Bytes,
    /// When it began to wait for memory.
    stalled: Option<Instant>,
    /// How often all of its memory was given back for a new start.
    pub(crate) resets: u32,
    /// Every target that its pager was set.
    pub(crate) targets: Vec<MemTarget>,
    /// Connections on which its agent is waited for.
    pub(crate) waiting: u32,
    /// Requests answered.
    pub(crate) requests: u64,
}

#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) path: PathBuf,
    listener: UnixListener,
    guest: Arc<Mutex<Guest>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// A back end at `dir/name.sock` for a guest that was told it has `maxmem` MiB and uses `used` MiB.
    pub(crate) fn start(dir: &Path, name: &str, maxmem: u64, used: u64) -> Self {
        let status = Status {
            epoch: 1,
            generation: 1,
            connected: true,
            driver_ready: true,
            maxmem: Bytes::mib(maxmem),
            ..Status::default()
        };
        let guest = Guest {
            manner: Manner::Proper,
            status,
            used: Bytes::mib(used),
            rate: Bytes::gib(4),
            moved: Instant::now(),
            spoke: None,
            touches: Bytes::ZERO,
            stalled: None,
            resets: 0,
            targets: Vec::new(),
            waiting: 0,
            requests: 0,
        };
        Self::serve(dir.join(format!("{name}.sock")), Arc::new(Mutex::new(guest)))
    }

    /// The pager of a guest that was told it has `maxmem` MiB and may have `target` to begin with.
    pub(crate) fn pager(dir: &Path, name: &str, maxmem: u64, target: u64) -> Self {
        let backend = Self::start(dir, name, maxmem, 0);
        let target = Bytes::mib(target);
        let pager = PagerStatus {
            target: MemTarget(target),
            limit: target,
            outstanding: Bytes::mib(maxmem).pages_ceil(),
            mapped: true,
            ..PagerStatus::default()
        };
        backend.guest().status.pager = Some(pager);
        backend
    }

    fn serve(path: PathBuf, guest: Arc<Mutex<Guest>>) -> Self {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let accepting = listener.try_clone().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&guest), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            std::thread::scope(|connections| {
                while let Ok((stream, _)) = accepting.accept() {
                    let (theirs, stopped) = (&theirs, &stopped);
                    connections.spawn(move || converse(&stream, theirs, stopped));
                }
            });
        });
        Self { path, listener, guest, stop, thread: Some(thread) }
    }

    pub(crate) fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap()
    }

    /// Dies, and comes back with the same guest and the next epoch.
    pub(crate) fn restart(self) -> Self {
        let (path, guest) = (self.path.clone(), Arc::clone(&self.guest));
        drop(self);
        guest.lock().unwrap().status.epoch += 1;
        Self::serve(path, guest)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it out of accept, also when the socket's file is gone already.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.thread.take().unwrap().join();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves one connection until the other side hangs up.
fn converse(stream: &UnixStream, guest: &Mutex<Guest>, stop: &AtomicBool) {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::SeqCst) {
        match reader.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {}
            // What was read of a line so far stays in `line`.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        let request: Request = serde_json::from_str(&line).unwrap();
        line.clear();
        let heard = |after| stop.load(Ordering::SeqCst) || guest.lock().unwrap().urgent() != after;
        if let Op::AwaitAgent { after } = request.op {
            let until = Instant::now() + Duration::from_millis(AWAIT_AGENT_MS);
            guest.lock().unwrap().waiting += 1;
            while !heard(after) && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            guest.lock().unwrap().waiting -= 1;
        }
        if let Op::AwaitPager { after } = request.op {
            let until = Instant::now() + Duration::from_millis(AWAIT_PAGER_MS);
            let turned = || stop.load(Ordering::SeqCst) || guest.lock().unwrap().turns() != after;
            while !turned() && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(2));
            }
        }
        let answer = guest.lock().unwrap().answer(&request);
        let mut writer = stream;
        if answer.is_some_and(|bytes| writer.write_all(&bytes).is_err()) {
            return;
        }
    }
}

impl Guest {
    /// Its agent speaks. From the first time on there is a line.
    pub(crate) fn say(&mut self, stats: AgentStats, urgent: bool) {
        self.spoke = Some(Instant::now());
        self.status.agent = Some(stats);
        self.status.agent_urgent += u64::from(urgent);
        self.status.agent_counters.get_or_insert_default().frames += 1;
    }

    /// How often its agent was urgent; no number where there is no line, so that nobody waits for it.
    fn urgent(&self) -> u64 {
        self.status.agent_counters.map_or(u64::MAX - 1, |_| self.status.agent_urgent)
    }

    fn answer(&mut self, request: &Request) -> Option<Vec<u8>> {
        self.requests += 1;
        let reply = match (self.manner, request.op) {
            (Manner::Silent, _) => return None,
            (Manner::Garbage, _) => return Some(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
            (Manner::Flood, _) => return Some(self.line(&Reply::ok(0, self.status.clone())).repeat(2000)),
            (Manner::Old, Op::AwaitAgent { .. }) => {
                Reply::error(request.id, ErrorKind::UnknownOp, "what is that?")
            }
            (Manner::Refusing, Op::SetBalloon { .. } | Op::SetTarget { .. }) => {
                Reply::error(request.id, ErrorKind::OutOfRange, "not today")
            }
            (Manner::Proper | Manner::Refusing | Manner::Old, op) => {
                self.go_on();
                if let Op::SetBalloon { pages } = op {
                    self.status.num_pages = pages;
                }
                if let Op::SetTarget { target } = op {
                    self.set_target(target);
                }
                if op == Op::Reset {
                    self.resets += 1;
                    self.touches = Bytes::ZERO;
                    self.status.pager.as_mut().unwrap().resident = Bytes::ZERO;
                }
                Reply::ok(request.id, self.status.clone())
            }
        };
        Some(self.line(&reply))
    }

    /// Its programs touch so much, and wait if that is more than it may have.
    pub(crate) fn touch(&mut self, bytes: Bytes) {
        self.touches = bytes;
        self.populate();
    }

    fn set_target(&mut self, target: MemTarget) {
        self.targets.push(target);
        if let Some(pager) = &mut self.status.pager {
            pager.target = target;
            pager.limit = target.0.max(pager.resident);
        }
        self.populate();
    }

    fn populate(&mut self) {
        let Some(pager) = &mut self.status.pager else { return };
        pager.resident = pager.resident.max(self.touches).min(pager.limit);
        let waits = self.touches > pager.limit;
        if waits != self.stalled.is_some() {
            pager.turns += 1;
            pager.stalls += u64::from(waits);
            self.stalled = waits.then(Instant::now);
        }
    }

    fn turns(&self) -> u64 {
        self.status.pager.map_or(u64::MAX - 1, |pager| pager.turns)
    }

    fn line(&self, reply: &Reply) -> Vec<u8> {
        let mut line = serde_json::to_vec(reply).unwrap();
        line.push(b'\n');
        line
    }

    /// The balloon goes on towards its size.
    fn go_on(&mut self) {
        let since_ms = self.stalled.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap());
        if let Some(pager) = &mut self.status.pager {
            pager.stalled = since_ms.map(|since_ms| Stalled { since_ms, waiting: 1 });
        }
        let millis = u64::try_from(self.moved.elapsed().as_millis()).unwrap();
        let most = self.rate.scale(millis, 1000).pages_floor().0;
        if most > 0 {
            self.moved = Instant::now();
        }
        let (now, goal) = (self.status.actual.0.0, self.status.num_pages.0.0);
        let next = if goal > now { goal.min(now + most) } else { goal.max(now.saturating_sub(most)) };
        if self.status.driver_ready {
            self.status.actual = BalloonSize(PageCount(next));
        }
        let holds = self.status.maxmem.minus(self.status.actual.0.bytes());
        self.status.resident = self.used.min(holds);
        self.status.agent_age_ms =
            self.spoke.map_or(0, |at| u64::try_from(at.elapsed().as_millis()).unwrap());
        self.status.stats_age_ms = 0;
        self.status.stats = self.status.driver_ready.then(|| GuestStats {
            available: Some(holds.minus(self.used)),
            free: Some(holds.minus(self.used)),
            total: Some(holds),
            ..GuestStats::default()
        });
    }
}
