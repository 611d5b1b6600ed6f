//! Records that are gone from the topic before the group has read them.

use super::partition::TopicPartition;
use crate::model::units::Position;

/// A range of deleted offsets, or a log end before the committed position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where.
    pub at: TopicPartition,
    /// The offset to read next before the gap.
    pub from: Position,
    /// The earliest offset that the broker has, where reading resumes.
    pub to: Position,
}

impl Gap {
    /// The gap, if the position `from` is outside the log's range from `low` to `high`.
    pub(super) fn find(at: &TopicPartition, from: Position, low: i64, high: i64) -> Option<Self> {
        let outside = from.0 < low || from.0 > high;
        outside.then(|| Self {
            at: at.clone(),
            from,
            to: Position(low),
        })
    }

    /// The number of lost offsets; 0 when the log ends before the position because it was truncated or recreated.
    #[must_use]
    pub fn lost(&self) -> u64 {
        u64::try_from(self.to.0 - self.from.0).unwrap_or(0)
    }

    /// Logs the gap, with the exact range of lost offsets.
    pub fn log(&self) {
        let (topic, partition, from, to) =
            (&self.at.topic, self.at.partition, self.from.0, self.to.0);
        if self.lost() > 0 {
            tracing::error!(
                topic = %topic, partition, from, to,
                "LOST: the offsets from {from} to {} of {topic} {partition} were deleted before they were read, by retention or by an operator; resuming at {to}",
                to - 1,
            );
        } else {
            tracing::error!(
                topic = %topic, partition, from, to,
                "{topic} {partition} ends before the position {from} of this group: the topic was truncated or recreated; restarting at {to}, records may be processed twice",
            );
        }
    }
}
