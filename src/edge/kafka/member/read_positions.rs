//! The position of each partition: the next offset to read.
//!
//! The client reports a new position only after the first record from there. Until then the position is where reading
//! started.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::context::MemberContext;
use super::partition::TopicPartition;
use crate::edge::kafka::error::Failure;
use crate::model::units::Position;

/// Where reading started, and the position that the client reported then: while it reports the same, nothing was read.
struct Start {
    at: Position,
    reported: Option<Position>,
}

/// The positions of all assigned partitions.
#[derive(Default)]
pub(super) struct ReadPositions(HashMap<TopicPartition, Start>);

impl ReadPositions {
    /// The next offset to read, per partition.
    pub(super) fn current(
        &self,
        consumer: &BaseConsumer<MemberContext>,
    ) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        let reported = reported(consumer)?;
        let each = self.0.iter().filter_map(|(at, start)| {
            let now = *reported.get(at)?;
            let position = if now == start.reported {
                Some(start.at)
            } else {
                now
            };
            Some((at.clone(), position?))
        });
        Ok(each.collect())
    }

    /// The partition's topic is deleted. Returns whether it was known.
    pub(super) fn forget(&mut self, at: &TopicPartition) -> bool {
        self.0.remove(at).is_some()
    }

    /// Reading starts at `positions`.
    pub(super) fn start(
        &mut self,
        consumer: &BaseConsumer<MemberContext>,
        positions: &[(TopicPartition, Option<Position>)],
    ) -> Result<(), Failure> {
        let reported = reported(consumer)?;
        for (at, position) in positions {
            let start = Start {
                at: position.unwrap_or_default(),
                reported: reported.get(at).copied().flatten(),
            };
            self.0.insert(at.clone(), start);
        }
        Ok(())
    }
}

/// One past the last record that the client returned, per assigned partition.
fn reported(
    consumer: &BaseConsumer<MemberContext>,
) -> Result<HashMap<TopicPartition, Option<Position>>, Failure> {
    let positions = consumer
        .position()
        .map_err(|error| Failure::from_client("reading positions", error))?;
    let each = positions.elements().into_iter().map(|element| {
        let at = TopicPartition {
            topic: Arc::from(element.topic()),
            partition: element.partition(),
        };
        let position = match element.offset() {
            rdkafka::Offset::Offset(offset) => Some(Position(offset)),
            _ => None,
        };
        (at, position)
    });
    Ok(each.collect())
}
