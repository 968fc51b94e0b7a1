//! A report as text.

use std::fmt::Write as _;

use plimsoll_agent_proto::Report;
use plimsoll_model::AgentStats;

use crate::signs::Signs;

/// One line of `name=value`: bytes, counts, microseconds. What the kernel does not have is left out.
pub(crate) fn line(report: &Report, signs: Signs) -> String {
    let mut line = format!("seq={} urgent={}", report.seq, report.urgent);
    // Writing to a String cannot fail.
    if signs != Signs::NONE {
        let _ = write!(line, " because={signs}");
    }
    for (name, value) in values(&report.stats) {
        if let Some(value) = value {
            let _ = write!(line, " {name}={value}");
        }
    }
    line
}

fn values(stats: &AgentStats) -> [(&'static str, Option<u64>); 18] {
    let bytes = |value: Option<plimsoll_units::Bytes>| value.map(|bytes| bytes.0);
    [
        ("total", bytes(stats.total)),
        ("free", bytes(stats.free)),
        ("available", bytes(stats.available)),
        ("committed", bytes(stats.committed)),
        ("cached", bytes(stats.cached)),
        ("active_file", bytes(stats.active_file)),
        ("anon", bytes(stats.anon)),
        ("swap_total", bytes(stats.swap_total)),
        ("swap_free", bytes(stats.swap_free)),
        ("reserve", bytes(stats.reserve)),
        ("swap_in", stats.swap_in),
        ("swap_out", stats.swap_out),
        ("refaults", stats.refaults),
        ("major_faults", stats.major_faults),
        ("alloc_stalls", stats.alloc_stalls),
        ("oom_kills", stats.oom_kills),
        ("psi_some_us", stats.psi.map(|psi| psi.some_us)),
        ("psi_full_us", stats.psi.map(|psi| psi.full_us)),
    ]
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let stats = AgentStats { available: Some(Bytes(4096)), oom_kills: Some(0), ..AgentStats::default() };
        let report = Report { seq: 7, urgent: true, stats, ..Report::default() };
        let said = line(&report, Signs::LOW | Signs::OOM_KILL);
        assert_eq!(said, "seq=7 urgent=true because=low,oom-kill available=4096 oom_kills=0");
        assert_eq!(line(&Report::default(), Signs::NONE), "seq=0 urgent=false");
    }
}
