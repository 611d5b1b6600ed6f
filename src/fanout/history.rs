//! Where events come from, and what failed. Pure.

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

/// A partition whose next event failed alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) offset: Offset,
    pub(super) wait: Duration,
    /// Until when the partition is not read; `None` while its event is tried again.
    pub(super) until: Option<Instant>,
}

/// Failures.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Events that were committed, at the last failure.
    committed: u64,
    /// Failures without a commit between them.
    pub(super) in_a_row: u32,
}

impl Failures {
    /// Takes note of one; returns whether anything was committed since the last one.
    pub(super) fn failed(&mut self, committed: u64) -> bool {
        let progress = committed > self.committed;
        self.in_a_row = if progress { 1 } else { self.in_a_row + 1 };
        self.committed = committed;
        progress
    }
}
