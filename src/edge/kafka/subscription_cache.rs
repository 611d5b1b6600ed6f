//! The subscription cache: the compacted topic in memory, kept current by a reader that joins no group.
//!
//! Fan-out looks up matching subscriptions in the index, delivery looks up one by its id. An invalid record is ignored
//! with a log line and a metric; the last valid record of that id stays in effect. See [`Fold`] for the records of a
//! subscription and their precedence.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use prometheus::IntCounter;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::bootstrap;
use super::record::each_header;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::client::{consumer_config, fetch_patiently};
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::port::records::RecordView;
use crate::model::matching::Index;
use crate::model::subscription::verification::Pending;
use crate::model::subscription::{
    APPLIED, Change, Fold, State, Subscription, SubscriptionError, TopicRecord,
};

/// All valid subscriptions, shared by the roles of a process.
#[derive(Default)]
pub struct SubscriptionCache {
    index: RwLock<Index>,
    /// Locked before the index.
    fold: RwLock<Fold>,
    /// Those that are pending, by id. Locked after the fold.
    pending: RwLock<BTreeMap<Box<str>, Arc<Subscription>>>,
    version: AtomicU64,
}

/// A subscription, as far as its records say.
#[derive(Clone, Debug)]
pub enum Known {
    /// It is this.
    Valid(Arc<Subscription>),
    /// It exists, but its only record is invalid.
    Invalid,
    /// It does not exist.
    Missing,
}

impl SubscriptionCache {
    /// An empty cache; with `verify`, every endpoint must consent.
    #[must_use]
    pub fn new(verify: bool) -> Self {
        Self {
            fold: RwLock::new(Fold::new(verify)),
            ..Self::default()
        }
    }

    /// The same where no fan-out asks which subscriptions match an event: it takes less memory, and less time to fill.
    #[must_use]
    pub fn for_lookups(verify: bool) -> Self {
        Self {
            index: RwLock::new(Index::for_lookups()),
            ..Self::new(verify)
        }
    }

    /// The subscriptions that wait for the consent of their endpoints, each with the last try to get it.
    #[must_use]
    pub fn pending(&self) -> Vec<Pending> {
        let fold = self.fold.read().unwrap_or_else(PoisonError::into_inner);
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        let each = pending.iter().map(|(id, subscription)| Pending {
            subscription: Arc::clone(subscription),
            last: fold.verification(id).cloned(),
        });
        each.collect()
    }

    /// The index, for a batch of lookups. The guard blocks updates while it is held.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// One subscription.
    #[must_use]
    pub fn get(&self, id: &str) -> Known {
        if let Some(found) = self.index().get(id) {
            return Known::Valid(Arc::clone(found));
        }
        // Rarely needed. A record that is being applied is in the fold first.
        let fold = self.fold.read().unwrap_or_else(PoisonError::into_inner);
        match fold.get(id) {
            Some(found) => Known::Valid(Arc::clone(found)),
            None if fold.is_unknown(id) => Known::Invalid,
            None => Known::Missing,
        }
    }

    /// Changes whenever a subscription does.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Applies one record. Public for tests and for readers of other sources.
    ///
    /// # Errors
    /// [`Refusal`] of an invalid record.
    pub fn apply(&self, record: &TopicRecord<'_>) -> Result<(), Refusal> {
        let mut fold = self.fold.write().unwrap_or_else(PoisonError::into_inner);
        let change = fold.take(record);
        let index = || self.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut refusal = Ok(());
        match change {
            Change::Updated(subscription) => {
                let known = self.index().get(&subscription.id).cloned();
                if known.is_some_and(|known| Arc::ptr_eq(&known, &subscription)) {
                    return Ok(());
                }
                self.note(&subscription);
                index().insert(subscription);
            }
            Change::Removed(id) => {
                self.forget(&id);
                index().remove(&id);
            }
            Change::Nothing => return Ok(()),
            Change::Refused {
                error,
                in_force,
                updated,
            } => {
                if let Some(subscription) = updated {
                    self.note(&subscription);
                    index().insert(subscription);
                }
                refusal = Err(Refusal { error, in_force });
            }
        }
        drop(fold);
        self.version.fetch_add(1, Ordering::Release);
        refusal
    }

    fn note(&self, subscription: &Arc<Subscription>) {
        if subscription.state != State::Pending {
            return self.forget(&subscription.id);
        }
        let (id, pending) = (subscription.id.clone(), Arc::clone(subscription));
        let mut all = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, pending);
    }

    fn forget(&self, id: &str) {
        let mut all = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
    }
}

/// An invalid record, which is ignored.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub error: SubscriptionError,
    /// Whether an earlier record of its id stays in effect; otherwise the commands of this id wait.
    pub in_force: bool,
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
    fn count(&self, message: &BorrowedMessage<'_>, refusal: &Refusal) {
        /// The most of a key that a log line shows, in characters.
        const MAX_SHOWN_KEY: usize = 220;
        self.subscriptions.inc();
        self.set_aside.inc();
        let key = String::from_utf8_lossy(message.key().unwrap_or_default());
        let key: String = key.chars().take(MAX_SHOWN_KEY).collect();
        let Refusal { error, in_force } = refusal;
        let effect = if *in_force {
            "the last valid one stays in effect"
        } else {
            "commands of this id wait for a valid one"
        };
        tracing::error!(
            key,
            topic = message.topic(),
            partition = message.partition(),
            offset = message.offset(),
            "invalid subscription record ignored, {effect}: {error}"
        );
    }
}

/// A record of the topic, as the fold reads it.
#[must_use]
pub fn topic_record(message: &impl RecordView) -> TopicRecord<'_> {
    let header = each_header(message).find(|(name, _)| *name == APPLIED);
    TopicRecord {
        key: message.key(),
        value: message.payload(),
        applied: header.and_then(|(_, value)| value),
        partition: Some(message.partition()),
        timestamp: message.timestamp(),
    }
}

/// Reads the topic from the beginning and follows it until `stop` returns true. Calls `ready` once, when the end is
/// reached for the first time. Partitions that are added later are read too.
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
    let topic = settings.topics.subscriptions();
    let mut ready = || {
        tracing::info!(subscriptions = table.index().len(), "subscriptions loaded");
        ready();
    };
    follow_topic(
        settings,
        "table",
        &topic,
        stop,
        &mut ready,
        &mut |message| {
            if let Err(refusal) = table.apply(&topic_record(message)) {
                invalid.count(message, &refusal);
            }
        },
    )
}

/// Reads a topic from the beginning and follows it until `stop` returns true. Calls `ready` once, when the end is reached
/// for the first time. Partitions that are added later are read too.
pub(super) fn follow_topic(
    settings: &Settings,
    purpose: &'static str,
    topic: &str,
    stop: &dyn Fn() -> bool,
    ready: &mut dyn FnMut(),
    take: &mut dyn FnMut(&BorrowedMessage<'_>),
) -> Result<(), Failure> {
    /// How often to look for new partitions.
    const GROWTH: Duration = Duration::from_secs(5);
    /// How often to look whether to stop, while the topic is read and once it is.
    const READING: Duration = Duration::from_millis(100);
    const FOLLOWING: Duration = Duration::from_millis(500);
    // A reader without a group still names one.
    let group = format!("{}table", settings.group_prefix);
    let mut config = consumer_config(settings, purpose, &group);
    config.set("enable.partition.eof", "true");
    fetch_patiently(settings, &mut config);
    let consumer: BaseConsumer<LoggedConsumer> = config
        .create_with_context(LoggedConsumer(LogContext::new(purpose)))
        .map_err(|error| Failure::from_client(format!("creating the reader of {topic}"), error))?;
    let consumer = Arc::new(consumer);
    bootstrap::keep(settings, &consumer, |consumer| consumer.client(), purpose)?;
    let mut assigned = HashSet::new();
    while assigned.is_empty() && !stop() {
        if let Some(found) = partitions(&consumer, topic)? {
            assign_new(&consumer, topic, &mut assigned, found)?;
        }
    }
    let mut behind = assigned.clone();
    let mut loaded = false;
    let mut grown = clock::instant();
    while !stop() {
        if behind.is_empty() && !loaded {
            loaded = true;
            ready();
        }
        if loaded && grown.elapsed() > GROWTH {
            // A topic that is missing for a moment is reported by the client.
            match partitions(&consumer, topic) {
                Ok(Some(found)) => assign_new(&consumer, topic, &mut assigned, found)?,
                Ok(None) | Err(Failure::TopicMissing(_)) => {}
                Err(failure) => return Err(failure),
            }
            grown = clock::instant();
        }
        let patience = if loaded { FOLLOWING } else { READING };
        match consumer.poll(patience) {
            Some(Ok(message)) => take(&message),
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
            Some(Err(error)) => tracing::warn!(topic, "reading the topic failed: {error}"),
            None => {}
        }
    }
    Ok(())
}

/// The partitions of the topic; `None` when no broker responds.
fn partitions(
    consumer: &BaseConsumer<LoggedConsumer>,
    topic: &str,
) -> Result<Option<Vec<i32>>, Failure> {
    let metadata = match consumer.fetch_metadata(Some(topic), Duration::from_secs(2)) {
        Ok(metadata) => metadata,
        Err(error) if crate::edge::kafka::error::is_denied(&error) => {
            return Err(Failure::from_client(format!("reading {topic}"), error));
        }
        Err(error) => {
            tracing::warn!(topic, "fetching metadata of the topic failed: {error}");
            return Ok(None);
        }
    };
    let found: Vec<i32> = metadata
        .topics()
        .iter()
        .filter(|found| found.name() == topic)
        .flat_map(|found| found.partitions())
        .map(rdkafka::metadata::MetadataPartition::id)
        .collect();
    if found.is_empty() {
        return Err(Failure::TopicMissing(topic.to_owned()));
    }
    Ok(Some(found))
}

/// Reads those of `found` that are not read yet, from their beginning.
fn assign_new(
    consumer: &BaseConsumer<LoggedConsumer>,
    topic: &str,
    assigned: &mut HashSet<i32>,
    found: Vec<i32>,
) -> Result<(), Failure> {
    let failed = |error| Failure::from_client(format!("reading {topic}"), error);
    let mut fresh = TopicPartitionList::new();
    for partition in found {
        if assigned.insert(partition) {
            fresh
                .add_partition_offset(topic, partition, rdkafka::Offset::Beginning)
                .map_err(failed)?;
        }
    }
    if fresh.count() == 0 {
        return Ok(());
    }
    tracing::debug!(topic, partitions = fresh.count(), "reading partitions");
    consumer.incremental_assign(&fresh).map_err(failed)
}
