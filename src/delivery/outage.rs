//! Detects egress outages. When most endpoints stop responding at once, the fault may be on the way to them: the
//! network's egress, DNS, a firewall. It counts as ours only if it looks so from many sides: distinct hosts and distinct
//! subscribers, not subscriptions, of which one tenant may point any number to one dead host.
//!
//! During an outage the lanes without a response are held (their commands are parked, and no attempts are spent but
//! probes); every other lane goes on, and so does intake. So a wrong decision delays nobody whose endpoint works. Probes
//! go to several held lanes at once, and the first one that hears anything from its endpoint ends the outage.
//!
//! Any bytes of an endpoint show that the way works, whatever they say. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::partition::health::{LaneHealth, Look};

/// The least number of distinct hosts, and of distinct subscribers, without a response.
pub const LEAST: usize = 5;
/// The percentage that they must be of the recently active hosts, and of the recently active subscribers.
pub const MOST: usize = 80;
/// The most probes that a worker sends at once.
pub const PROBES: usize = 8;
/// The time between probes in the first [`YOUNG`], and later.
const EVERY: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);
const YOUNG: Duration = Duration::from_secs(60);
/// After an outage, another one is not looked for within this time: the attempts of before must not count again.
const COOL_DOWN: Duration = Duration::from_secs(10);

/// The health of a replica's subscriptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Those with recent attempts, and those that are held.
    pub lanes: Vec<LaneHealth>,
    /// Whether a held lane heard anything from its endpoint.
    pub heard: bool,
}

impl Health {
    /// Adds another worker's health.
    pub fn add(&mut self, mut other: Self) {
        self.lanes.append(&mut other.lanes);
        self.heard |= other.heard;
    }
}

/// How many of something do not respond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Those of which no lane responds and at least one fails.
    pub failing: usize,
    /// All that were active.
    pub of: usize,
}

impl Share {
    /// Counts distinct values of `key`.
    fn count(lanes: &[LaneHealth], key: impl Fn(&LaneHealth) -> u64) -> Self {
        let mut all: HashMap<u64, (bool, bool)> = HashMap::new();
        for lane in lanes {
            let (fails, responds) = all.entry(key(lane)).or_default();
            *fails |= lane.look == Look::Fails;
            *responds |= lane.look == Look::Responds;
        }
        let failing = all.values().filter(|(fails, responds)| *fails && !responds);
        Self {
            failing: failing.count(),
            of: all.len(),
        }
    }

    fn is_most(self) -> bool {
        self.failing >= LEAST && self.failing * 100 >= self.of * MOST
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep the current state.
    Stay,
    /// Hold the lanes that fail.
    Begin {
        /// Hosts without a response.
        hosts: Share,
        /// Subscribers without a response.
        subscribers: Share,
    },
    /// Let some held lanes send one command each.
    Probe,
    /// Hold no lane any more.
    End {
        /// How long the outage lasted.
        length: Duration,
        /// Whether a held lane heard from its endpoint; otherwise too few were left that fail.
        heard: bool,
    },
}

/// The outage state of one replica.
#[derive(Debug, Default)]
pub struct Outage {
    begun: Option<Begun>,
    ended: Option<Instant>,
}

#[derive(Debug)]
struct Begun {
    since: Instant,
    next_probe: Instant,
}

impl Outage {
    /// Whether there is an outage.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.begun.is_some()
    }

    /// Evaluates the replica's health; called several times per second.
    pub fn observe(&mut self, health: &Health, now: Instant) -> Step {
        let failing = health.lanes.iter().filter(|lane| lane.look == Look::Fails);
        // Counting hosts and subscribers costs more, and is rarely needed.
        let is_possible = failing.count() >= LEAST;
        let Some(begun) = &mut self.begun else {
            let ended = self.ended;
            if !is_possible || ended.is_some_and(|at| since(at, now) < COOL_DOWN) {
                return Step::Stay;
            }
            let hosts = Share::count(&health.lanes, |lane| lane.host);
            let subscribers = Share::count(&health.lanes, |lane| lane.subscriber);
            if !hosts.is_most() || !subscribers.is_most() {
                return Step::Stay;
            }
            self.begun = Some(Begun {
                since: now,
                next_probe: now + EVERY,
            });
            return Step::Begin { hosts, subscribers };
        };
        let length = since(begun.since, now);
        if health.heard || !is_possible {
            let heard = health.heard;
            self.begun = None;
            self.ended = Some(now);
            return Step::End { length, heard };
        }
        if now < begun.next_probe {
            return Step::Stay;
        }
        begun.next_probe = now + if length < YOUNG { EVERY } else { LATER };
        Step::Probe
    }
}

fn since(at: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(host: u64, subscriber: u64, look: Look) -> LaneHealth {
        LaneHealth {
            host,
            subscriber,
            look,
        }
    }

    fn health(lanes: impl IntoIterator<Item = LaneHealth>) -> Health {
        Health {
            lanes: lanes.into_iter().collect(),
            heard: false,
        }
    }

    /// So many hosts and subscribers of their own that fail, and so many that respond.
    fn sides(failing: u64, responding: u64) -> Health {
        let fails = (0..failing).map(|n| lane(n, n, Look::Fails));
        let well = (0..responding).map(|n| lane(100 + n, 100 + n, Look::Responds));
        health(fails.chain(well))
    }

    fn begins(health: &Health) -> bool {
        let step = Outage::default().observe(health, crate::edge::clock::instant());
        matches!(step, Step::Begin { .. })
    }

    #[test]
    fn it_takes_most_of_several_hosts_and_subscribers() {
        for (failing, responding, ours) in [
            (0, 0, false),
            (4, 0, false),
            (5, 0, true),
            (5, 1, true),
            (5, 2, false),
            (8, 2, true),
            (80, 21, false),
        ] {
            let found = begins(&sides(failing, responding));
            assert_eq!(found, ours, "{failing} fail, {responding} respond");
        }
    }

    #[test]
    fn many_subscriptions_of_one_host_or_one_subscriber_are_one_side() {
        let many = 0..50;
        let one_host = many.clone().map(|n| lane(1, n, Look::Fails));
        assert!(!begins(&health(one_host)), "one dead host");
        let one_owner = many.clone().map(|n| lane(n, 1, Look::Fails));
        assert!(!begins(&health(one_owner)), "one tenant's dead hosts");
        // The case: eight that point to one closed port, beside two healthy ones.
        let eight = (0..8).map(|n| lane(1, n, Look::Fails));
        let two = (8..10).map(|n| lane(n, n, Look::Responds));
        assert!(!begins(&health(eight.chain(two))));
        // A host of which another lane responds is reached.
        let both = (0..6).flat_map(|n| [lane(n, n, Look::Fails), lane(n, n + 10, Look::Responds)]);
        assert!(!begins(&health(both)));
        let unclear = (0..5).map(|n| lane(50 + n, 50 + n, Look::Unclear));
        let mut mixed = sides(5, 0);
        mixed.lanes.extend(unclear);
        assert!(!begins(&mixed), "those that are not known yet may be well");
    }

    #[test]
    fn probes_come_every_second_and_after_a_minute_every_five() {
        let begin = crate::edge::clock::instant();
        let mut outage = Outage::default();
        let (mut now, mut probes) = (begin, Vec::new());
        assert!(matches!(
            outage.observe(&sides(10, 0), now),
            Step::Begin { .. }
        ));
        while now < begin + Duration::from_secs(80) {
            if outage.observe(&sides(10, 3), now) == Step::Probe {
                probes.push((now - begin).as_secs());
            }
            now += Duration::from_millis(100);
        }
        let expected: Vec<u64> = (1..=60).chain([65, 70, 75]).collect();
        assert_eq!(probes, expected);
    }

    #[test]
    fn it_ends_when_a_held_lane_hears_something_or_too_few_are_left() {
        let now = crate::edge::clock::instant();
        for (heard, left) in [(true, 10), (false, 4)] {
            let mut outage = Outage::default();
            outage.observe(&sides(10, 0), now);
            let later = now + EVERY / 2;
            let seen = Health {
                heard,
                ..sides(left, 0)
            };
            let length = EVERY / 2;
            assert_eq!(outage.observe(&seen, later), Step::End { length, heard });
            let again = outage.observe(&sides(10, 0), later + COOL_DOWN / 2);
            assert_eq!(again, Step::Stay, "not from what is known already");
            let again = outage.observe(&sides(10, 0), later + COOL_DOWN);
            assert!(matches!(again, Step::Begin { .. }));
        }
    }
}
