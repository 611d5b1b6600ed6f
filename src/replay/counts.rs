//! Counts of dead letters, by what becomes of them.

use std::collections::BTreeMap;

use super::withheld::{Why, WithheldGroup};
use crate::model::dead_letter::{DeadLetter, Reason};

/// A number of dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The number of dead letters.
    pub letters: u64,
    /// The size of their bodies.
    pub bytes: u64,
}

/// Dead letters counted by subscriber and reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterCounts {
    /// By subscriber and reason.
    pub groups: BTreeMap<(String, Reason), Count>,
    /// Unreadable records, which were skipped.
    pub unreadable: u64,
    /// Dead letters that stay open, since their subscription would not take them.
    pub withheld: BTreeMap<WithheldGroup, u64>,
}

impl DeadLetterCounts {
    /// The total number of dead letters.
    #[must_use]
    pub fn letters(&self) -> u64 {
        self.groups.values().map(|count| count.letters).sum()
    }

    /// The number of dead letters that stay open.
    #[must_use]
    pub fn withheld(&self) -> u64 {
        self.withheld.values().sum()
    }

    pub(super) fn withhold(&mut self, letter: &DeadLetter, why: Why) {
        let group = WithheldGroup {
            subscription: letter.subscription.clone(),
            subscriber: letter.subscriber.clone(),
            why,
        };
        *self.withheld.entry(group).or_default() += 1;
    }

    pub(super) fn add(&mut self, letter: &DeadLetter, bytes: usize) {
        let count = self
            .groups
            .entry((letter.subscriber.clone(), letter.info.reason))
            .or_default();
        count.letters += 1;
        count.bytes += bytes as u64;
    }
}
