//! What has happened: a ring of the last events, numbered, for whoever asks.

use std::collections::VecDeque;

use plimsoll_api::http::{Event, EventList};
use plimsoll_model::VmName;

use crate::clock;

/// Events kept; older ones are counted as lost to whoever asks for them.
pub(crate) const KEPT: usize = 4096;

/// Events in one answer at most.
pub(crate) const ANSWERED: usize = 1000;

/// The kinds of events, by the names the API documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    DaemonStarted,
    Registered,
    Running,
    Target,
    Held,
    Released,
    Tuned,
    Distressed,
    Relieved,
    Stuck,
    Stalled,
    Unreachable,
    Unprotected,
    Rebooted,
    BackendRestarted,
    PodExhausted,
    PodRelieved,
    PagerLost,
    Stopping,
    Gone,
    Forgotten,
    HostTight,
    HostShort,
    HostAmple,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::DaemonStarted => "daemon-started",
            Self::Registered => "registered",
            Self::Running => "running",
            Self::Target => "target",
            Self::Held => "held",
            Self::Released => "released",
            Self::Tuned => "tuned",
            Self::Distressed => "distressed",
            Self::Relieved => "relieved",
            Self::Stuck => "stuck",
            Self::Stalled => "stalled",
            Self::Unreachable => "unreachable",
            Self::Unprotected => "unprotected",
            Self::Rebooted => "rebooted",
            Self::BackendRestarted => "backend-restarted",
            Self::PodExhausted => "pod-exhausted",
            Self::PodRelieved => "pod-relieved",
            Self::PagerLost => "pager-lost",
            Self::Stopping => "stopping",
            Self::Gone => "gone",
            Self::Forgotten => "forgotten",
            Self::HostTight => "host-tight",
            Self::HostShort => "host-short",
            Self::HostAmple => "host-ample",
        }
    }
}

/// The ring.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    ring: VecDeque<Event>,
    last_seq: u64,
}

impl EventLog {
    /// Adds an event and returns it for the journal.
    pub(crate) fn push(&mut self, vm: Option<&VmName>, kind: Kind, text: String) -> &Event {
        self.last_seq = self.last_seq.saturating_add(1);
        if self.ring.len() >= KEPT {
            self.ring.pop_front();
        }
        let event = Event {
            seq: self.last_seq,
            wall_us: clock::wall_us(),
            vm: vm.cloned(),
            kind: kind.as_str().to_owned(),
            text,
        };
        let index = self.ring.len();
        self.ring.push_back(event);
        &self.ring[index]
    }

    /// The newest number.
    pub(crate) const fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// What came after `after`, of `vm` only if one is named.
    ///
    /// `last_seq` is where to go on: beyond events of other VMs that were passed over, too.
    pub(crate) fn after(&self, after: u64, vm: Option<&VmName>) -> EventList {
        let oldest = self.ring.front().map_or(self.last_seq.saturating_add(1), |e| e.seq);
        let lost = oldest.saturating_sub(after.saturating_add(1));
        let skip = usize::try_from(after.saturating_add(1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        let wanted = |e: &&Event| vm.is_none_or(|name| e.vm.as_ref() == Some(name));
        let mut matching = self.ring.iter().skip(skip).filter(wanted);
        let events: Vec<Event> = matching.by_ref().take(ANSWERED).cloned().collect();
        let last_seq = match (matching.next(), events.last()) {
            (Some(_), Some(last)) => last.seq,
            // An `after` from before a restart of the daemon is answered with where the numbers are now.
            _ => self.last_seq,
        };
        EventList { events, last_seq, lost }
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> VmName {
        VmName::new(text).unwrap()
    }

    fn filled(n: usize) -> EventLog {
        let mut log = EventLog::default();
        for i in 0..n {
            let vm = name(if i % 2 == 0 { "even" } else { "odd" });
            log.push(Some(&vm), Kind::Target, i.to_string());
        }
        log
    }

    #[test]
    fn numbers_begin_at_one_and_what_fell_out_is_counted() {
        let log = filled(KEPT + 10);
        let answer = log.after(0, None);
        assert_eq!((answer.lost, answer.events[0].seq, answer.events.len()), (10, 11, ANSWERED));
        assert_eq!(answer.last_seq, 10 + u64::try_from(ANSWERED).unwrap());
        assert_eq!(EventLog::default().after(0, None), EventList { events: vec![], last_seq: 0, lost: 0 });
    }

    #[test]
    fn a_number_from_before_a_restart_gets_nothing_and_the_way_on() {
        let answer = filled(3).after(1_000, None);
        assert_eq!(answer, EventList { events: vec![], last_seq: 3, lost: 0 });
        assert_eq!(filled(3).after(u64::MAX, None).last_seq, 3);
    }

    proptest! {
        #[test]
        fn reading_on_and_on_sees_everything_once(n in 0usize..6000, pushes in 0usize..50, only_odd: bool) {
            let mut log = filled(n);
            let filter = only_odd.then(|| name("odd"));
            let (mut at, mut seen, mut lost) = (0, Vec::new(), 0);
            for round in 0..20 {
                let answer = log.after(at, filter.as_ref());
                prop_assert!(answer.last_seq >= at);
                lost += answer.lost;
                seen.extend(answer.events.iter().map(|e| e.seq));
                at = answer.last_seq;
                if round == 0 {
                    for _ in 0..pushes { log.push(Some(&name("odd")), Kind::Held, String::new()); }
                }
            }
            prop_assert_eq!(at, log.last_seq());
            prop_assert!(seen.windows(2).all(|w| w[0] < w[1]));
            if !only_odd {
                prop_assert_eq!(u64::try_from(seen.len()).unwrap() + lost, log.last_seq());
            }
        }
    }
}
