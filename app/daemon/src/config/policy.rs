//! The section `[policy]`: how the arbiter's constants are written, and nothing else.
//!
//! Shares are written in per cent, sizes and times with their unit, so that the unit stands in the value and
//! not in the key.

use std::time::Duration;

use plimsoll_policy::Config as Policy;
use plimsoll_units::{Bytes, Ppm};
use serde::Deserialize;

use super::raw::{Millis, Share, Size};
use super::text::{show_duration, show_share};

/// `[policy]` as written; what is absent keeps its default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct RawPolicy {
    distress_share: Option<Share>,
    distress_least: Option<Size>,
    agent_least: Option<Size>,
    headroom_share: Option<Share>,
    guest_swap_rate: Option<Size>,
    guest_stall_rate: Option<u64>,
    guest_stall: Option<Share>,
    demand_ahead: Option<Millis>,
    demand_least: Option<Share>,
    exhausted_share: Option<Share>,
    exhausted_least: Option<Size>,
    cache_fade: Option<Share>,
    distress_quiet: Option<Millis>,
    stats_max_age: Option<Millis>,
    agent_max_age: Option<Millis>,
    idle_share: Option<Share>,
    idle_after: Option<Millis>,
    plenty_share: Option<Share>,
    relax_share: Option<Share>,
    slack_share: Option<Share>,
    host_stall: Option<Share>,
    stall_step: Option<Share>,
    least_move: Option<Size>,
    stuck_window: Option<Millis>,
    stuck_rate: Option<Size>,
    stuck_retry: Option<Millis>,
    stuck_retry_most: Option<Millis>,
}

impl RawPolicy {
    /// The arbiter's configuration; an error names the key.
    pub(crate) fn check(self) -> Result<Policy, (&'static str, String)> {
        let d = Policy::default();
        let share = |raw: Option<Share>, default: Ppm| raw.map_or(default, |s| s.0);
        let size = |raw: Option<Size>, default: Bytes| raw.map_or(default, |s| s.0);
        let millis = |raw: Option<Millis>, default: u64| raw.map_or(default, |m| m.0);
        let policy = Policy {
            distress_share: share(self.distress_share, d.distress_share),
            distress_least: size(self.distress_least, d.distress_least),
            agent_least: size(self.agent_least, d.agent_least),
            headroom_share: share(self.headroom_share, d.headroom_share),
            guest_swap_rate: size(self.guest_swap_rate, d.guest_swap_rate),
            guest_stall_rate: self.guest_stall_rate.unwrap_or(d.guest_stall_rate),
            guest_stall: share(self.guest_stall, d.guest_stall),
            demand_ahead_ms: millis(self.demand_ahead, d.demand_ahead_ms),
            demand_least: share(self.demand_least, d.demand_least),
            exhausted_share: share(self.exhausted_share, d.exhausted_share),
            exhausted_least: size(self.exhausted_least, d.exhausted_least),
            cache_fade: share(self.cache_fade, d.cache_fade),
            distress_quiet_ms: millis(self.distress_quiet, d.distress_quiet_ms),
            stats_max_age_ms: millis(self.stats_max_age, d.stats_max_age_ms),
            agent_max_age_ms: millis(self.agent_max_age, d.agent_max_age_ms),
            idle_share: share(self.idle_share, d.idle_share),
            idle_after_ms: millis(self.idle_after, d.idle_after_ms),
            plenty_share: share(self.plenty_share, d.plenty_share),
            relax_share: share(self.relax_share, d.relax_share),
            slack_share: share(self.slack_share, d.slack_share),
            host_stall: share(self.host_stall, d.host_stall),
            stall_step: share(self.stall_step, d.stall_step),
            least_move: size(self.least_move, d.least_move),
            stuck_window_ms: millis(self.stuck_window, d.stuck_window_ms),
            stuck_rate: size(self.stuck_rate, d.stuck_rate),
            stuck_retry_ms: millis(self.stuck_retry, d.stuck_retry_ms),
            stuck_retry_most_ms: millis(self.stuck_retry_most, d.stuck_retry_most_ms),
        };
        sensible(&policy).map(|()| policy)
    }
}

/// What would make the arbiter work against itself.
fn sensible(policy: &Policy) -> Result<(), (&'static str, String)> {
    // A guest left with its need must not be in distress by that: see the policy's own test of its defaults.
    let least = policy.distress_share.0.saturating_mul(2);
    if policy.headroom_share.0 < least {
        let message = format!(
            "{} is less than twice policy.distress-share ({}): giving memory would cause distress",
            show_share(policy.headroom_share),
            show_share(policy.distress_share)
        );
        return Err(("policy.headroom-share", message));
    }
    if policy.least_move < Bytes::kib(64) {
        return Err(("policy.least-move", format!("{} is less than 64K", policy.least_move)));
    }
    if policy.exhausted_least < Bytes::mib(1) {
        let message =
            format!("{} is less than 1M: a guest would wait for every page", policy.exhausted_least);
        return Err(("policy.exhausted-least", message));
    }
    if policy.stuck_window_ms < 1000 {
        return Err(("policy.stuck-window", "less than 1s, the pace at which guests are looked at".into()));
    }
    if policy.stuck_retry_ms == 0 || policy.stuck_retry_most_ms < policy.stuck_retry_ms {
        return Err(("policy.stuck-retry", "it is 0, or more than policy.stuck-retry-most".into()));
    }
    if policy.stats_max_age_ms < 2000 {
        return Err(("policy.stats-max-age", "less than 2s; guests send statistics once a second".into()));
    }
    if policy.agent_max_age_ms < 1000 {
        return Err(("policy.agent-max-age", "less than 1s; agents report once a second".into()));
    }
    Ok(())
}

/// The section's keys and values, as they would be written.
pub(crate) fn entries(p: &Policy) -> Vec<(&'static str, String)> {
    let quoted = |text: String| format!("\"{text}\"");
    let share = |s: Ppm| quoted(show_share(s));
    let size = |b: Bytes| quoted(b.to_string());
    let millis = |ms: u64| quoted(show_duration(Duration::from_millis(ms)));
    vec![
        ("distress-share", share(p.distress_share)),
        ("distress-least", size(p.distress_least)),
        ("agent-least", size(p.agent_least)),
        ("headroom-share", share(p.headroom_share)),
        ("guest-swap-rate", size(p.guest_swap_rate)),
        ("guest-stall-rate", p.guest_stall_rate.to_string()),
        ("guest-stall", share(p.guest_stall)),
        ("demand-ahead", millis(p.demand_ahead_ms)),
        ("demand-least", share(p.demand_least)),
        ("exhausted-share", share(p.exhausted_share)),
        ("exhausted-least", size(p.exhausted_least)),
        ("cache-fade", share(p.cache_fade)),
        ("distress-quiet", millis(p.distress_quiet_ms)),
        ("stats-max-age", millis(p.stats_max_age_ms)),
        ("agent-max-age", millis(p.agent_max_age_ms)),
        ("idle-share", share(p.idle_share)),
        ("idle-after", millis(p.idle_after_ms)),
        ("plenty-share", share(p.plenty_share)),
        ("relax-share", share(p.relax_share)),
        ("slack-share", share(p.slack_share)),
        ("host-stall", share(p.host_stall)),
        ("stall-step", share(p.stall_step)),
        ("least-move", size(p.least_move)),
        ("stuck-window", millis(p.stuck_window_ms)),
        ("stuck-rate", size(p.stuck_rate)),
        ("stuck-retry", millis(p.stuck_retry_ms)),
        ("stuck-retry-most", millis(p.stuck_retry_most_ms)),
    ]
}
