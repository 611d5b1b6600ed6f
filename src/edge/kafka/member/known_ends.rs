//! The ends of the partitions that are read, from the reader's own statistics.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::partition::TopicPartition;

/// The part of the client's statistics that is used.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    topics: HashMap<String, Topic>,
}

#[derive(Deserialize)]
struct Topic {
    #[serde(default)]
    partitions: HashMap<String, Partition>,
}

/// The high watermark that the client knows; negative before the first.
#[derive(Deserialize)]
struct Partition {
    #[serde(default)]
    hi_offset: i64,
}

/// The highest end of each partition that was known. Written by the client's thread and read by the member's.
#[derive(Debug, Default)]
pub(super) struct KnownEnds(Mutex<HashMap<(String, i32), i64>>);

impl KnownEnds {
    /// Reads the client's statistics, JSON (librdkafka, STATISTICS.md).
    pub(super) fn read(&self, statistics: &[u8]) {
        let statistics: Statistics = match serde_json::from_slice(statistics) {
            Ok(statistics) => statistics,
            Err(error) => {
                tracing::debug!("unreadable client statistics: {error}");
                return;
            }
        };
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, found) in statistics.topics {
            for (number, partition) in found.partitions {
                if let Ok(number) = number.parse()
                    && partition.hi_offset >= 0
                {
                    let end = ends.entry((topic.clone(), number)).or_default();
                    *end = partition.hi_offset.max(*end);
                }
            }
        }
    }

    /// The highest end of a partition that was known since it was last forgotten.
    pub(super) fn of(&self, at: &TopicPartition) -> Option<i64> {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(&(at.topic.to_string(), at.partition)).copied()
    }

    /// The partition is read from elsewhere, perhaps of a topic that was made again.
    pub(super) fn forget(&self, at: &TopicPartition) {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.remove(&(at.topic.to_string(), at.partition));
    }
}

#[cfg(test)]
mod tests {
    use super::{KnownEnds, TopicPartition};

    #[test]
    fn the_highest_end_of_a_partition_is_known_until_it_is_forgotten() {
        let ends = KnownEnds::default();
        let at = TopicPartition {
            topic: "t".into(),
            partition: 3,
        };
        let read = |end: i64| {
            let told = serde_json::json!({"topics": {"t": {"partitions": {"3": {"hi_offset": end}, "-1": {}}}}});
            ends.read(told.to_string().as_bytes());
        };
        read(-1001);
        assert_eq!(ends.of(&at), None);
        read(7);
        read(2);
        ends.read(b"no JSON");
        assert_eq!(ends.of(&at), Some(7), "it was made again");
        ends.forget(&at);
        assert_eq!(ends.of(&at), None);
    }
}
