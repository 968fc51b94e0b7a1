//! Why a UML cannot be started as asked.

use std::path::PathBuf;

use plimsoll_units::Bytes;

use crate::command::LONGEST_COMMAND_LINE;

/// Why no command line can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UmlCommandError {
    /// The name.
    #[error(
        "`{0}` is no name for a UML: 1 to 63 letters, digits, `.`, `_` and `-`, not beginning with `.` or `-`"
    )]
    Umid(String),
    /// A path that UML or the kernel would take for something else.
    #[error("{what} {} has `{}` in it, which UML cannot be told; use another path", path.display(), char.escape_debug())]
    Path {
        /// What the path is for.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The first offending character.
        char: char,
    },
    /// A path of nothing.
    #[error("{0} is an empty path")]
    EmptyPath(&'static str),
    /// A socket path that does not fit into an address (unix(7)).
    #[error("the socket path {} has {} bytes; 107 is the most", path.display(), path.as_os_str().len())]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// A size UML cannot have.
    #[error("{0} is no memory size for a UML: at least 16M, in whole pages of 4096 bytes")]
    Mem(Bytes),
    /// Too many disks.
    #[error("{0} disks; UML takes 8 at most")]
    Disks(usize),
    /// A word of `append` that is ours to say.
    #[error("`{word}` cannot be appended: {key} is set from the VM's own settings")]
    Reserved {
        /// The word.
        word: String,
        /// The parameter.
        key: &'static str,
    },
    /// A control character in `append`.
    #[error("the text to append has a control character in it")]
    Append,
    /// More than the kernel takes.
    #[error("the command line has {0} bytes; {LONGEST_COMMAND_LINE} is the most that UML takes")]
    TooLong(usize),
}
