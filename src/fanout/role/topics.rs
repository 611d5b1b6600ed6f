//! The event topics, and names of their partitions.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::Settings;
use crate::edge::port::records::TopicPartition;
use crate::fanout::history::EventPartition;
use crate::model::event::Mapping;
use crate::model::source::{Source, cluster_hash, topic_of_name};

/// The event topics, by number.
pub(super) struct EventTopics {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, usize>,
    /// By number.
    mappings: Vec<Option<Mapping>>,
}

impl EventTopics {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut all = Self {
            names: Vec::new(),
            numbers: HashMap::new(),
            mappings: Vec::new(),
        };
        for topic in settings.topics.fanned_out() {
            all.number(&topic);
            let mapping = settings.event_mappings.get(&topic);
            all.mappings.push(mapping.cloned());
        }
        all
    }

    /// Whether this is the topic of notices, the last one.
    pub(super) fn is_notices(&self, at: EventPartition) -> bool {
        at.topic + 1 == self.mappings.len()
    }

    pub(super) fn mapping(&self, at: EventPartition) -> Option<&Mapping> {
        self.mappings.get(at.topic)?.as_ref()
    }

    pub(super) fn number(&mut self, topic: &str) -> usize {
        if let Some(&number) = self.numbers.get(topic) {
            return number;
        }
        let name: Arc<str> = Arc::from(topic);
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, self.names.len() - 1);
        self.names.len() - 1
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    pub(super) fn name(&self, number: usize) -> &str {
        &self.names[number]
    }

    pub(super) fn event_partition(&mut self, topic: &str, partition: i32) -> EventPartition {
        EventPartition {
            topic: self.number(topic),
            partition,
        }
    }

    pub(super) fn event_partitions(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Vec<EventPartition> {
        partitions
            .iter()
            .map(|at| self.event_partition(&at.topic, at.partition))
            .collect()
    }

    pub(super) fn topic_partition(&self, at: EventPartition) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.names[at.topic]),
            partition: at.partition,
        }
    }

    /// A partition as a source of commands, without an epoch.
    pub(super) fn place(&self, cluster: &str, at: EventPartition) -> Source {
        Source {
            cluster: cluster_hash(cluster),
            topic: topic_of_name(&self.names[at.topic]),
            // A partition's number is not negative.
            partition: u32::try_from(at.partition).unwrap_or(0),
            epoch: 0,
        }
    }
}
