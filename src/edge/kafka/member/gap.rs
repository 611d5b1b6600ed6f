//! Records that are gone from the topic before the group has read them.

use super::partition::TopicPartition;
use crate::model::units::Position;

/// A hole in what was read, or an end of the topic that lies before what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where.
    pub at: TopicPartition,
    /// What was to be read next.
    pub from: Position,
    /// The earliest record that the broker has: reading goes on there.
    pub to: Position,
}

impl Gap {
    /// The gap between the position `from` and a log that holds what lies from `low` up to `high`, if there is one.
    pub(super) fn find(at: &TopicPartition, from: Position, low: i64, high: i64) -> Option<Self> {
        let outside = from.0 < low || from.0 > high;
        outside.then(|| Self {
            at: at.clone(),
            from,
            to: Position(low),
        })
    }

    /// How many offsets are lost; 0 when the topic ends before the position, so that it was truncated or made again.
    #[must_use]
    pub fn lost(&self) -> u64 {
        u64::try_from(self.to.0 - self.from.0).unwrap_or(0)
    }

    /// Tells of it: lost records by their exact range.
    pub fn log(&self) {
        let (topic, partition, from, to) =
            (&self.at.topic, self.at.partition, self.from.0, self.to.0);
        if self.lost() > 0 {
            tracing::error!(
                topic = %topic, partition, from, to,
                "LOST: the offsets from {from} to {} of {topic} {partition} were deleted before they were read: retention has overtaken this group, or an operator deleted them; reading goes on at {to}",
                to - 1,
            );
        } else {
            tracing::error!(
                topic = %topic, partition, from, to,
                "{topic} {partition} ends before the position {from} of this group: it was truncated or made again; all that it holds is read, from {to}, and may be done a second time",
            );
        }
    }
}
