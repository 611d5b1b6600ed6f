//! The unfinished commands of ordered subscriptions, as a look-ahead finds them in the logs.
//!
//! A dead endpoint may have millions of them, so only the first ones of each subscription are kept, by their sequence:
//! up to its *horizon*. Pure.

use std::collections::BinaryHeap;

use crate::model::maps::SafeMap;
use crate::model::subscription::Order;
use crate::model::units::{EpochMs, Offset};

/// The memory of one entry besides its subject, bytes, roughly.
pub const ENTRY_BYTES: usize = 96;

/// The horizon of a subscription of which every unfinished command is known.
pub const ALL: i64 = i64::MAX;

/// A sequenced command that is unfinished according to its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The subject of its event.
    pub subject: Box<str>,
    /// Its position among the commands of its subject.
    pub sequence: i64,
    /// Attempts made.
    pub attempt: u32,
    /// When it is due.
    pub due: EpochMs,
    /// Its offset in `webhook-commands`; `None` when it is in a tier.
    pub released: Option<Offset>,
}

impl Found {
    fn weight(&self) -> usize {
        ENTRY_BYTES + self.subject.len()
    }
}

/// Orders by sequence alone.
#[derive(Debug)]
struct BySequence(Found);

impl PartialEq for BySequence {
    fn eq(&self, other: &Self) -> bool {
        self.0.sequence == other.0.sequence
    }
}

impl Eq for BySequence {}

impl PartialOrd for BySequence {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BySequence {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.sequence.cmp(&other.0.sequence)
    }
}

/// Commands of one kind, of one subscription.
#[derive(Debug)]
struct Firsts {
    /// The last one on top.
    found: BinaryHeap<BySequence>,
    /// The first one's sequence: it is always kept, or nothing would ever proceed.
    first: i64,
    weight: usize,
    horizon: i64,
}

impl Default for Firsts {
    fn default() -> Self {
        Self {
            found: BinaryHeap::new(),
            first: ALL,
            weight: 0,
            horizon: ALL,
        }
    }
}

impl Firsts {
    fn add(&mut self, found: Found) {
        if found.sequence <= self.horizon {
            self.first = self.first.min(found.sequence);
            self.weight += found.weight();
            self.found.push(BySequence(found));
        }
    }

    /// Drops the last ones until the others weigh at most `limit`; returns what the dropped ones weighed.
    fn shrink(&mut self, limit: usize) -> usize {
        let before = self.weight;
        while self.weight > limit
            && let Some(BySequence(last)) = self.found.peek()
            && last.sequence > self.first
        {
            self.horizon = last.sequence - 1;
            // Copies of one command go together.
            while let Some(BySequence(last)) = self.found.peek()
                && last.sequence > self.horizon
            {
                self.weight -= last.weight();
                self.found.pop();
            }
        }
        before - self.weight
    }
}

/// The unfinished commands of one subscription. Order per subject concerns only those without an attempt, so they are
/// bounded separately.
#[derive(Debug, Default)]
pub struct Unfinished {
    new: Firsts,
    retried: Firsts,
}

impl Unfinished {
    /// The commands that count for `order`, in no order; and the horizon: every unfinished command whose sequence is at
    /// most that is known, and of others nothing is.
    pub fn take(self, order: Order) -> (impl Iterator<Item = Found>, i64) {
        let (retried, horizon) = match order {
            Order::Strict => (Some(self.retried.found), self.retried.horizon),
            Order::PerSubject | Order::None => (None, ALL),
        };
        let horizon = horizon.min(self.new.horizon);
        let all = self
            .new
            .found
            .into_iter()
            .chain(retried.into_iter().flatten());
        (all.map(|BySequence(found)| found), horizon)
    }

    fn weight(&self) -> usize {
        self.new.weight + self.retried.weight
    }

    fn add(&mut self, found: Found) {
        match found.attempt {
            0 => self.new.add(found),
            _ => self.retried.add(found),
        }
    }

    /// Drops an eighth of the kind that weighs more; returns what that weighed.
    fn shrink(&mut self) -> usize {
        let most = match self.new.weight >= self.retried.weight {
            true => &mut self.new,
            false => &mut self.retried,
        };
        most.shrink(most.weight - most.weight.div_ceil(8))
    }
}

/// The key of a subscription's commands. It includes the subscriber: a subscription that is deleted and created again for
/// another subscriber does not own the earlier commands, which become dead letters. An id contains no slash, so keys are
/// unique.
fn key(subscription: &str, subscriber: &str) -> Box<str> {
    format!("{subscription}/{subscriber}").into()
}

/// Unfinished commands by subscription and subscriber, of bounded weight.
#[derive(Debug)]
pub struct UnderWay {
    all: SafeMap<Box<str>, Unfinished>,
    weight: usize,
    limit: usize,
}

impl UnderWay {
    /// Creates an empty one that keeps at most `limit` bytes of commands, roughly.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            all: SafeMap::default(),
            weight: 0,
            limit,
        }
    }

    /// Adds a command. Over the limit, the subscription that weighs most loses its last ones.
    pub fn add(&mut self, subscription: &str, subscriber: &str, found: Found) {
        let key = key(subscription, subscriber);
        let unfinished = self.all.entry(key).or_default();
        let before = unfinished.weight();
        unfinished.add(found);
        self.weight += unfinished.weight() - before;
        while self.weight > self.limit {
            let Some(most) = self.all.values_mut().max_by_key(|one| one.weight()) else {
                return;
            };
            // An eighth at a time, so that the search is rare.
            let dropped = most.shrink();
            self.weight -= dropped;
            if dropped == 0 {
                return;
            }
        }
    }

    /// Takes the commands of a subscription of this subscriber.
    pub fn remove(&mut self, subscription: &str, subscriber: &str) -> Unfinished {
        let key = key(subscription, subscriber);
        let found = self.all.remove(&key).unwrap_or_default();
        self.weight -= found.weight();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sequence: i64) -> Found {
        Found {
            subject: format!("subject {}", sequence % 7).into(),
            sequence,
            attempt: 0,
            due: EpochMs(0),
            released: None,
        }
    }

    #[test]
    fn of_a_large_backlog_the_first_ones_are_kept_and_small_ones_are_whole() {
        const LIMIT: usize = 100_000;
        let mut all = UnderWay::new(LIMIT);
        let mut random = fastrand::Rng::with_seed(1);
        let mut sequences: Vec<i64> = (0..20_000).collect();
        random.shuffle(&mut sequences);
        for sequence in sequences {
            all.add("large", "a", found(sequence));
            if sequence % 1000 == 0 {
                all.add("small", "a", found(sequence));
            }
            assert!(all.weight <= LIMIT);
        }
        let take = |found: Unfinished| {
            let (found, horizon) = found.take(Order::Strict);
            let mut kept: Vec<i64> = found.map(|found| found.sequence).collect();
            kept.sort_unstable();
            (kept, horizon)
        };
        let (small, horizon) = take(all.remove("small", "a"));
        assert_eq!((small.len(), horizon), (20, ALL));
        let (large, horizon) = take(all.remove("large", "a"));
        assert!((500..1_000).contains(&horizon), "{horizon}");
        assert_eq!(large, (0..=horizon).collect::<Vec<_>>(), "without a gap");
        assert_eq!(all.weight, 0);
        assert_eq!(take(all.remove("other", "a")), (Vec::new(), ALL));
    }

    #[test]
    fn those_with_an_attempt_do_not_displace_those_that_count_per_subject() {
        let mut all = UnderWay::new(100_000);
        for sequence in 0..5_000 {
            let attempt = u32::from(sequence >= 10);
            all.add(
                "one",
                "a",
                Found {
                    attempt,
                    ..found(sequence)
                },
            );
        }
        all.add("one", "a", found(6_000));
        let (kept, horizon) = all.remove("one", "a").take(Order::PerSubject);
        assert_eq!((kept.count(), horizon), (11, ALL));
    }

    #[test]
    fn the_first_one_is_kept_whatever_the_limit() {
        let mut all = UnderWay::new(1);
        all.add("two", "a", found(7));
        for sequence in [5, 3, 4, 3] {
            all.add("one", "a", found(sequence));
        }
        let (mut one, horizon) = all.remove("one", "a").take(Order::Strict);
        assert_eq!(horizon, 3);
        assert!(one.all(|found| found.sequence == 3), "copies go together");
        let (two, horizon) = all.remove("two", "a").take(Order::Strict);
        assert_eq!((two.count(), horizon), (1, ALL));
    }
}
