//! Detects egress outages. When most endpoints stop responding at once, the fault is not theirs but on the way to them:
//! the network's egress, DNS, a firewall. Attempts would be wasted, so intake pauses, and occasional probes find out
//! when to resume.
//!
//! A response of any status shows that the way works, so only attempts without a response count. Pure.

use std::time::{Duration, Instant};

/// The least number of recently active subscriptions for a decision.
pub const LEAST_LANES: usize = 5;
/// The percentage of them that must have no response.
pub const MOST: usize = 80;
/// The time that counts as recent.
pub const LATELY: Duration = Duration::from_secs(10);
/// The delay before the first probe; it doubles up to the longest.
const FIRST_PROBE: Duration = Duration::from_secs(1);
const LONGEST_PROBE: Duration = Duration::from_secs(15);

/// The health of a replica's subscriptions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Subscriptions with an attempt that ended in the last [`LATELY`].
    pub active: usize,
    /// Of these, subscriptions without a response to at least their last two attempts.
    pub failing: usize,
    /// Whether an attempt that began during the pause got a response.
    pub responded: bool,
    /// Whether a probe can be sent or is in flight.
    pub can_probe: bool,
}

impl Health {
    /// The sum of two workers' health.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            active: self.active + other.active,
            failing: self.failing + other.failing,
            responded: self.responded || other.responded,
            can_probe: self.can_probe || other.can_probe,
        }
    }

    fn most_fail(self) -> bool {
        self.active >= LEAST_LANES && self.failing * 100 >= self.active * MOST
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep the current state.
    Stay,
    /// Pause: stop intake and sending.
    Pause,
    /// Stay paused, but send one command as a probe.
    Probe,
    /// Resume, after a pause of this length.
    Resume(Duration),
}

/// The outage state of one replica.
#[derive(Debug, Default)]
pub struct Outage {
    paused: Option<Paused>,
}

#[derive(Debug)]
struct Paused {
    since: Instant,
    next_probe: Instant,
    wait: Duration,
}

impl Outage {
    /// Evaluates the replica's health; called several times per second.
    pub fn observe(&mut self, health: Health, now: Instant) -> Step {
        let Some(paused) = &mut self.paused else {
            if !health.most_fail() {
                return Step::Stay;
            }
            self.paused = Some(Paused {
                since: now,
                next_probe: now + FIRST_PROBE,
                wait: FIRST_PROBE,
            });
            return Step::Pause;
        };
        // Without a command to probe with, only new commands can show the end of the outage.
        if health.responded || now >= paused.next_probe && !health.can_probe {
            let length = now.saturating_duration_since(paused.since);
            self.paused = None;
            return Step::Resume(length);
        }
        if now < paused.next_probe {
            return Step::Stay;
        }
        paused.wait = (paused.wait * 2).min(LONGEST_PROBE);
        paused.next_probe = now + paused.wait;
        Step::Probe
    }

    /// Whether intake is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(active: usize, failing: usize) -> Health {
        Health {
            active,
            failing,
            responded: false,
            can_probe: true,
        }
    }

    #[test]
    fn it_takes_most_of_several_to_be_our_own_fault() {
        let now = crate::edge::clock::instant();
        for (active, failing, ours) in [
            (0, 0, false),
            (4, 4, false),
            (5, 5, true),
            (10, 2, false),
            (10, 7, false),
            (10, 8, true),
        ] {
            let step = Outage::default().observe(health(active, failing), now);
            assert_eq!(step == Step::Pause, ours, "{failing} of {active}");
        }
    }

    #[test]
    fn probes_come_ever_more_rarely_until_one_is_responded() {
        let mut now = crate::edge::clock::instant();
        let begin = now;
        let mut outage = Outage::default();
        assert_eq!(outage.observe(health(10, 10), now), Step::Pause);
        let mut probes = Vec::new();
        while now < begin + Duration::from_secs(60) {
            if outage.observe(health(10, 10), now) == Step::Probe {
                probes.push((now - begin).as_secs());
            }
            now += Duration::from_millis(100);
        }
        assert_eq!(probes, [1, 3, 7, 15, 30, 45]);
        let responded = Health {
            responded: true,
            ..health(10, 9)
        };
        assert_eq!(outage.observe(responded, now), Step::Resume(now - begin));
        assert!(!outage.is_paused());
    }

    #[test]
    fn with_nothing_to_probe_with_it_goes_on() {
        let now = crate::edge::clock::instant();
        let mut outage = Outage::default();
        outage.observe(health(10, 10), now);
        let empty = Health {
            can_probe: false,
            ..health(10, 10)
        };
        assert_eq!(outage.observe(empty, now), Step::Stay);
        let now = now + FIRST_PROBE;
        assert!(matches!(outage.observe(empty, now), Step::Resume(_)));
    }
}
