//! The subscriptions as the compacted topic tells them, kept in memory by a reader that joins no group.
//!
//! Fan-out looks matching subscriptions up in its index, delivery one by its id. A record that is invalid is
//! kept out with a log line and a metric; the previous valid one of that id stays in force.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use prometheus::IntCounter;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::bootstrap;
use crate::config::Settings;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::model::matching::Index;
use crate::model::subscription::{Subscription, parse};

/// All valid subscriptions, shared by the roles of a process.
#[derive(Default)]
pub struct Table {
    index: RwLock<Index>,
    /// The records as they came, for changing one without losing fields that this version does not know.
    records: RwLock<HashMap<Box<str>, Box<[u8]>>>,
    version: AtomicU64,
}

impl Table {
    /// The index, for a batch of look-ups. Held for long, it keeps changes from being applied.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// One subscription.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Subscription>> {
        self.index().get(id).cloned()
    }

    /// The record that this subscription was read from, as it came; `None` when it has changed since.
    #[must_use]
    pub fn record_of(&self, subscription: &Arc<Subscription>) -> Option<Box<[u8]>> {
        // Records change under the index's lock.
        let index = self.index();
        let current = index.get(&subscription.id)?;
        if !Arc::ptr_eq(current, subscription) {
            return None;
        }
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records.get(&subscription.id).cloned()
    }

    /// Changes whenever a subscription does.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Applies one record; `invalid` counts those that are not used. Public for tests and for readers of other sources.
    pub fn apply(&self, key: Option<&[u8]>, value: Option<&[u8]>, invalid: &IntCounter) {
        let Some(value) = value else {
            let id = key.map(String::from_utf8_lossy).unwrap_or_default();
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            index.remove(&id);
            self.records
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&*id);
            drop(index);
            self.changed();
            return;
        };
        match parse(key, value) {
            Ok(subscription) => {
                let id = subscription.id.clone();
                let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
                self.records
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(id, value.into());
                index.insert(Arc::new(subscription));
                drop(index);
                self.changed();
            }
            Err(error) => {
                invalid.inc();
                let id = key.map(String::from_utf8_lossy).unwrap_or_default();
                tracing::error!(subscription = %id, "an invalid subscription record is not used; what was valid before stays in force: {error}");
            }
        }
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Reads the topic from its beginning and then follows it, until `stop` says so. `ready` is told once, when
/// the end is reached for the first time.
///
/// # Errors
/// [`Failure`] when the topic is gone, permission is denied, or the client fails for good.
pub fn follow(
    settings: &Settings,
    table: &Table,
    invalid: &IntCounter,
    stop: &dyn Fn() -> bool,
    ready: &mut dyn FnMut(),
) -> Result<(), Failure> {
    const PURPOSE: &str = "table";
    let topic = settings.topics.subscriptions();
    let mut config = consumer_config(
        settings,
        PURPOSE,
        &format!("{}{PURPOSE}", settings.group_prefix),
    );
    config.set("enable.partition.eof", "true");
    let consumer: BaseConsumer<LoggedConsumer> = config
        .create_with_context(LoggedConsumer(LogContext::new(PURPOSE)))
        .map_err(|error| Failure::from_client("creating the reader of subscriptions", error))?;
    let consumer = Arc::new(consumer);
    bootstrap::keep(settings, &consumer, |consumer| consumer.client())?;
    let mut behind = assign_all(&consumer, &topic, stop)?;
    let mut told = false;
    while !stop() {
        if behind.is_empty() && !told {
            told = true;
            tracing::info!(
                subscriptions = table.index().len(),
                "the subscriptions are read"
            );
            ready();
        }
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                table.apply(message.key(), message.payload(), invalid);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                behind.remove(&partition);
            }
            Some(Err(error))
                if crate::edge::kafka::error::is_denied(&error)
                    || matches!(error, KafkaError::MessageConsumptionFatal(_)) =>
            {
                return Err(Failure::from_client(format!("reading {topic}"), error));
            }
            // The client tells of that by itself.
            Some(Err(error)) if crate::edge::kafka::error::is_unreachable(&error) => {}
            Some(Err(error)) => tracing::warn!(topic, "reading subscriptions: {error}"),
            None => {}
        }
    }
    Ok(())
}

/// Assigns all partitions from their beginning; they are what has to be read before the table is complete.
fn assign_all(
    consumer: &BaseConsumer<LoggedConsumer>,
    topic: &str,
    stop: &dyn Fn() -> bool,
) -> Result<HashSet<i32>, Failure> {
    let reading = || format!("reading {topic}");
    while !stop() {
        let metadata = match consumer.fetch_metadata(Some(topic), Duration::from_secs(2)) {
            Ok(metadata) => metadata,
            Err(error) if crate::edge::kafka::error::is_denied(&error) => {
                return Err(Failure::from_client(reading(), error));
            }
            Err(error) => {
                tracing::warn!(topic, "looking for the subscriptions: {error}");
                continue;
            }
        };
        let partitions: HashSet<i32> = metadata
            .topics()
            .iter()
            .filter(|found| found.name() == topic)
            .flat_map(|found| {
                found
                    .partitions()
                    .iter()
                    .map(rdkafka::metadata::MetadataPartition::id)
            })
            .collect();
        if partitions.is_empty() {
            return Err(Failure::TopicMissing(topic.to_owned()));
        }
        let mut assignment = TopicPartitionList::new();
        for &partition in &partitions {
            assignment
                .add_partition_offset(topic, partition, rdkafka::Offset::Beginning)
                .map_err(|error| Failure::from_client(reading(), error))?;
        }
        consumer
            .assign(&assignment)
            .map_err(|error| Failure::from_client(reading(), error))?;
        return Ok(partitions);
    }
    Ok(HashSet::new())
}
