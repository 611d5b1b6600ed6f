//! The time of the oldest event that waits for fan-out in each partition: reads one record where fan-out continues.
//!
//! A partition is read at most every [`EVERY`], and only if fan-out has moved: a busy fan-out moves each second, and its
//! oldest event is young.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::clients::Client;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::model::units::EpochMs;

/// The number of a topic in the settings, and a partition of it.
pub(super) type At = (usize, i32);

/// How long a time read is taken to be good enough.
const EVERY: Duration = Duration::from_secs(5);
/// Partitions that are read in one turn; the others follow.
const AT_ONCE: usize = 64;
/// How long to wait for the records.
const PATIENCE: Duration = Duration::from_millis(500);
/// A poll in between.
const POLL: Duration = Duration::from_millis(50);

/// What is known about a partition.
#[derive(Clone, Copy, Debug)]
struct Known {
    position: i64,
    read: Instant,
    time: Option<EpochMs>,
}

impl Known {
    fn is_current(&self, position: i64, now: Instant) -> bool {
        let moved = self.position != position || self.time.is_none();
        !moved || now.saturating_duration_since(self.read) < EVERY
    }
}

/// Reads and remembers the times.
pub(super) struct Oldest {
    client: Client,
    known: BTreeMap<At, Known>,
}

impl Oldest {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            known: BTreeMap::new(),
        }
    }

    /// The time of the first record from each of these positions on; `None` where it is not known yet, or where there are
    /// only transaction markers.
    ///
    /// # Errors
    /// [`Failure`] of the client.
    pub(super) fn of(
        &mut self,
        topics: &[String],
        waiting: &BTreeMap<At, i64>,
        now: Instant,
    ) -> Result<BTreeMap<At, Option<EpochMs>>, Failure> {
        self.known.retain(|at, _| waiting.contains_key(at));
        let known = &self.known;
        let is_due = |at: &At, position: i64| {
            known
                .get(at)
                .is_none_or(|known| !known.is_current(position, now))
        };
        let due = waiting
            .iter()
            .filter(|(at, position)| is_due(at, **position));
        let due: BTreeMap<At, i64> = due
            .map(|(at, position)| (*at, *position))
            .take(AT_ONCE)
            .collect();
        if !due.is_empty() {
            self.read(topics, &due, now)?;
        }
        let each = waiting.keys().map(|at| {
            let known = self.known.get(at);
            (*at, known.and_then(|known| known.time))
        });
        Ok(each.collect())
    }

    fn read(
        &mut self,
        topics: &[String],
        due: &BTreeMap<At, i64>,
        now: Instant,
    ) -> Result<(), Failure> {
        let failed = |error| Failure::from_client("reading the oldest events", error);
        let mut list = TopicPartitionList::with_capacity(due.len());
        for ((topic, partition), position) in due {
            list.add_partition_offset(&topics[*topic], *partition, Offset::Offset(*position))
                .map_err(failed)?;
        }
        self.client.assign(&list).map_err(failed)?;
        let mut times: BTreeMap<At, EpochMs> = BTreeMap::new();
        let deadline = clock::instant() + PATIENCE;
        while times.len() < due.len() && clock::instant() < deadline {
            match self.client.poll(POLL) {
                None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => return Err(failed(error)),
                Some(Ok(message)) => {
                    let topic = topics.iter().position(|topic| topic == message.topic());
                    let time = message.timestamp().to_millis().map(EpochMs);
                    if let (Some(topic), Some(time)) = (topic, time) {
                        times.entry((topic, message.partition())).or_insert(time);
                    }
                }
            }
        }
        self.client
            .assign(&TopicPartitionList::new())
            .map_err(failed)?;
        for (&at, &position) in due {
            let known = Known {
                position,
                read: now,
                time: times.get(&at).copied(),
            };
            self.known.insert(at, known);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_again_when_fan_out_has_moved_and_not_too_often() {
        let now = clock::instant();
        let known = Known {
            position: 7,
            read: now,
            time: Some(EpochMs(1)),
        };
        assert!(known.is_current(7, now + EVERY * 100));
        assert!(known.is_current(8, now + EVERY / 2));
        assert!(!known.is_current(8, now + EVERY));
        let unknown = Known {
            time: None,
            ..known
        };
        assert!(
            !unknown.is_current(7, now + EVERY),
            "there may be a record by now"
        );
    }
}
