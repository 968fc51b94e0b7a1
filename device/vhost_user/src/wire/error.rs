//! Why a stream of messages is given up.

use plimsoll_shm::ShmError;

/// What a peer sent that no peer may send. The connection is closed: where the next message begins, or what
/// the peer thinks it has set, is no longer known.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not version 1 of the protocol, or flags that do not exist.
    #[error("message {code} has flags {flags:#x}, which are none of version 1")]
    Flags {
        /// The message's number.
        code: u32,
        /// Its flags.
        flags: u32,
    },
    /// A request where a reply is due, or the other way round.
    #[error("message {code} is {}", if *.reply { "a reply where a request is due" } else { "a request where a reply is due" })]
    Direction {
        /// The message's number.
        code: u32,
        /// Whether it says that it is a reply.
        reply: bool,
    },
    /// Longer than any message.
    #[error("message {code} announces {length} bytes, more than any message has")]
    TooLong {
        /// The message's number.
        code: u32,
        /// The payload announced, in bytes.
        length: u32,
    },
    /// A length that this message does not have.
    #[error("message {code} has a payload of {length} bytes, which it never has")]
    Length {
        /// The message's number.
        code: u32,
        /// The payload, in bytes.
        length: usize,
    },
    /// A number of descriptors that this message does not have.
    #[error("message {code} came with {count} file descriptors, where it has {wanted}")]
    Fds {
        /// The message's number.
        code: u32,
        /// How many came.
        count: usize,
        /// How many it has.
        wanted: usize,
    },
    /// A field out of range.
    #[error("message {code}: {what}")]
    Content {
        /// The message's number.
        code: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// A request of a protocol feature that was not offered, to which the front end waits for an answer.
    #[error("message {0} belongs to a protocol feature that was not offered")]
    NotOffered(u32),
    /// The peer went away in the middle of a message.
    #[error("the connection ended in the middle of a message")]
    Truncated,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] ShmError),
}
