//! How far this process's clock is from those of others: of endpoints, by the `Date` of their responses (RFC 9110, section
//! 6.6.1), and of brokers, by the time that the leader of a partition gives to a record (`LogAppendTime`).
//!
//! A wrong clock makes a wrong `webhook-timestamp`, and every receiver refuses webhooks that seem to be too old or too new
//! (Standard Webhooks: five minutes). One endpoint may be wrong itself, or lie: so it takes [`LEAST_HOSTS`], and the median
//! of their latest values. Brokers belong to the operator, and there may be only one: one is enough. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Endpoints that an estimate takes.
pub const LEAST_HOSTS: usize = 3;
/// Hosts that are remembered; further ones replace the oldest.
const MOST_HOSTS: usize = 256;
/// How long a value counts.
const FRESH: Duration = Duration::from_secs(600);

/// The latest value of each host.
#[derive(Debug)]
pub struct ClockSkew {
    least: usize,
    hosts: BTreeMap<Box<str>, (Instant, f64)>,
}

impl ClockSkew {
    /// Without values; an estimate takes those of `least` hosts.
    #[must_use]
    pub fn of(least: usize) -> Self {
        Self {
            least: least.max(1),
            hosts: BTreeMap::new(),
        }
    }

    /// Takes note that this clock is ahead of the host's by this many seconds, or behind it where that is negative.
    pub fn note(&mut self, host: &str, ahead: f64, now: Instant) {
        if let Some(known) = self.hosts.get_mut(host) {
            *known = (now, ahead);
            return;
        }
        if self.hosts.len() >= MOST_HOSTS {
            let oldest = self.hosts.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
                self.hosts.remove(&oldest);
            }
        }
        self.hosts.insert(host.into(), (now, ahead));
    }

    /// By how many seconds this clock is ahead of the others; `None` with too few hosts of the last ten minutes.
    #[must_use]
    pub fn ahead(&self, now: Instant) -> Option<f64> {
        let fresh = self.hosts.values().filter(|(at, _)| now - *at < FRESH);
        let mut values: Vec<f64> = fresh.map(|(_, ahead)| *ahead).collect();
        if values.len() < self.least {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary beginning")]
        Instant::now()
    }

    #[test]
    fn one_host_that_is_wrong_changes_nothing() {
        let (mut skew, now) = (ClockSkew::of(LEAST_HOSTS), start());
        assert_eq!(skew.ahead(now), None);
        skew.note("a", 90.0, now);
        skew.note("b", 91.0, now);
        assert_eq!(skew.ahead(now), None, "two hosts are too few");
        skew.note("liar", -86_400.0, now);
        assert_eq!(skew.ahead(now), Some(90.0));
        skew.note("liar", 1e12, now);
        assert_eq!(skew.ahead(now), Some(91.0));
        skew.note("a", 0.2, now);
        skew.note("b", 0.1, now);
        assert_eq!(skew.ahead(now), Some(0.2), "the latest values count");
    }

    #[test]
    fn one_broker_is_enough_and_of_three_the_wrong_one_changes_nothing() {
        let (mut skew, now) = (ClockSkew::of(1), start());
        assert_eq!(skew.ahead(now), None);
        skew.note("tier/0", 90.0, now);
        assert_eq!(skew.ahead(now), Some(90.0));
        skew.note("tier/1", 91.0, now);
        skew.note("tier/2", -3600.0, now);
        assert_eq!(skew.ahead(now), Some(90.0));
    }

    #[test]
    fn old_values_do_not_count_and_hosts_are_bounded() {
        let (mut skew, now) = (ClockSkew::of(LEAST_HOSTS), start());
        for host in ["a", "b", "c"] {
            skew.note(host, 5.0, now);
        }
        assert_eq!(skew.ahead(now + FRESH), None);
        for number in 0..2 * MOST_HOSTS {
            let at = now + Duration::from_millis(number as u64 + 1);
            skew.note(&format!("host-{number}"), 7.0, at);
        }
        assert_eq!(skew.hosts.len(), MOST_HOSTS);
        assert!(!skew.hosts.contains_key("a"), "the oldest are forgotten");
    }
}
