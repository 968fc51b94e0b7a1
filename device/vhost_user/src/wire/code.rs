//! The requests' numbers.

/// What a front end may ask of a device of ours (vhost-user.rst, "Front-end message types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Code {
    /// The virtio features there are.
    GetFeatures = 1,
    /// The virtio features the driver wants.
    SetFeatures = 2,
    /// The front end is there.
    SetOwner = 3,
    /// Obsolete; the front end is no longer there.
    ResetOwner = 4,
    /// Where the guest's memory is.
    SetMemTable = 5,
    /// How many descriptors a ring has.
    SetVringNum = 8,
    /// Where a ring is.
    SetVringAddr = 9,
    /// Where to begin in the available ring.
    SetVringBase = 10,
    /// Stop a ring and say where it stands.
    GetVringBase = 11,
    /// The descriptor by which the guest announces buffers.
    SetVringKick = 12,
    /// The descriptor by which the guest is told of used buffers.
    SetVringCall = 13,
    /// The descriptor by which errors are told.
    SetVringErr = 14,
    /// The protocol features there are.
    GetProtocolFeatures = 15,
    /// The protocol features the front end wants.
    SetProtocolFeatures = 16,
    /// How many queues there are.
    GetQueueNum = 17,
    /// Start or stop a ring.
    SetVringEnable = 18,
    /// The socket for the device's own requests.
    SetBackendReqFd = 21,
    /// Read the configuration space.
    GetConfig = 24,
    /// Write the configuration space.
    SetConfig = 25,
}

impl Code {
    const ALL: [Self; 19] = [
        Self::GetFeatures,
        Self::SetFeatures,
        Self::SetOwner,
        Self::ResetOwner,
        Self::SetMemTable,
        Self::SetVringNum,
        Self::SetVringAddr,
        Self::SetVringBase,
        Self::GetVringBase,
        Self::SetVringKick,
        Self::SetVringCall,
        Self::SetVringErr,
        Self::GetProtocolFeatures,
        Self::SetProtocolFeatures,
        Self::GetQueueNum,
        Self::SetVringEnable,
        Self::SetBackendReqFd,
        Self::GetConfig,
        Self::SetConfig,
    ];

    /// The code with this number, if it is one that devices of ours know.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        // A fieldless enum with an explicit representation: the conversion is its discriminant.
        self as u32
    }

    /// Whether the front end always waits for an answer with content. The others are only acknowledged, and
    /// only if asked to.
    #[must_use]
    pub const fn has_content(self) -> bool {
        matches!(
            self,
            Self::GetFeatures
                | Self::GetProtocolFeatures
                | Self::GetQueueNum
                | Self::GetVringBase
                | Self::GetConfig
        )
    }
}

/// Whether a request with this number, which devices of ours do not know, always waits for an answer with
/// content: `POSTCOPY_ADVISE`, `GET_INFLIGHT_FD`, `GET_MAX_MEM_SLOTS`, `GET_STATUS`, `GET_SHARED_OBJECT`,
/// `SET_DEVICE_STATE_FD`, `CHECK_DEVICE_STATE`, `GET_SHMEM_CONFIG`. It belongs to a feature that was not
/// offered, and there is no way to refuse it but to hang up.
pub(crate) fn unknown_has_content(number: u32) -> bool {
    matches!(number, 28 | 31 | 36 | 40 | 41 | 42 | 43 | 44)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn numbers_are_the_protocols() {
        for (number, code) in [(1, Code::GetFeatures), (12, Code::SetVringKick), (25, Code::SetConfig)] {
            assert_eq!(Code::from_number(number), Some(code));
            assert_eq!(code.number(), number);
        }
        assert_eq!(Code::from_number(0), None);
        assert_eq!(Code::from_number(31), None);
        assert!((0..64).filter(|n| Code::from_number(*n).is_some()).all(|n| !unknown_has_content(n)));
    }
}
