//! The subscription cache: the compacted topic in memory, kept current by a reader that joins no group.
//!
//! Fan-out looks up matching subscriptions in the index, delivery looks up one by its id. An invalid record is ignored
//! with a log line and a metric; the last valid record of that id stays in effect. See [`Fold`] for the records of a
//! subscription and their precedence.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use compact_str::CompactString;
use prometheus::IntCounter;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::bootstrap;
use super::ends::bounds;
use super::member::TopicPartition;
use super::record::each_header;
use super::unread::Unread;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::client::{consumer_config, fetch_patiently, unless_given};
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::port::records::RecordView;
use crate::model::event::Event;
use crate::model::matching::Index;
use crate::model::subscription::verification::Pending;
use crate::model::subscription::{
    APPLIED, Change, Fold, Kept, ReadRecord, State, Subscription, SubscriptionError, TopicRecord,
};

/// Maximum number of records taken at a time.
const BATCH: usize = 4096;
/// Number of records that a thread parses at a time.
const CHUNK: usize = 64;
/// Bytes of keys and values with which a batch ends: what was handed out does not count toward the client's own limit.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Maximum number of threads that parse records: one takes what they parsed, and is as busy as they are by then.
const MAX_PARSERS: usize = 8;

/// All valid subscriptions, shared by the roles of a process.
pub struct SubscriptionCache {
    kept: Kept,
    /// Whether every endpoint must consent.
    verify: bool,
    /// Where fan-out asks it.
    index: Option<RwLock<Index>>,
    /// Locked before the index.
    fold: RwLock<Fold>,
    /// Those that are pending, by id. Locked after the fold.
    pending: RwLock<BTreeMap<CompactString, Arc<Subscription>>>,
    /// The markers of first starts, which are in the same topic.
    start_markers: RwLock<StartMarkers>,
    version: AtomicU64,
}

/// Records of markers ([`start_marker`](crate::model::start_marker)): their values by their keys.
pub type StartMarkers = BTreeMap<Box<[u8]>, Box<[u8]>>;

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

impl Default for SubscriptionCache {
    fn default() -> Self {
        Self::new(false, Kept::Whole)
    }
}

impl SubscriptionCache {
    /// An empty cache; with `verify`, every endpoint must consent, whatever its subscription says.
    #[must_use]
    pub fn new(verify: bool, kept: Kept) -> Self {
        Self {
            kept,
            verify,
            index: (kept != Kept::ForLookups).then(RwLock::default),
            fold: RwLock::new(Fold::new(verify)),
            pending: RwLock::default(),
            start_markers: RwLock::default(),
            version: AtomicU64::default(),
        }
    }

    /// The subscriptions that wait for the consent of their endpoints, each with the last try to get it.
    #[must_use]
    pub fn pending(&self) -> Vec<Pending> {
        let fold = self.fold();
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        let each = pending.iter().map(|(id, subscription)| Pending {
            subscription: Arc::clone(subscription),
            last: fold.verification(id).cloned(),
        });
        each.collect()
    }

    /// Clears `found` and fills it with the subscriptions that match the event, all as they are at one moment: see
    /// [`Index::matching`]. None match in a cache for lookups.
    pub fn matching(&self, event: &Event<'_>, found: &mut Vec<Arc<Subscription>>) {
        debug_assert!(self.index.is_some(), "the cache is for lookups only");
        match &self.index {
            Some(index) => {
                let index = index.read().unwrap_or_else(PoisonError::into_inner);
                index.matching(event, found);
            }
            None => found.clear(),
        }
    }

    fn in_index(&self, change: impl FnOnce(&mut Index)) {
        if let Some(index) = &self.index {
            change(&mut index.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn fold(&self) -> RwLockReadGuard<'_, Fold> {
        self.fold.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of subscriptions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fold().len()
    }

    /// Whether there are no subscriptions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fold().is_empty()
    }

    /// One subscription. In a cache for matching it has no secrets, no overrides and perhaps no URL: no request may be
    /// made with it.
    #[must_use]
    pub fn get(&self, id: &str) -> Known {
        let fold = self.fold();
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

    /// The markers of first starts.
    #[must_use]
    pub fn start_markers(&self) -> StartMarkers {
        let markers = self.start_markers.read();
        markers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_marker(&self, key: &[u8], value: Option<&[u8]>) {
        let markers = self.start_markers.write();
        let mut markers = markers.unwrap_or_else(PoisonError::into_inner);
        match value {
            Some(value) => markers.insert(key.into(), value.into()),
            None => markers.remove(key),
        };
    }

    /// Applies one record. Public for tests and for readers of other sources.
    ///
    /// # Errors
    /// [`Refusal`] of an invalid record.
    pub fn apply(&self, record: &TopicRecord<'_>) -> Result<(), Refusal> {
        self.apply_read(self.read(*record))
    }

    fn read<'a>(&self, record: TopicRecord<'a>) -> ReadRecord<'a> {
        record.read(self.kept, self.verify)
    }

    fn apply_read(&self, record: ReadRecord<'_>) -> Result<(), Refusal> {
        if let Some((key, value)) = record.start_marker() {
            self.note_marker(key, value);
            return Ok(());
        }
        let mut fold = self.fold.write().unwrap_or_else(PoisonError::into_inner);
        // Held while the fold takes the record, so that a change of the subscription makes another `Arc`.
        let before = record.id().and_then(|id| fold.get(id)).cloned();
        let change = fold.take_read(record);
        let mut refusal = Ok(());
        match change {
            Change::Updated(subscription) => {
                if before.is_some_and(|before| Arc::ptr_eq(&before, &subscription)) {
                    return Ok(());
                }
                self.note(&subscription);
                self.in_index(|index| index.insert(subscription));
            }
            Change::Removed(id) => {
                self.forget(&id);
                self.in_index(|index| index.remove(&id));
            }
            Change::Nothing => return Ok(()),
            Change::Refused {
                error,
                in_force,
                updated,
            } => {
                if let Some(subscription) = updated {
                    self.note(&subscription);
                    self.in_index(|index| index.insert(subscription));
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

/// Reads the topic from the beginning and follows it until `stop` returns true. Calls `ready` once, when all that was
/// there at the start is read. Partitions that are added later are read too.
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
    // Until all is loaded.
    let parsers = RefCell::new(parsers());
    let mut ready = || {
        parsers.take();
        tracing::info!(subscriptions = table.len(), "subscriptions loaded");
        ready();
    };
    let mut take = |messages: &[BorrowedMessage<'_>]| {
        let read = |message| table.read(topic_record(message));
        let apply = |(message, record)| {
            if let Err(refusal) = table.apply_read(record) {
                invalid.count(message, &refusal);
            }
        };
        match &*parsers.borrow() {
            Some(parsers) => in_order(parsers, messages, read, apply),
            None => {
                let all = messages.iter().map(|message| (message, read(message)));
                all.for_each(apply);
            }
        }
    };
    follow_topic(settings, "table", &topic, stop, &mut ready, &mut take)
}

/// Reads all messages on the threads of `parsers`, and applies each on this one, in order, while others are read.
fn in_order<'m, M: Sync, R: Send>(
    parsers: &rayon::ThreadPool,
    messages: &'m [M],
    read: impl Fn(&'m M) -> R + Copy + Send + Sync,
    mut apply: impl FnMut((&'m M, R)),
) {
    parsers.in_place_scope_fifo(|scope| {
        let chunks = messages.chunks(CHUNK).map(|chunk| {
            let (done, results) = channel();
            scope.spawn_fifo(move |_| {
                // Fails only if `apply` has panicked.
                done.send(chunk.iter().map(read).collect::<Vec<_>>()).ok();
            });
            (chunk, results)
        });
        for (chunk, results) in chunks.collect::<Vec<_>>() {
            // None come if `read` has panicked, which the scope passes on.
            let Ok(results) = results.recv() else { break };
            chunk.iter().zip(results).for_each(&mut apply);
        }
    });
}

/// Threads that parse records; `None` if they cannot be started, so that one does all the work.
fn parsers() -> Option<rayon::ThreadPool> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let builder = rayon::ThreadPoolBuilder::new().num_threads(cores.min(MAX_PARSERS));
    let builder = builder.thread_name(|at| format!("table-{at}"));
    let built = builder.build();
    built
        .inspect_err(|error| tracing::warn!("subscriptions load on one thread: {error}"))
        .ok()
}

/// Reads a topic from the beginning and follows it until `stop` returns true. Calls `ready` once, when all that was
/// there at the start is read. Partitions that are added later are read too. `take` gets records in the order of their
/// partition, as many at a time as are there, up to [`BATCH`] and about [`BATCH_BYTES`].
pub(super) fn follow_topic(
    settings: &Settings,
    purpose: &'static str,
    topic: &str,
    stop: &dyn Fn() -> bool,
    ready: &mut dyn FnMut(),
    take: &mut dyn FnMut(&[BorrowedMessage<'_>]),
) -> Result<(), Failure> {
    /// How often to look for new partitions.
    const GROWTH: Duration = Duration::from_secs(5);
    /// How often to look whether to stop, while the topic is read and once it is.
    const READING: Duration = Duration::from_millis(100);
    const FOLLOWING: Duration = Duration::from_millis(500);
    /// Bytes of a partition per fetch. The client decompresses what a fetch returned at once, and the allocator keeps the
    /// memory of that burst: 60 to 100 MiB with 1 MiB. No slower with a broker on the same machine.
    const FETCH: &str = "262144";
    // A reader without a group still names one.
    let group = format!("{}table", settings.group_prefix);
    let mut config = consumer_config(settings, purpose, &group);
    config.set("enable.partition.eof", "true");
    fetch_patiently(settings, &mut config);
    unless_given(settings, &mut config, "fetch.message.max.bytes", FETCH);
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
    let mut unread = unread(&consumer, topic, &assigned);
    let mut loaded = false;
    let mut grown = clock::instant();
    while !stop() {
        if unread.is_empty() && !loaded {
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
        let mut next = consumer.poll(patience);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(Ok(message)) = next {
            bytes += message.key_len() + message.payload_len();
            batch.push(message);
            let is_full = batch.len() == BATCH || bytes >= BATCH_BYTES;
            next = match is_full {
                true => None,
                false => consumer.poll(Duration::ZERO),
            };
        }
        if !batch.is_empty() {
            take(&batch);
            for message in &batch {
                unread.record(message.partition(), message.offset());
            }
        }
        match next {
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread.end(partition);
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
            Some(Ok(_)) | None => {}
        }
    }
    Ok(())
}

/// The partitions that are not known to be empty. Waits up to ten seconds where a broker does not respond.
fn unread(
    consumer: &Arc<BaseConsumer<LoggedConsumer>>,
    topic: &str,
    partitions: &HashSet<i32>,
) -> Unread {
    let at = |&partition| TopicPartition {
        topic: topic.into(),
        partition,
    };
    let all: Vec<_> = partitions.iter().map(at).collect();
    let bounds = |bound| {
        let found = bounds(consumer, &all, bound).unwrap_or_else(|failure| {
            tracing::debug!(topic, "the ends of its partitions are unknown: {failure}");
            BTreeMap::new()
        });
        let each = found.into_iter().map(|(at, offset)| (at.partition, offset));
        each.collect()
    };
    let (earliest, latest) = (bounds(Offset::Beginning), bounds(Offset::End));
    Unread::new(partitions.iter().copied(), &earliest, &latest)
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
                .add_partition_offset(topic, partition, Offset::Beginning)
                .map_err(failed)?;
        }
    }
    if fresh.count() == 0 {
        return Ok(());
    }
    tracing::debug!(topic, partitions = fresh.count(), "reading partitions");
    consumer.incremental_assign(&fresh).map_err(failed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::event::{RawEvent, read};
    use crate::model::start_marker;
    use crate::model::subscription::{Decider, Decision};
    use crate::model::units::EpochMs;

    fn document(id: &str, more: &serde_json::Value) -> Vec<u8> {
        let mut document = json!({
            "id": id, "subscriber": "acme", "url": "https://acme.example/in", "events": ["order.*"],
        });
        for (name, value) in more.as_object().unwrap() {
            document[name] = value.clone();
        }
        document.to_string().into_bytes()
    }

    fn put(cache: &SubscriptionCache, key: &str, value: Option<&[u8]>) -> Result<(), Refusal> {
        cache.apply(&TopicRecord {
            key: Some(key.as_bytes()),
            value,
            partition: Some(0),
            timestamp: Some(EpochMs(1)),
            ..TopicRecord::default()
        })
    }

    fn state(cache: &SubscriptionCache, id: &str) -> Option<State> {
        match cache.get(id) {
            Known::Valid(found) => Some(found.state),
            Known::Invalid | Known::Missing => None,
        }
    }

    #[test]
    fn each_change_of_a_subscription_changes_the_version_and_nothing_else_does() {
        for cache in [
            SubscriptionCache::new(false, Kept::Whole),
            SubscriptionCache::new(false, Kept::ForLookups),
            SubscriptionCache::new(false, Kept::ForMatching),
        ] {
            let mut version = 0;
            let mut step = |key: &str, value: Option<&[u8]>, changes: bool| {
                let applied = put(&cache, key, value);
                version += u64::from(changes);
                assert_eq!(cache.version(), version, "{key}");
                applied
            };
            let first = document("s", &json!({}));
            step("s", Some(&first), true).unwrap();
            step("s", Some(&first), false).unwrap();
            step(
                "s",
                Some(&document("s", &json!({"max_in_flight": 2}))),
                true,
            )
            .unwrap();
            let Known::Valid(before) = cache.get("s") else {
                panic!("it was applied")
            };
            let pause = Decision::by_operator(&before, State::Paused, EpochMs(2));
            let key = Decider::Operator.key("s");
            step(&key, Some(&pause.to_json()), true).unwrap();
            assert_eq!(
                (before.state, state(&cache, "s")),
                (State::Active, Some(State::Paused))
            );
            let refused = step("s", Some(b"{}"), true).unwrap_err();
            assert!(refused.in_force);
            assert_eq!(state(&cache, "s"), Some(State::Paused));
            step("t", Some(b"{}"), true).unwrap_err();
            assert!(matches!(cache.get("t"), Known::Invalid));
            step("s", None, true).unwrap();
            step("s", None, false).unwrap();
            assert!(matches!(cache.get("s"), Known::Missing));
            assert!(cache.is_empty());
        }
    }

    #[test]
    fn those_that_wait_for_consent_are_pending_until_they_are_deleted() {
        let cache = SubscriptionCache::new(true, Kept::ForLookups);
        put(&cache, "s", Some(&document("s", &json!({})))).unwrap();
        let pending = cache.pending();
        assert_eq!((pending.len(), &*pending[0].subscription.id), (1, "s"));
        put(&cache, "s", None).unwrap();
        assert!(cache.pending().is_empty());
    }

    #[test]
    fn markers_of_first_starts_are_kept_beside_the_subscriptions() {
        let cache = SubscriptionCache::default();
        let key = start_marker::key("g", "t", "c");
        for value in ["1", "2"] {
            put(&cache, &key, Some(value.as_bytes())).unwrap();
        }
        put(&cache, &start_marker::key("g", "u", "c"), Some(b"3")).unwrap();
        put(&cache, &start_marker::key("g", "u", "c"), None).unwrap();
        let all: Vec<_> = cache.start_markers().into_iter().collect();
        assert_eq!(all, [(key.into_bytes().into(), Box::from(*b"2"))]);
        assert_eq!((cache.version(), cache.len()), (0, 0));
    }

    #[test]
    fn deleting_a_refused_subscription_keeps_the_one_with_its_hash() {
        let event = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "order.paid"});
        let event = event.to_string();
        let raw = RawEvent {
            topic: "t",
            key: None,
            payload: Some(event.as_bytes()),
            headers: &[],
            timestamp: EpochMs(0),
        };
        let event = read(&raw, 1_000).unwrap();
        // Known to collide.
        let (one, other) = ("8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ");
        let cache = SubscriptionCache::default();
        put(&cache, one, Some(&document(one, &json!({})))).unwrap();
        put(&cache, other, Some(&document(other, &json!({})))).unwrap_err();
        put(&cache, other, None).unwrap();
        let mut found = Vec::new();
        cache.matching(&event, &mut found);
        assert_eq!(found.iter().map(|one| &*one.id).collect::<Vec<_>>(), [one]);
    }

    #[test]
    fn messages_are_applied_in_order_whichever_is_read_first() {
        let parsers = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        let messages: Vec<usize> = (0..3 * CHUNK + 1).collect();
        let (second, is_read) = channel();
        let is_read = std::sync::Mutex::new(is_read);
        let read = |message: &usize| {
            if *message == CHUNK {
                second.send(()).unwrap();
            }
            if *message == 0 {
                is_read.lock().unwrap().recv().unwrap();
            }
            message + 1
        };
        let mut applied = Vec::new();
        in_order(&parsers.unwrap(), &messages, read, |one| applied.push(one));
        let expected: Vec<_> = messages.iter().map(|one| (one, one + 1)).collect();
        assert_eq!(applied, expected);
    }

    #[test]
    #[should_panic(expected = "it cannot be read")]
    fn a_panic_while_a_message_is_read_is_passed_on() {
        let parsers = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        let read = |_: &usize| -> usize { panic!("it cannot be read") };
        in_order(&parsers.unwrap(), &[1, 2], read, |_| {});
    }
}
