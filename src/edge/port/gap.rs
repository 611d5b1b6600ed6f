//! Records that are gone from the topic before the group has read them.

use super::records::TopicPartition;
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
    /// One past the last offset that the broker has.
    pub end: Position,
    /// Offsets that were never read and are gone.
    unread: u64,
}

impl Gap {
    /// The gap, if the position `from` is outside the log's range from `low` to `high`. `known` is where the log is known
    /// to have ended before.
    #[must_use]
    pub fn find(
        at: &TopicPartition,
        from: Position,
        (low, high): (i64, i64),
        known: Option<i64>,
    ) -> Option<Self> {
        let outside = from.0 < low || from.0 > high;
        outside.then(|| Self {
            at: at.clone(),
            from,
            to: Position(low),
            end: Position(high),
            unread: u64::try_from(known.unwrap_or(0) - from.0).unwrap_or(0),
        })
    }

    /// The topic is deleted: the gap is all that it is known to have had from `from` on.
    #[must_use]
    pub fn deleted(at: &TopicPartition, from: Position, known: Option<i64>) -> Self {
        Self {
            at: at.clone(),
            from,
            to: Position(0),
            end: Position(0),
            unread: u64::try_from(known.unwrap_or(0) - from.0).unwrap_or(0),
        }
    }

    /// Whether the log ends before the position, because it was truncated, deleted or made again: what was read from
    /// `end` on is no longer in it. A deleted topic of which nothing was read is one, too.
    #[must_use]
    pub fn is_restart(&self) -> bool {
        self.to <= self.from
    }

    /// The number of offsets that were lost before they were read.
    #[must_use]
    pub fn lost(&self) -> u64 {
        if self.is_restart() {
            return self.unread;
        }
        u64::try_from(self.to.0 - self.from.0).unwrap_or(0)
    }

    /// Logs the gap, with the exact range of lost offsets.
    pub fn log(&self) {
        let (topic, partition, from, to) =
            (&self.at.topic, self.at.partition, self.from.0, self.to.0);
        if !self.is_restart() {
            tracing::error!(
                topic = %topic, partition, from, to,
                "LOST: the offsets from {from} to {} of {topic} {partition} were deleted before they were read, by retention or by an operator; resuming at {to}",
                to - 1,
            );
        } else {
            tracing::error!(
                topic = %topic, partition, from, to,
                lost = self.lost(),
                "LOST: {topic} {partition} ends before the position {from} of this group: the topic was truncated, deleted or recreated, {} unread offsets are gone with it; restarting at {to}, records may be processed twice. Create a deleted topic with `hookstream topics create`; nothing has to be restarted",
                self.lost()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_read_is_lost_with_a_deleted_topic_also_when_nothing_was_read() {
        let at = TopicPartition {
            topic: "t".into(),
            partition: 0,
        };
        for (from, known, lost) in [
            (0, Some(4), 4),
            (1, Some(4), 3),
            (4, Some(4), 0),
            (9, Some(4), 0),
            (0, None, 0),
        ] {
            let gap = Gap::deleted(&at, Position(from), known);
            assert!(gap.is_restart());
            assert_eq!(gap.lost(), lost, "{gap:?}");
        }
    }

    #[test]
    fn a_position_outside_of_the_log_is_a_gap() {
        let at = TopicPartition {
            topic: "t".into(),
            partition: 0,
        };
        let find = |from, range| Gap::find(&at, Position(from), range, Some(20));
        assert_eq!(find(5, (5, 9)), None);
        assert_eq!(find(9, (5, 9)), None);
        let deleted = find(4, (7, 9)).unwrap();
        assert_eq!((deleted.is_restart(), deleted.lost()), (false, 3));
        let restarted = find(10, (0, 9)).unwrap();
        assert_eq!((restarted.is_restart(), restarted.lost()), (true, 10));
    }
}
