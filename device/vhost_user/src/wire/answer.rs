//! What a front end is told.

use super::{Code, Message, WireError, flag};

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// Not done. The front end learns of it if it asked for an acknowledgement.
    Refused,
    /// A number: features, how many queues.
    Number(u64),
    /// Where a ring stands.
    Base {
        /// The ring.
        ring: u32,
        /// The next entry of the available ring.
        base: u32,
    },
    /// Bytes of the configuration space; none means that they could not be read.
    Config {
        /// Where they are, in bytes from the beginning.
        offset: u32,
        /// The request's flags.
        flags: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

impl Answer {
    /// The reply to a request of this code.
    #[must_use]
    pub fn message(&self, code: u32) -> Message {
        let mut payload = Vec::new();
        match self {
            Self::Done => payload.extend_from_slice(&0u64.to_ne_bytes()),
            Self::Refused => payload.extend_from_slice(&1u64.to_ne_bytes()),
            Self::Number(number) => payload.extend_from_slice(&number.to_ne_bytes()),
            Self::Base { ring, base } => {
                payload.extend_from_slice(&ring.to_ne_bytes());
                payload.extend_from_slice(&base.to_ne_bytes());
            }
            Self::Config { offset, flags, bytes } => {
                let length = u32::try_from(bytes.len()).unwrap_or(0);
                for field in [*offset, length, *flags] {
                    payload.extend_from_slice(&field.to_ne_bytes());
                }
                payload.extend_from_slice(bytes);
            }
        }
        Message { code, flags: flag::VERSION | flag::REPLY, payload, fds: Vec::new() }
    }

    /// Reads a device's reply to a request of this code.
    ///
    /// # Errors
    /// When it is no reply to such a request.
    pub fn parse(code: Code, message: &Message) -> Result<Self, WireError> {
        let number = code.number();
        if message.code != number {
            return Err(WireError::Content { code: message.code, what: "the reply is to another request" });
        }
        let bad = || WireError::Length { code: number, length: message.payload.len() };
        let fields: Vec<u32> = message
            .payload
            .chunks_exact(4)
            .map(|four| u32::from_ne_bytes(four.try_into().unwrap_or_default()))
            .collect();
        if code == Code::GetVringBase {
            return match *fields.as_slice() {
                [ring, base] => Ok(Self::Base { ring, base }),
                _ => Err(bad()),
            };
        }
        if code == Code::GetConfig {
            let &[offset, _, flags, ..] = fields.as_slice() else { return Err(bad()) };
            let bytes = message.payload.get(12..).unwrap_or_default().to_vec();
            return Ok(Self::Config { offset, flags, bytes });
        }
        let eight = <[u8; 8]>::try_from(message.payload.as_slice()).map_err(|_| bad())?;
        Ok(match u64::from_ne_bytes(eight) {
            value if code.has_content() => Self::Number(value),
            0 => Self::Done,
            _ => Self::Refused,
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn answers_are_read_as_they_were_written() {
        let config = Answer::Config { offset: 4, flags: 1, bytes: vec![1, 2, 3, 4, 5] };
        for (code, answer) in [
            (Code::SetFeatures, Answer::Done),
            (Code::SetMemTable, Answer::Refused),
            (Code::GetFeatures, Answer::Number(0)),
            (Code::GetVringBase, Answer::Base { ring: 3, base: 65535 }),
            (Code::GetConfig, config),
            (Code::GetConfig, Answer::Config { offset: 900, flags: 0, bytes: Vec::new() }),
        ] {
            assert_eq!(Answer::parse(code, &answer.message(code.number())).unwrap(), answer);
        }
        let wrong = Answer::Done.message(Code::SetOwner.number());
        assert!(matches!(Answer::parse(Code::SetFeatures, &wrong), Err(WireError::Content { .. })));
        assert!(matches!(
            Answer::parse(Code::GetConfig, &Answer::Done.message(24)),
            Err(WireError::Length { .. })
        ));
    }
}
