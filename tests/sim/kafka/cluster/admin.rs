//! Topics: created, described, enlarged, emptied, deleted; and what happens to their logs with time.

use std::sync::Arc;

use super::{Cluster, Partition, Topic};
use crate::kafka::log::{Bounds, Log, Ms};
use crate::kafka::{Code, Node, Reply, Tp};

/// A topic's settings, as far as they are simulated.
#[derive(Clone, Debug)]
pub struct TopicConfig {
    /// The number of partitions.
    pub partitions: i32,
    /// The number of replicas.
    pub replication: usize,
    /// `min.insync.replicas`.
    pub min_in_sync: usize,
    /// `max.message.bytes`: of a batch.
    pub largest: usize,
    /// `retention.ms`; `None` keeps records for ever.
    pub retention: Option<Ms>,
    /// `retention.bytes`, per partition.
    pub retention_bytes: Option<usize>,
    /// `cleanup.policy` has `compact`.
    pub compact: bool,
    /// `cleanup.policy` has `delete`.
    pub delete: bool,
    /// `message.timestamp.type` is `LogAppendTime`.
    pub append_time: bool,
    /// `min.compaction.lag.ms`.
    pub compaction_lag: Ms,
    /// `delete.retention.ms`.
    pub tombstones: Ms,
    /// `message.timestamp.after.max.ms`.
    pub ahead: Ms,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            partitions: 1,
            replication: 3,
            min_in_sync: 1,
            largest: 1_048_588,
            retention: Some(7 * 24 * 3_600_000),
            retention_bytes: None,
            compact: false,
            delete: true,
            append_time: false,
            compaction_lag: 0,
            tombstones: 24 * 3_600_000,
            ahead: 3_600_000,
        }
    }
}

/// A topic as metadata describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its id: another one when a topic of the same name is made again (KIP-516).
    pub id: u64,
    /// The leader of each partition.
    pub leaders: Vec<Option<Node>>,
}

impl Cluster {
    /// Creates a topic.
    ///
    /// # Errors
    /// `TOPIC_ALREADY_EXISTS`, `INVALID_PARTITIONS`, `INVALID_REPLICATION_FACTOR`.
    pub fn create_topic(&mut self, name: &str, config: TopicConfig) -> Result<(), Code> {
        if self.topics.contains_key(name) {
            return Err(Code::TopicAlreadyExists);
        }
        if config.partitions < 1 {
            return Err(Code::InvalidPartitions);
        }
        let running = self.running().len();
        if config.replication > running {
            return Err(Code::InvalidReplicationFactor);
        }
        let id = self.next();
        let each = 0..config.partitions;
        let partitions = each.map(|number| self.new_partition(number, config.replication));
        let topic = Topic {
            id,
            partitions: partitions.collect(),
            config,
        };
        self.topics.insert(Arc::from(name), topic);
        Ok(())
    }

    fn new_partition(&self, number: i32, replication: usize) -> Partition {
        let replicas = self.place(number, replication);
        let running = replicas.iter().copied().filter(|node| self.is_up(*node));
        let in_sync: std::collections::BTreeSet<_> = running.collect();
        let leader = replicas.iter().copied().find(|node| in_sync.contains(node));
        Partition {
            log: Log::default(),
            leader,
            replicas,
            in_sync,
            waiting: std::collections::BTreeMap::new(),
            watchers: Vec::new(),
        }
    }

    /// Deletes a topic, and the offsets that groups have committed for it.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC_OR_PARTITION`.
    pub fn delete_topic(&mut self, name: &str) -> Result<(), Code> {
        let topic = self.topics.remove(name);
        let topic = topic.ok_or(Code::UnknownTopicOrPartition)?;
        for (number, partition) in (0..).zip(topic.partitions) {
            let gone = Err(Code::UnknownTopicOrPartition);
            let waiting = partition.waiting.into_keys();
            let waiting = waiting.map(|(_, token)| (token, Reply::Appended(gone)));
            self.finished.extend(waiting);
            let tp = Tp {
                topic: Arc::from(name),
                partition: number,
            };
            let watchers = partition.watchers.into_iter();
            let moved = watchers.map(|token| (token, Reply::Moved(tp.clone())));
            self.finished.extend(moved);
        }
        for group in self.groups.values_mut() {
            group.offsets.forget(name);
        }
        Ok(())
    }

    /// Enlarges a topic to `count` partitions.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC_OR_PARTITION`, `INVALID_PARTITIONS`.
    pub fn add_partitions(&mut self, name: &str, count: i32) -> Result<(), Code> {
        let topic = self.topics.get(name).ok_or(Code::UnknownTopicOrPartition)?;
        let (present, replication) = (topic.config.partitions, topic.config.replication);
        if count <= present {
            return Err(Code::InvalidPartitions);
        }
        let more = (present..count).map(|number| self.new_partition(number, replication));
        let more: Vec<_> = more.collect();
        if let Some(topic) = self.topics.get_mut(name) {
            topic.partitions.extend(more);
            topic.config.partitions = count;
        }
        Ok(())
    }

    /// Changes a topic's settings; the number of partitions and replicas stays.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC_OR_PARTITION`.
    pub fn alter_topic(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut TopicConfig),
    ) -> Result<(), Code> {
        let topic = self
            .topics
            .get_mut(name)
            .ok_or(Code::UnknownTopicOrPartition)?;
        let (partitions, replication) = (topic.config.partitions, topic.config.replication);
        change(&mut topic.config);
        topic.config.partitions = partitions;
        topic.config.replication = replication;
        Ok(())
    }

    /// Deletes the records below `offset`, or all that readers may see.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC_OR_PARTITION`, `NOT_LEADER_OR_FOLLOWER`, `OFFSET_OUT_OF_RANGE`.
    pub fn delete_records(
        &mut self,
        node: Node,
        tp: &Tp,
        offset: Option<i64>,
    ) -> Result<i64, Code> {
        self.led(node, tp)?;
        let start = self.partition_mut(tp)?.log.delete_before(offset)?;
        self.moved(tp);
        Ok(start)
    }

    /// A topic, as any broker describes it; `None` if there is none.
    pub fn describe(&self, name: &str) -> Option<TopicView> {
        let topic = self.topics.get(name)?;
        let leaders = topic.partitions.iter();
        Some(TopicView {
            id: topic.id,
            leaders: leaders.map(|partition| partition.leader).collect(),
        })
    }

    /// The names of all topics.
    pub fn topic_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.topics.keys()
    }

    /// The bounds of a partition, for checks of a whole run: no client is asked.
    pub fn bounds(&self, tp: &Tp) -> Option<Bounds> {
        Some(self.partition(tp).ok()?.log.bounds())
    }

    /// Deletes and compacts records in all topics, as their settings say.
    pub(super) fn clean_logs(&mut self, now: Ms) {
        for topic in self.topics.values_mut() {
            let config = &topic.config;
            let before = config.retention.map(|retention| now - retention);
            for partition in &mut topic.partitions {
                if config.compact {
                    let (dirty, tombstones) =
                        (now - config.compaction_lag, now - config.tombstones);
                    partition.log.compact(dirty, tombstones);
                }
                if config.delete {
                    partition.log.retain(before, config.retention_bytes);
                }
            }
        }
    }
}
