//! A client of the management console.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::net::{SocketAddrUnix, bind};

use crate::wire::{self, MAX_DATAGRAM};

/// The longest reply that is kept, in bytes. `sysrq t` writes some KiB.
const LONGEST_REPLY: usize = 256 << 10;

/// The management console's socket of the machine `umid` (`arch/um/os-Linux/umid.c`). It is there once the guest's
/// kernel has come so far, and may stay behind when the machine is killed.
#[must_use]
pub fn mconsole_path(uml_dir: &Path, umid: &str) -> PathBuf {
    uml_dir.join(umid).join("mconsole")
}

/// The file in which UML writes its process number. May stay behind when the machine is killed.
#[must_use]
pub fn pid_path(uml_dir: &Path, umid: &str) -> PathBuf {
    uml_dir.join(umid).join("pid")
}

/// A running UML's management console. Each command has a socket of its own, because replies bear no number: what
/// comes late finds nobody. Blocks, at most for the time-out of each command.
#[derive(Clone, Debug)]
pub struct Mconsole {
    path: PathBuf,
    timeout: Duration,
}

/// Why the management console did not do it. Every variant names the socket.
#[derive(Debug, thiserror::Error)]
pub enum MconsoleError {
    /// The path does not exist.
    #[error("no management console at {}: the UML has not come so far yet, or has ended", path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// The socket file is there, and nobody behind it.
    #[error("nobody listens at {}: the UML has ended", path.display())]
    NobodyListens {
        /// The socket.
        path: PathBuf,
    },
    /// A command that does not fit.
    #[error("a command of {length} bytes for {}; 511 is the most", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// No reply in time. The command may have been carried out.
    #[error("{} did not answer `{command}` within {} ms", path.display(), after.as_millis())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// The time-out.
        after: Duration,
    },
    /// UML said no.
    #[error("{} refused `{command}`: {reason}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// UML's own words.
        reason: String,
    },
    /// A reply that is none.
    #[error("{} answered `{command}` with something that is no reply of a management console", path.display())]
    BadReply {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
    },
    /// The socket failed.
    #[error("cannot speak to {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Mconsole {
    /// How long a command may take unless said otherwise.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

    /// The management console at `path`, see [`mconsole_path`]. Nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: Self::DEFAULT_TIMEOUT }
    }

    /// The same with another time-out for each command.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The guest kernel's name and version, as `uname -a` has them.
    pub fn version(&self) -> Result<String, MconsoleError> {
        self.command("version")
    }

    /// Stops the guest until [`Mconsole::go`]. While it is stopped only the management console works.
    pub fn stop(&self) -> Result<(), MconsoleError> {
        self.command("stop").map(drop)
    }

    /// Lets a stopped guest go on.
    pub fn go(&self) -> Result<(), MconsoleError> {
        self.command("go").map(drop)
    }

    /// Ctrl-Alt-Del: the guest's init gets SIGINT if `/proc/sys/kernel/ctrl-alt-del` is 0 in the guest; else, by
    /// the kernel's own default, the guest reboots at once.
    pub fn cad(&self) -> Result<(), MconsoleError> {
        self.command("cad").map(drop)
    }

    /// Halts the guest's kernel at once and ends UML; nothing is written back.
    pub fn halt(&self) -> Result<(), MconsoleError> {
        self.ending("halt")
    }

    /// Restarts the guest's kernel at once; nothing is written back. The process stays.
    pub fn reboot(&self) -> Result<(), MconsoleError> {
        self.ending("reboot")
    }

    /// What the magic SysRq key does (the kernel's `Documentation/admin-guide/sysrq.rst`); what it prints.
    pub fn sysrq(&self, key: char) -> Result<String, MconsoleError> {
        self.command(&format!("sysrq {key}"))
    }

    /// Any command. A stopped or busy guest may take its time; a hostile one may say anything, up to 256 KiB.
    pub fn command(&self, command: &str) -> Result<String, MconsoleError> {
        let request = wire::request(command)
            .ok_or_else(|| MconsoleError::TooLong { path: self.path.clone(), length: command.len() })?;
        let deadline = Deadline { at: Instant::now().checked_add(self.timeout) };
        let failed = |err| self.failed(err, command);
        let socket = self.connect().map_err(failed)?;
        socket.set_write_timeout(Some(deadline.left().map_err(failed)?)).map_err(failed)?;
        socket.send(&request).map_err(failed)?;
        self.collect(&socket, command, &deadline)
    }

    /// A command after which the guest is gone, perhaps before its answer is out.
    fn ending(&self, command: &str) -> Result<(), MconsoleError> {
        match self.command(command) {
            Ok(_) => Ok(()),
            Err(MconsoleError::Io { source, .. }) if source.kind() == io::ErrorKind::ConnectionReset => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Connected, so that nobody but this UML can answer; bound to a name the kernel chooses, so that it can.
    fn connect(&self) -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        bind(&socket, &SocketAddrUnix::new_unnamed())?;
        socket.connect(&self.path)?;
        Ok(socket)
    }

    fn collect(
        &self,
        socket: &UnixDatagram,
        command: &str,
        deadline: &Deadline,
    ) -> Result<String, MconsoleError> {
        let failed = |err| self.failed(err, command);
        let bad = || MconsoleError::BadReply { path: self.path.clone(), command: command.to_owned() };
        let mut text = Vec::new();
        let mut refused = false;
        loop {
            let mut datagram = [0; MAX_DATAGRAM];
            socket.set_read_timeout(Some(deadline.left().map_err(failed)?)).map_err(failed)?;
            let length = socket.recv(&mut datagram).map_err(failed)?;
            let reply = datagram.get(..length).and_then(wire::reply).ok_or_else(bad)?;
            // Only the first datagram says whether it went wrong.
            refused |= reply.failed;
            if text.len().saturating_add(reply.text.len()) <= LONGEST_REPLY {
                text.extend_from_slice(reply.text);
            }
            if reply.more {
                continue;
            }
            let text = String::from_utf8_lossy(&text).into_owned();
            return match refused {
                false => Ok(text),
                true => Err(MconsoleError::Refused {
                    path: self.path.clone(),
                    command: command.to_owned(),
                    reason: text.escape_debug().to_string(),
                }),
            };
        }
    }

    fn failed(&self, source: io::Error, command: &str) -> MconsoleError {
        let path = self.path.clone();
        let is = |kind| source.kind() == kind;
        if is(io::ErrorKind::NotFound) {
            MconsoleError::NoSocket { path }
        } else if is(io::ErrorKind::ConnectionRefused) {
            MconsoleError::NobodyListens { path }
        } else if is(io::ErrorKind::WouldBlock) || is(io::ErrorKind::TimedOut) {
            MconsoleError::Timeout { path, command: command.to_owned(), after: self.timeout }
        } else {
            MconsoleError::Io { path, source }
        }
    }
}

/// When a command must be through; `None`: so far off that no clock reaches it.
struct Deadline {
    at: Option<Instant>,
}

impl Deadline {
    /// How much time is left, as socket time-outs want it: never 0, which would mean for ever.
    fn left(&self) -> io::Result<Duration> {
        /// A day: an hourglass that is turned in time.
        const LONGEST: Duration = Duration::from_secs(86_400);
        let left = self.at.map_or(LONGEST, |at| at.saturating_duration_since(Instant::now()).min(LONGEST));
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// A management console of straw: hears one command and answers with these datagrams.
    fn answering(datagrams: Vec<Vec<u8>>) -> (tempfile::TempDir, Mconsole, std::thread::JoinHandle<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mconsole");
        let socket = UnixDatagram::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let mut heard = vec![0; 600];
            let (n, from) = socket.recv_from(&mut heard).unwrap();
            heard.truncate(n);
            for datagram in datagrams {
                // Fails once the client has gone away, as it may.
                let _ = socket.send_to_addr(&datagram, &from);
            }
            heard
        });
        (dir, Mconsole::new(path).with_timeout(Duration::from_secs(10)), thread)
    }

    fn datagram(err: u32, more: u32, text: &[u8]) -> Vec<u8> {
        let len = u32::try_from(text.len()).unwrap();
        let mut bytes: Vec<u8> = [err, more, len].iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend_from_slice(text);
        bytes
    }

    #[test]
    fn a_long_answer_comes_in_pieces() {
        let (_dir, console, peer) = answering(vec![datagram(0, 1, b"one \0"), datagram(0, 0, b"two\0")]);
        assert_eq!(console.version().unwrap(), "one two");
        assert_eq!(peer.join().unwrap(), wire::request("version").unwrap());
    }

    #[test]
    fn a_refusal_is_told_in_umls_words() {
        let (_dir, console, _peer) =
            answering(vec![datagram(1, 1, b"Unknown \0"), datagram(0, 0, b"command\x1b\0")]);
        let error = console.sysrq('q').unwrap_err();
        assert!(
            matches!(&error, MconsoleError::Refused { reason, .. } if reason == "Unknown command\\u{1b}"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        let (_dir, console, _peer) = answering(vec![b"hello".to_vec()]);
        let error = console.version().unwrap_err();
        assert!(matches!(error, MconsoleError::BadReply { .. }), "{error}");
    }

    #[test]
    fn a_flood_is_cut_and_an_endless_one_times_out() {
        let piece = datagram(0, 1, &[b'x'; 512]);
        let (_dir, console, _peer) = answering(std::iter::repeat_n(piece, 2000).collect());
        let error = console.with_timeout(Duration::from_millis(500)).version().unwrap_err();
        assert!(matches!(error, MconsoleError::Timeout { .. }), "{error}");
    }

    #[test]
    fn silence_absence_and_a_stale_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mconsole");
        let console = Mconsole::new(&path).with_timeout(SOON);
        assert!(matches!(console.version().unwrap_err(), MconsoleError::NoSocket { .. }));
        let listener = UnixDatagram::bind(&path).unwrap();
        // Until the listener's queue is full it is the answer that does not come, then it is the sending.
        for _ in 0..15 {
            assert!(matches!(console.version().unwrap_err(), MconsoleError::Timeout { .. }));
        }
        drop(listener);
        assert!(matches!(console.version().unwrap_err(), MconsoleError::NobodyListens { .. }));
        assert!(matches!(console.command(&"x".repeat(600)).unwrap_err(), MconsoleError::TooLong { .. }));
    }

    #[test]
    fn nobody_else_can_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mconsole");
        let listener = UnixDatagram::bind(&path).unwrap();
        let stranger = UnixDatagram::unbound().unwrap();
        let console = Mconsole::new(&path).with_timeout(SOON);
        let asked = std::thread::spawn(move || console.version());
        let (_, from) = listener.recv_from(&mut [0; 600]).unwrap();
        let sent = stranger.send_to_addr(&datagram(0, 0, b"forged\0"), &from);
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(matches!(asked.join().unwrap().unwrap_err(), MconsoleError::Timeout { .. }));
    }
}
