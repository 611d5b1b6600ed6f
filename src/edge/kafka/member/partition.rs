//! Partitions and positions, and their lists in the client's form.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::model::units::Position;

pub use crate::edge::port::records::{Commit, TopicPartition};

pub(super) fn list(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    let mut topics: HashMap<String, Arc<str>> = HashMap::new();
    partitions
        .elements()
        .iter()
        .map(|element| {
            let topic = topics
                .entry(element.topic().to_owned())
                .or_insert_with(|| Arc::from(element.topic()));
            TopicPartition {
                topic: Arc::clone(topic),
                partition: element.partition(),
            }
        })
        .collect()
}

pub(super) fn plain(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for at in partitions {
        list.add_partition(&at.topic, at.partition);
    }
    list
}

/// Positions in the client's form; the earliest record where there is none.
pub(super) fn starting(
    positions: &[(TopicPartition, Option<Position>)],
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for (at, position) in positions {
        let offset = position.map_or(rdkafka::Offset::Beginning, |position| {
            rdkafka::Offset::Offset(position.0)
        });
        list.add_partition_offset(&at.topic, at.partition, offset)?;
    }
    Ok(list)
}

/// Commits in the client's form.
///
/// # Errors
/// The client's error for an offset out of its range.
pub fn commit_list(commits: &[Commit]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(&commit.at.topic, commit.at.partition);
        element.set_offset(rdkafka::Offset::Offset(commit.position.0))?;
        if !commit.metadata.is_empty() {
            element.set_metadata(&commit.metadata);
        }
    }
    Ok(list)
}
