//! The subscription cache: the compacted topic in memory, kept current by a reader that joins no group.
//!
//! Fan-out looks up matching subscriptions in the index, delivery looks up one by its id. An invalid record is ignored
//! with a log line and a metric; the last valid record of that id stays in effect.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use prometheus::IntCounter;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::bootstrap;
use crate::config::Settings;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::model::matching::Index;
use crate::model::subscription::{Subscription, SubscriptionError, parse};

/// All valid subscriptions, shared by the roles of a process.
#[derive(Default)]
pub struct SubscriptionCache {
    index: RwLock<Index>,
    /// The raw records, so that one can be changed without losing fields unknown to this version.
    records: RwLock<HashMap<Box<str>, Box<[u8]>>>,
    version: AtomicU64,
}

impl SubscriptionCache {
    /// The index, for a batch of lookups. The guard blocks updates while it is held.
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

    /// Applies one record. Public for tests and for readers of other sources.
    ///
    /// # Errors
    /// Why it is invalid: it is ignored, and the last valid one of its id stays in effect.
    pub fn apply(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), SubscriptionError> {
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
            return Ok(());
        };
        let subscription = parse(key, value)?;
        let id = subscription.id.clone();
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        self.records
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, value.into());
        index.insert(Arc::new(subscription));
        drop(index);
        self.changed();
        Ok(())
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Counts invalid records.
#[derive(Clone, Debug)]
pub struct InvalidCounters {
    /// Subscription records.
    pub subscriptions: IntCounter,
    /// Records of the topic that were set aside.
    pub set_aside: IntCounter,
}

impl InvalidCounters {
    fn count(&self, message: &BorrowedMessage<'_>, error: &SubscriptionError) {
        /// Of the key, characters.
        const SHOWN: usize = 100;
        self.subscriptions.inc();
        self.set_aside.inc();
        let key = message.key().map(String::from_utf8_lossy);
        let id: String = key.unwrap_or_default().chars().take(SHOWN).collect();
        tracing::error!(
            subscription = %id,
            topic = message.topic(),
            partition = message.partition(),
            offset = message.offset(),
            "invalid subscription record ignored, the last valid one stays in effect: {error}"
        );
    }
}

/// Reads the topic from the beginning and follows it until `stop` returns true. Calls `ready` once, when the end is
/// reached for the first time.
///
/// # Errors
/// [`Failure`] when the topic is missing, permission is denied, or the client fails permanently.
pub fn follow(
    settings: &Settings,
    table: &SubscriptionCache,
    invalid: &InvalidCounters,
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
    let mut loaded = false;
    while !stop() {
        if behind.is_empty() && !loaded {
            loaded = true;
            tracing::info!(subscriptions = table.index().len(), "subscriptions loaded");
            ready();
        }
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                if let Err(error) = table.apply(message.key(), message.payload()) {
                    invalid.count(&message, &error);
                }
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
            // The client logs this itself.
            Some(Err(error)) if crate::edge::kafka::error::is_unreachable(&error) => {}
            Some(Err(error)) => tracing::warn!(topic, "reading subscriptions failed: {error}"),
            None => {}
        }
    }
    Ok(())
}

/// Assigns all partitions from their beginning and returns them: all must be read before the cache is complete.
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
                tracing::warn!(topic, "fetching metadata of the topic failed: {error}");
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
