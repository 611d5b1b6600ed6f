//! One source: its epoch, its events that are not committed, and its positions. Pure.

use std::collections::VecDeque;

use crate::fanout::counts::EventCounts;
use crate::fanout::history::EventPartition;
use crate::fanout::metrics::NewEpoch;
use crate::fanout::stamp::Stamp;
use crate::model::source::{Point, Source};
use crate::model::units::{Offset, Position};

/// An event that is not committed.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) offset: Offset,
    /// Records that were handed to the client and are not acknowledged.
    pub(super) unacknowledged: u32,
    pub(super) bytes: usize,
    /// `None` until all its records were handed to the client.
    pub(super) counts: Option<EventCounts>,
}

impl Entry {
    pub(super) fn is_done(&self) -> bool {
        self.counts.is_some() && self.unacknowledged == 0
    }
}

#[derive(Debug)]
pub(super) enum Epoch {
    /// It is committed: commands are written in it.
    Begun {
        stamp: Stamp,
        /// Of their headers.
        prefix: String,
    },
    /// It begins with the next event.
    Next { epoch: u32, why: NewEpoch },
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) at: EventPartition,
    /// Without an epoch.
    pub(super) place: Source,
    pub(super) epoch: Epoch,
    /// What was written last to each partition of the commands since the last start.
    pub(super) previous: Vec<Option<Point>>,
    /// The leader epoch and the offset of the last event taken since then.
    pub(super) last: Option<(i32, Offset)>,
    /// Events that are not committed, in order.
    pub(super) entries: VecDeque<Entry>,
    /// Of these, how many from the first one on are acknowledged.
    pub(super) done: usize,
    /// The number of the first one.
    pub(super) first: u64,
    /// Behind the last event taken, and behind offsets without a record.
    pub(super) next: Option<Position>,
    pub(super) committed: Option<Position>,
    /// Events before this offset may have been written in this epoch by somebody else, or before the last start; unknown
    /// at first.
    pub(super) until: Option<i64>,
}

impl Epoch {
    pub(super) fn begun(stamp: Stamp) -> Self {
        let prefix = stamp.source.prefix();
        Self::Begun { stamp, prefix }
    }
}

impl State {
    pub(super) fn stamp(&self, epoch: u32, partitions: i32) -> Stamp {
        let source = Source {
            epoch,
            ..self.place
        };
        Stamp { source, partitions }
    }

    /// Offsets that were written come again.
    pub(super) fn come_again(&mut self, random: u32) {
        if let Epoch::Begun { .. } = self.epoch {
            self.epoch = Epoch::Next {
                epoch: random,
                why: NewEpoch::Moved,
            };
        }
        self.last = None;
        self.next = None;
        self.previous.clear();
    }

    /// Whether the event at `offset`, the next one, may be the first one with this number of partitions of the commands.
    pub(super) fn may_switch(&self, partitions: i32, offset: Offset) -> bool {
        match &self.epoch {
            // The topic was made again: what was written is gone, and the old number cannot be written.
            Epoch::Begun { stamp, .. } if partitions < stamp.partitions => self.entries.is_empty(),
            _ => self.entries.is_empty() && self.until.is_some_and(|until| until <= offset.0),
        }
    }
}
