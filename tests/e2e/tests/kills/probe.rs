//! The back end's own word, straight from its control socket: the daemon asks once a tick, and a balloon moves in less.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plimsoll_api::control::{Op, Outcome, Reply, Request, Status, VERSION};
use plimsoll_api::http::Endpoint;
use plimsoll_e2e::{PATIENCE, Vm};
use plimsoll_testbed::wait::poll_until;
use rustix::process::Pid;

use crate::kit::{kill, random};

/// How long a back end may take to be followed by another, and that one to answer.
const RETURN: Duration = Duration::from_secs(10);
/// After five deaths within ten seconds a keeper lets the device rest (see `plimsoll-keeper --help`): kills that are to
/// be answered by another back end are fewer.
const MOST_KILLS: usize = 4;
const WINDOW: Duration = Duration::from_millis(10_100);

/// Looks at a VM's back end, and kills it.
pub(crate) struct Probe {
    socket: PathBuf,
    children: PathBuf,
    kills: Vec<Instant>,
}

impl Probe {
    pub(crate) fn new(vm: &Vm<'_>) -> Self {
        let Endpoint::Uml { control } = vm.view().endpoint else { panic!("{} has no back end", vm.name) };
        let (keeper, _) = vm.keeper_and_backend();
        let children = format!("/proc/{0}/task/{0}/children", keeper.as_raw_nonzero());
        Self { socket: control.into(), children: children.into(), kills: Vec::new() }
    }

    /// What the back end says, unless there is none.
    pub(crate) fn try_status(&self) -> Option<Status> {
        status(&self.socket).ok()
    }

    /// What the back end says.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        let look = || status(&self.socket).map_err(|error| error.to_string());
        poll_until(PATIENCE, "the back end to answer", look).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until the back end says what is wanted.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        let look = || match status(&self.socket) {
            Ok(status) if is(&status) => Ok(status),
            Ok(status) => Err(format!("{status:?}")),
            Err(error) => Err(error.to_string()),
        };
        poll_until(PATIENCE, what, look).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until one more kill is not the one that makes the keeper give the device a rest.
    #[track_caller]
    pub(crate) fn wait_for_grace(&mut self) {
        let few = || {
            self.kills.retain(|at| at.elapsed() < WINDOW);
            if self.kills.len() < MOST_KILLS { Ok(()) } else { Err(format!("{:?}", self.kills)) }
        };
        poll_until(WINDOW * 2, "fewer kills within ten seconds", few)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// The back end's process: the keeper's only child.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let children = std::fs::read_to_string(&self.children).ok()?;
        children.split_ascii_whitespace().next()?.parse().ok().and_then(Pid::from_raw)
    }

    /// SIGKILL to the back end, which said `before` last, and waits for its successor, which must want the same.
    ///
    /// The successor is asked before the daemon has a chance to tell it anything: that waits 100 ms before it connects anew.
    #[track_caller]
    pub(crate) fn kill(&mut self, before: &Status) {
        kill(self.pid().expect("there is a back end"));
        self.kills.push(Instant::now());
        let look = || match status(&self.socket) {
            Ok(status) if status.epoch > before.epoch => Ok(status),
            Ok(status) => Err(format!("{status:?}")),
            Err(error) => Err(error.to_string()),
        };
        let after = poll_until(RETURN, "another back end", look).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(after.epoch, before.epoch + 1, "{after:#?}");
        assert_eq!((after.generation, after.connected), (before.generation, true), "{after:#?}");
        assert_eq!(after.num_pages, before.num_pages, "{after:#?}");
    }
}

/// Waits for less than `most`, another time each time: not for a state but for death to come at another place.
pub(crate) fn linger(most: Duration) {
    let begin = Instant::now();
    let wait = most.mul_f64(random());
    while begin.elapsed() < wait {
        std::hint::spin_loop();
    }
}

/// One question on a connection of its own.
fn status(socket: &Path) -> std::io::Result<Status> {
    let mut socket = UnixStream::connect(socket)?;
    socket.set_read_timeout(Some(RETURN))?;
    let mut line = serde_json::to_vec(&Request { v: VERSION, id: 1, op: Op::Status })?;
    line.push(b'\n');
    socket.write_all(&line)?;
    let mut answer = String::new();
    if BufReader::new(socket).read_line(&mut answer)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    match serde_json::from_str::<Reply>(&answer)?.result {
        Outcome::Ok(status) => Ok(*status),
        Outcome::Error(error) => Err(std::io::Error::other(error.message)),
    }
}
