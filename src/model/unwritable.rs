//! Partitions that refuse writes: which records are held back, and when one of them is tried again.
//!
//! A transaction with a record for such a partition aborts as a whole, so its records are kept apart from all others,
//! and a single record probes it, after a delay that doubles. When a probe succeeds, every other partition is probed at
//! once: what they have in common has probably recovered.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The delay before the first probe, and after each partition that recovered.
const FIRST: Duration = Duration::from_secs(1);
/// The longest delay between two probes.
const LONGEST: Duration = Duration::from_secs(30);

/// A partition of one of the topics that a role writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The topic, by the number that the role gave it.
    pub topic: usize,
    /// The partition; `None` for the whole topic, when the partition is not known.
    pub partition: Option<i32>,
}

impl Target {
    const fn whole(self) -> Self {
        Self {
            topic: self.topic,
            partition: None,
        }
    }
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    retry_at: Instant,
    delay: Duration,
}

/// The partitions that refuse writes at present.
#[derive(Debug, Default)]
pub struct Unwritable(BTreeMap<Target, Failing>);

impl Unwritable {
    /// Whether nothing fails.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The failing partition, or topic, that holds back a record for `target`.
    #[must_use]
    pub fn holds(&self, target: Target) -> Option<Target> {
        if self.0.is_empty() {
            return None;
        }
        let mut either = [target, target.whole()].into_iter();
        either.find(|one| self.0.contains_key(one))
    }

    /// A record for `target` could not be written. Returns whether that is new.
    pub fn failed(&mut self, target: Target, now: Instant) -> bool {
        if let Some(failing) = self.0.get_mut(&target) {
            failing.delay = (failing.delay * 2).min(LONGEST);
            failing.retry_at = now + failing.delay;
            return false;
        }
        self.0.insert(
            target,
            Failing {
                since: now,
                retry_at: now + FIRST,
                delay: FIRST,
            },
        );
        true
    }

    /// Probe `target` now.
    pub fn probe_now(&mut self, target: Target, now: Instant) {
        if let Some(failing) = self.0.get_mut(&target) {
            failing.retry_at = now;
        }
    }

    /// A record for `target` was written. Returns how long it had failed.
    pub fn written(&mut self, target: Target, now: Instant) -> Option<Duration> {
        let failing = self.0.remove(&target)?;
        for other in self.0.values_mut() {
            other.retry_at = other.retry_at.min(now);
            other.delay = FIRST;
        }
        Some(now.saturating_duration_since(failing.since))
    }

    /// Nothing is held for `target` any more.
    pub fn forget(&mut self, target: Target) {
        self.0.remove(&target);
    }

    /// The failing partitions to be probed, the longest overdue first.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = Target> {
        let mut due: Vec<(Instant, Target)> = self
            .0
            .iter()
            .filter(|(_, failing)| failing.retry_at <= now)
            .map(|(&target, failing)| (failing.retry_at, target))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, target)| target)
    }

    /// Every failing partition, and since when.
    pub fn all(&self) -> impl Iterator<Item = (Target, Instant)> {
        self.0
            .iter()
            .map(|(&target, failing)| (target, failing.since))
    }
}

/// The number of the transactional id that probes each failing partition. A probe that fails leaves its id stuck for as
/// long as that partition cannot be written, and must not keep others from being probed.
#[derive(Debug, Default)]
pub struct ProbeIds(BTreeMap<Target, usize>);

impl ProbeIds {
    /// The id of `target`: the lowest that no other has.
    pub fn of(&mut self, target: Target) -> usize {
        if let Some(&known) = self.0.get(&target) {
            return known;
        }
        let taken: BTreeSet<usize> = self.0.values().copied().collect();
        let free = (0..).find(|number| !taken.contains(number)).unwrap_or(0);
        self.0.insert(target, free);
        free
    }

    /// `target` can be written, so its id is not stuck.
    pub fn free(&mut self, target: Target) {
        self.0.remove(&target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Target = Target {
        topic: 1,
        partition: Some(3),
    };
    const B: Target = Target {
        topic: 2,
        partition: None,
    };

    #[test]
    fn a_failing_partition_is_probed_after_a_delay_that_doubles_up_to_a_limit() {
        let mut now = crate::edge::clock::instant();
        let mut unwritable = Unwritable::default();
        assert!(unwritable.failed(A, now));
        assert_eq!(unwritable.due(now).count(), 0);
        let mut delays = Vec::new();
        for _ in 0..7 {
            let began = now;
            while unwritable.due(now).next().is_none() {
                now += Duration::from_secs(1);
            }
            delays.push((now - began).as_secs());
            assert!(!unwritable.failed(A, now), "it is known");
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_failing_topic_holds_back_all_its_partitions_and_a_partition_only_itself() {
        let now = crate::edge::clock::instant();
        let mut unwritable = Unwritable::default();
        unwritable.failed(A, now);
        unwritable.failed(B, now);
        let of = |topic, partition| Target { topic, partition };
        assert_eq!(unwritable.holds(of(1, Some(3))), Some(A));
        assert_eq!(unwritable.holds(of(1, Some(4))), None);
        assert_eq!(unwritable.holds(of(1, None)), None);
        assert_eq!(unwritable.holds(of(2, Some(7))), Some(B));
        assert_eq!(unwritable.holds(of(2, None)), Some(B));
    }

    #[test]
    fn when_one_partition_recovers_the_others_are_probed_at_once() {
        let now = crate::edge::clock::instant();
        let mut unwritable = Unwritable::default();
        unwritable.failed(A, now);
        unwritable.failed(B, now);
        let later = now + Duration::from_millis(10);
        assert_eq!(unwritable.written(A, later), Some(later - now));
        assert_eq!(unwritable.due(later).collect::<Vec<_>>(), [B]);
        assert_eq!(unwritable.written(A, later), None);
    }

    #[test]
    fn each_failing_partition_is_probed_with_an_id_of_its_own() {
        let mut ids = ProbeIds::default();
        assert_eq!([ids.of(A), ids.of(B), ids.of(A)], [0, 1, 0]);
        ids.free(A);
        let other = Target { topic: 9, ..A };
        assert_eq!([ids.of(other), ids.of(A)], [0, 2]);
    }
}
