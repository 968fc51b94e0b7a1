//! What can go wrong between us and a QEMU.

use std::{io, path::PathBuf, time::Duration};

use crate::MAX_LINE;

/// Why a conversation with QEMU failed. Every variant names the socket.
///
/// After an error for which [`QmpError::is_fatal`] holds the connection is of no use any more: drop the client
/// and connect anew.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The path does not exist.
    #[error("no socket at {}: is QEMU running, with -qmp unix:{},server=on,wait=off ?", path.display(), path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// The socket file is there, and nobody behind it.
    #[error("nobody listens at {}: the QEMU that made this socket is gone", path.display())]
    NobodyListens {
        /// The socket.
        path: PathBuf,
    },
    /// Connecting failed for another reason.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The listener's queue stays full.
    #[error("whoever listens at {} accepts nobody: it hangs, or very many wait for it", path.display())]
    NobodyAccepts {
        /// The socket.
        path: PathBuf,
    },
    /// Connected, but no greeting came.
    #[error(
        "{} did not greet within {} ms: it is no QMP socket, its QEMU hangs, or another program is connected \
         to it (QEMU serves one at a time)",
        path.display(), after.as_millis()
    )]
    NoGreeting {
        /// The socket.
        path: PathBuf,
        /// The time-out.
        after: Duration,
    },
    /// Something that is not QMP was read.
    #[error("{} does not speak QMP: read \"{seen}\" while {during}", path.display())]
    NotQmp {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        during: &'static str,
        /// The beginning of what was read, escaped.
        seen: String,
    },
    /// A line without an end.
    #[error("{} sent a line of more than {MAX_LINE} bytes while {during}", path.display())]
    LineTooLong {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        during: &'static str,
    },
    /// The other side hung up.
    #[error("{} closed the connection while {during}{}", path.display(), half_line(seen))]
    Closed {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        during: &'static str,
        /// The beginning of the unfinished line that had arrived, escaped; mostly empty.
        seen: String,
    },
    /// The socket failed.
    #[error("{} failed while {during}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        during: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No reply in time. QEMU may still carry the command out; its late reply will be dropped.
    #[error("{} did not answer {command} within {} ms", path.display(), after.as_millis())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: &'static str,
        /// The time-out.
        after: Duration,
    },
    /// QEMU refused the command.
    #[error("{} refused {command}: {desc} ({class})", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: &'static str,
        /// QEMU's error class, such as `CommandNotFound`.
        class: String,
        /// QEMU's own words, cut after a few hundred characters.
        desc: String,
    },
    /// A reply to the right command that is not what that command returns.
    #[error("{} answered {command} with something else: {seen}", path.display())]
    BadReply {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        seen: String,
    },
    /// The VM has no balloon.
    #[error(
        "the QEMU at {} has no balloon device: start it with -device virtio-balloon-pci", path.display()
    )]
    NoBalloon {
        /// The socket.
        path: PathBuf,
    },
}

impl QmpError {
    /// Whether the connection is lost. A command that was refused, answered oddly or not in time leaves it
    /// usable.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        !matches!(
            self,
            Self::Timeout { .. } | Self::Refused { .. } | Self::BadReply { .. } | Self::NoBalloon { .. }
        )
    }
}

fn half_line(seen: &str) -> String {
    if seen.is_empty() { String::new() } else { format!(" in the middle of a line: \"{seen}\"") }
}

/// The beginning of what a peer sent, safe to print and short.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const LONGEST: usize = 80;
    let shown = bytes.get(..LONGEST).unwrap_or(bytes);
    let mut text = String::from_utf8_lossy(shown).trim_end().escape_debug().to_string();
    if shown.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

/// A peer's text cut to what is worth keeping.
pub(crate) fn shorten(mut text: String, longest: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(longest) {
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_peer_sent_is_escaped_and_cut() {
        assert_eq!(excerpt(b"SSH-2.0-OpenSSH\r\n"), "SSH-2.0-OpenSSH");
        assert_eq!(excerpt(b"\x1b[2Jhello"), "\\u{1b}[2Jhello");
        assert_eq!(excerpt(&[b'a'; 100]), format!("{}...", "a".repeat(80)));
    }

    proptest! {
        #[test]
        fn excerpts_and_cuts_are_bounded(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,300}", longest in 0usize..200) {
            prop_assert!(excerpt(&bytes).chars().all(|c| !c.is_control()));
            prop_assert!(excerpt(&bytes).len() <= 80 * 10 + 3);
            let cut = shorten(text.clone(), longest);
            prop_assert!(text.starts_with(&cut));
            prop_assert_eq!(cut.chars().count(), text.chars().count().min(longest));
        }
    }
}
