//! What QEMU tells unasked.

use std::collections::VecDeque;

use plimsoll_units::{Bytes, MemTarget};
use serde::Deserialize;

use crate::{error::shorten, wire::KEPT_TEXT};

/// Events that wait to be taken. When one more arrives the oldest is dropped and counted: what matters of an
/// event can be asked for, and a peer must not make the queue grow.
pub const MAX_EVENTS: usize = 64;

/// An event (QEMU's `qapi/run-state.json`, `qapi/machine.json`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `BALLOON_CHANGE`: what the guest holds now. At most one a second.
    BalloonChange {
        /// Bytes left to the guest.
        actual: MemTarget,
    },
    /// `STOP`: the virtual CPUs were stopped.
    Stop,
    /// `RESUME`: they go on.
    Resume,
    /// `RESET`: the machine was reset, so the guest's driver is gone until it boots again.
    Reset {
        /// Whether the guest asked for it.
        guest: bool,
        /// When, by the host's wall clock as QEMU read it, in microseconds since 1970; `None` if it does not say.
        at_us: Option<u64>,
    },
    /// `SHUTDOWN`: the machine is going down.
    Shutdown {
        /// Whether the guest asked for it.
        guest: bool,
    },
    /// `POWERDOWN`: the guest was asked to shut down.
    Powerdown,
    /// Any other event, or one of the above whose data is not what it should be.
    Other {
        /// Its name, cut after a few hundred characters.
        name: String,
    },
}

#[derive(Deserialize)]
struct BalloonData {
    actual: u64,
}

#[derive(Deserialize)]
struct Timestamp {
    seconds: u64,
    microseconds: u64,
}

#[derive(Deserialize)]
struct GuestData {
    guest: bool,
}

impl Event {
    /// The event of that name with that data and that time, both texts of JSON objects.
    pub(crate) fn from_wire(name: &str, data: Option<&str>, timestamp: Option<&str>) -> Self {
        let guest = || read::<GuestData>(data).map(|d| d.guest);
        let known = match name {
            "BALLOON_CHANGE" => {
                read::<BalloonData>(data).map(|d| Self::BalloonChange { actual: MemTarget(Bytes(d.actual)) })
            }
            "STOP" => Some(Self::Stop),
            "RESUME" => Some(Self::Resume),
            "RESET" => guest().map(|guest| Self::Reset { guest, at_us: moment(timestamp) }),
            "SHUTDOWN" => guest().map(|guest| Self::Shutdown { guest }),
            "POWERDOWN" => Some(Self::Powerdown),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other { name: shorten(name.to_owned(), KEPT_TEXT) })
    }
}

fn moment(timestamp: Option<&str>) -> Option<u64> {
    let Timestamp { seconds, microseconds } = read(timestamp)?;
    seconds.checked_mul(1_000_000)?.checked_add(microseconds)
}

fn read<'a, T: Deserialize<'a>>(data: Option<&'a str>) -> Option<T> {
    serde_json::from_str(data?).ok()
}

/// At most [`MAX_EVENTS`] events, oldest first.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    waiting: VecDeque<Event>,
    dropped: u64,
}

impl EventQueue {
    pub(crate) fn push(&mut self, event: Event) {
        if self.waiting.len() >= MAX_EVENTS {
            self.waiting.pop_front();
            self.dropped = self.dropped.saturating_add(1);
        }
        self.waiting.push_back(event);
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.waiting.pop_front()
    }

    pub(crate) const fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn events_as_qemu_writes_them() {
        let actual = MemTarget(Bytes::mib(64));
        assert_eq!(
            Event::from_wire("BALLOON_CHANGE", Some(r#"{"actual": 67108864}"#), None),
            Event::BalloonChange { actual }
        );
        let reset = r#"{"guest": false, "reason": "host-qmp-system-reset"}"#;
        let when = r#"{"seconds": 1795260309, "microseconds": 177678}"#;
        let at_us = Some(1_795_260_309_177_678);
        assert_eq!(Event::from_wire("RESET", Some(reset), Some(when)), Event::Reset { guest: false, at_us });
        let shutdown = Event::from_wire("SHUTDOWN", Some(r#"{"guest": true}"#), None);
        assert_eq!(shutdown, Event::Shutdown { guest: true });
        assert_eq!(Event::from_wire("STOP", None, Some("7")), Event::Stop);
    }

    #[test]
    fn a_time_that_is_none_is_left_out() {
        let reset = Some(r#"{"guest": true}"#);
        for when in [None, Some("{}"), Some("[]"), Some(r#"{"seconds": -1, "microseconds": -1}"#)] {
            assert_eq!(Event::from_wire("RESET", reset, when), Event::Reset { guest: true, at_us: None });
        }
        let late = r#"{"seconds": 18446744073709551615, "microseconds": 1}"#;
        assert_eq!(Event::from_wire("RESET", reset, Some(late)), Event::Reset { guest: true, at_us: None });
    }

    #[test]
    fn events_with_wrong_data_are_kept_by_name() {
        let name = || "BALLOON_CHANGE".to_owned();
        for data in [None, Some("{}"), Some(r#"{"actual": "1"}"#), Some(r#"{"actual": -1}"#), Some("[]")] {
            assert_eq!(Event::from_wire("BALLOON_CHANGE", data, None), Event::Other { name: name() });
        }
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts() {
        let mut queue = EventQueue::default();
        let other = |n: usize| Event::Other { name: n.to_string() };
        (0..MAX_EVENTS + 3).for_each(|n| queue.push(other(n)));
        assert_eq!(queue.dropped(), 3);
        assert_eq!(queue.pop(), Some(other(3)));
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), MAX_EVENTS - 1);
    }
}
