//! What a front end was told, and is told again.

use plimsoll_vhost_user::wire::{Answer, Code, MAX_CONFIG, protocol};

/// What this connection's front end was first told of features and queues. A later back end, which may be a newer
/// program, must not change it.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    features: Option<u64>,
    protocol: Option<u64>,
    queues: Option<u64>,
}

impl Offered {
    /// What it was first told, if it has asked.
    pub(crate) fn first(&self, code: Code) -> Option<u64> {
        if code == Code::GetFeatures {
            self.features
        } else if code == Code::GetProtocolFeatures {
            self.protocol
        } else if code == Code::GetQueueNum {
            self.queues
        } else {
            None
        }
    }

    /// A back end's answer as the front end may see it.
    pub(crate) fn mask(&mut self, code: Code, answer: Answer) -> Answer {
        let Answer::Number(number) = answer else { return answer };
        Answer::Number(if code == Code::GetFeatures {
            number & *self.features.get_or_insert(number)
        } else if code == Code::GetProtocolFeatures {
            // A device's own requests are sent by the keeper.
            let number = number | protocol::BACKEND_REQ;
            number & *self.protocol.get_or_insert(number)
        } else {
            number.min(*self.queues.get_or_insert(number))
        })
    }
}

/// The configuration space as the front end last read it, for when there is no back end any more.
#[derive(Debug)]
pub(crate) struct ConfigCache(Vec<u8>);

impl Default for ConfigCache {
    fn default() -> Self {
        Self(vec![0; size(MAX_CONFIG)])
    }
}

impl ConfigCache {
    pub(crate) fn keep(&mut self, answer: &Answer) {
        if let Answer::Config { offset, bytes, .. } = answer {
            self.0.iter_mut().skip(size(*offset)).zip(bytes).for_each(|(kept, byte)| *kept = *byte);
        }
    }

    pub(crate) fn read(&self, offset: u32, length: u32, flags: u32) -> Answer {
        let bytes = self.0.iter().copied().skip(size(offset)).take(size(length)).collect();
        Answer::Config { offset, flags, bytes }
    }
}

fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_newer_back_end_cannot_offer_more() {
        let mut offered = Offered::default();
        let mut say = |code, number| offered.mask(code, Answer::Number(number));
        assert_eq!(say(Code::GetFeatures, 0b101), Answer::Number(0b101));
        assert_eq!(say(Code::GetFeatures, 0b111), Answer::Number(0b101));
        assert_eq!(say(Code::GetFeatures, 0b001), Answer::Number(0b001));
        assert_eq!(say(Code::GetProtocolFeatures, 0), Answer::Number(protocol::BACKEND_REQ));
        assert_eq!(say(Code::GetProtocolFeatures, u64::MAX), Answer::Number(protocol::BACKEND_REQ));
        assert_eq!(say(Code::GetQueueNum, 4), Answer::Number(4));
        assert_eq!(say(Code::GetQueueNum, 9), Answer::Number(4));
        assert_eq!(offered.mask(Code::SetOwner, Answer::Refused), Answer::Refused);
        assert_eq!(offered.first(Code::GetQueueNum), Some(4));
        assert_eq!(offered.first(Code::GetConfig), None);
    }

    #[test]
    fn configuration_is_repeated_as_it_was_read() {
        let mut cache = ConfigCache::default();
        let part = |offset, bytes: &[u8]| Answer::Config { offset, flags: 0, bytes: bytes.to_vec() };
        cache.keep(&part(4, &[1, 2, 3, 4]));
        cache.keep(&part(254, &[9, 9]));
        assert_eq!(cache.read(2, 4, 0), part(2, &[0, 0, 1, 2]));
        assert_eq!(cache.read(254, 2, 0), part(254, &[9, 9]));
    }
}
