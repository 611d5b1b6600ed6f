//! Where recent events came from, and what failed. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::units::Offset;

/// One partition of an event topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EventPartition {
    /// The topic, by the number that the shell gave it.
    pub(super) topic: usize,
    /// The partition's number.
    pub(super) partition: i32,
}

/// Where an event came from.
pub(super) type Origin = (EventPartition, Offset);

/// Where recent events came from, by the tag that their records carry.
#[derive(Debug)]
pub(super) struct Origins {
    first: usize,
    kept: usize,
    recent: VecDeque<Origin>,
}

impl Origins {
    /// Keeps that many.
    pub(super) fn new(kept: usize) -> Self {
        Self {
            first: 0,
            kept,
            recent: VecDeque::new(),
        }
    }

    /// Adds one; returns its tag.
    pub(super) fn add(&mut self, origin: Origin) -> usize {
        if self.recent.len() == self.kept {
            self.recent.pop_front();
            self.first += 1;
        }
        self.recent.push_back(origin);
        self.first + self.recent.len() - 1
    }

    /// Where the event with this tag came from, unless it is too old.
    pub(super) fn of(&self, tag: usize) -> Option<Origin> {
        self.recent.get(tag.checked_sub(self.first)?).copied()
    }
}

/// A partition whose next event failed alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) offset: Offset,
    pub(super) wait: Duration,
    /// Until when the partition is not read; `None` while its event is tried again.
    pub(super) until: Option<Instant>,
}

/// What is known of batches that are not committed, and of failures.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Batches that were committed, at the last failure.
    committed: u64,
    /// Batches that have ended since the last failure.
    ended: u64,
    /// The events of each of the last ones.
    events: VecDeque<usize>,
    /// Failures without a commit between them.
    pub(super) in_a_row: u32,
}

impl Failures {
    /// Takes note of a batch that has ended, and of how many events it has; keeps the last `kept`.
    pub(super) fn ended(&mut self, events: usize, kept: usize) {
        self.ended += 1;
        if self.events.len() == kept {
            self.events.pop_front();
        }
        self.events.push_back(events);
    }

    /// The events of batches that have ended and were not committed.
    pub(super) fn under_way(&self, committed: u64) -> usize {
        let done = committed.saturating_sub(self.committed);
        let pending = usize::try_from(self.ended.saturating_sub(done)).unwrap_or(usize::MAX);
        self.events.iter().rev().take(pending).sum()
    }

    /// Takes note of one; returns whether anything was committed since the last one.
    pub(super) fn failed(&mut self, committed: u64) -> bool {
        let progress = committed > self.committed;
        self.in_a_row = if progress { 1 } else { self.in_a_row + 1 };
        self.committed = committed;
        self.ended = 0;
        self.events.clear();
        progress
    }
}
