//! Reads a topic once, from its beginning to a fixed end, without joining a group.
//!
//! Operators' commands fold logs: dead letters and subscriptions. Two pitfalls are handled here. The last offsets of a
//! partition may be transaction markers that no reader sees, so its end is detected by the client's end-of-partition
//! event. And a read-committed reader ends at the *last stable offset*, behind which an unrelated open transaction may
//! hide committed records (see [`Log::high_watermarks`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::{consumer_config, unless_given};
use super::cluster::{self, ClusterId};
use super::credentials::{give_once, keep_current};
use super::error::{Failure, is_unreachable};
use super::log::{LogContext, LoggedConsumer, explain};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::port::AGAIN;
use crate::edge::port::records::TopicPartition;
use crate::model::units::{EpochMs, Position};

/// Timeout of one request to the broker.
pub const ANSWER: Duration = Duration::from_secs(10);

/// What is done when the cluster is asked for its id.
pub const READING_CLUSTER: &str = "reading the cluster id";

/// How often it is asked while a partition has no leader, or a group no coordinator.
const TRIES: usize = 50;

/// The pause between.
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// A reader without a response from any broker for this long fails.
const SILENCE: Duration = Duration::from_secs(30);

/// How long open transactions may hide records before a reader that must see them fails. Longer than any transaction of
/// hookstream.
const HIDDEN: Duration = Duration::from_secs(90);

/// Bytes of one fetch of a partition, as they are compressed; a larger record is fetched alone.
const FETCH: &str = "262144";

/// KiB that a reader fetches ahead of what it visits, of all partitions together.
const AHEAD_KIB: usize = 24 * 1024;

/// The same of one partition, at least.
const LEAST_AHEAD_KIB: usize = 256;

pub use crate::edge::port::records::Range;

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All records up to the ends were visited.
    Complete,
    /// Stopped early.
    Stopped,
}

/// What the visitor returns: continue, stop, or fail.
pub type Visit<E> = Result<std::ops::ControlFlow<()>, E>;

/// A logging context that ignores ends of partitions, which the client reports as errors.
struct Reader(LogContext);

impl ClientContext for Reader {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            self.0.error(error, reason);
        }
    }
}

impl ConsumerContext for Reader {}

/// A topic opened for reading.
pub struct Log {
    topic: String,
    committed: Arc<BaseConsumer<Reader>>,
    all: Arc<BaseConsumer<Reader>>,
    partitions: Vec<i32>,
}

/// The group of readers without membership: the client requires a name, and brokers are asked for its coordinator.
#[must_use]
pub fn readers_group(settings: &Settings) -> String {
    format!("{}operator", settings.group_prefix)
}

impl Log {
    /// Connects and checks that the topic exists.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds within 10 s, the topic is missing, or permission is denied.
    pub fn open(
        settings: &Settings,
        topic: String,
        purpose: &'static str,
    ) -> Result<Self, Failure> {
        // The client requires a group name, but never joins: partitions are assigned manually.
        let group = readers_group(settings);
        let mut config = consumer_config(settings, purpose, &group);
        config.set("enable.partition.eof", "true");
        // Small fetches: each is kept, decompressed, until its last record is visited.
        unless_given(settings, &mut config, "fetch.message.max.bytes", FETCH);
        let create = |isolation: &str, config: &ClientConfig| {
            let client: BaseConsumer<Reader> = config
                .clone()
                .set("isolation.level", isolation)
                .create_with_context(Reader(LogContext::new(purpose)))
                .map_err(|error| Failure::from_client("creating a consumer", error))?;
            let client = Arc::new(client);
            keep_current(&settings.credentials, &client, |client| client.client());
            Ok(client)
        };
        let all = create("read_uncommitted", &config)?;
        let partitions = partitions(&all, &topic)?;
        let most = if purpose == AGAIN { 1024 } else { 2048 };
        let each = (AHEAD_KIB / partitions.len().max(1)).clamp(LEAST_AHEAD_KIB, most);
        let each = each.to_string();
        unless_given(settings, &mut config, "queued.max.messages.kbytes", &each);
        let committed = create("read_committed", &config)?;
        Ok(Self {
            topic,
            committed,
            all,
            partitions,
        })
    }

    /// The cluster that the topic is on.
    ///
    /// # Errors
    /// [`Failure`] when no broker answers.
    pub fn cluster(&self) -> Result<ClusterId, Failure> {
        cluster::require(self.committed.client(), ANSWER, READING_CLUSTER)
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// How many partitions the topic has.
    #[must_use]
    pub fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// The last stable offsets: what a read-committed reader sees now.
    ///
    /// # Errors
    /// [`Failure`] when the broker does not respond.
    pub fn stable_ends(&self) -> Result<Vec<Range>, Failure> {
        self.ends(&self.committed)
    }

    /// The high watermarks, once they are stable: nothing committed before this call lies behind them.
    ///
    /// The last stable offset does not suffice: a record that was just committed stays invisible while an *unrelated*,
    /// older transaction in the same partition is open. So this reads the high watermarks, then waits until the last
    /// stable offsets reach them.
    ///
    /// # Errors
    /// [`Failure`] when the broker does not respond, or a transaction stays open for more than 90 s.
    pub fn high_watermarks(&self, stop: &dyn Fn() -> bool) -> Result<Vec<Range>, Failure> {
        /// Delay between reads of the stable offsets.
        const PAUSE: Duration = Duration::from_millis(100);
        let wanted = self.ends(&self.all)?;
        let begun = clock::instant();
        while !stop() {
            let stable = self.ends(&self.committed)?;
            let hidden = wanted
                .iter()
                .zip(&stable)
                .find(|(wanted, stable)| stable.end < wanted.end);
            let Some((hidden, _)) = hidden else { break };
            if begun.elapsed() > HIDDEN {
                return Err(self.hidden(hidden.partition));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(wanted)
    }

    /// The high watermark of one partition, and the last stable offset: the same unless a transaction stays open for
    /// longer than `patience`. Then nothing says yet which records behind the stable offset will be committed. Without
    /// patience, each of the two requests waits for the leader for 2 s at most.
    ///
    /// # Errors
    /// [`Failure`] when the broker does not respond.
    pub fn high_watermark(
        &self,
        partition: i32,
        patience: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Range, i64), Failure> {
        /// Delay between reads of the stable offset.
        const PAUSE: Duration = Duration::from_millis(50);
        let tries = if patience.is_zero() {
            (1, ANSWER / 5)
        } else {
            (TRIES, ANSWER)
        };
        let wanted = self.end(&self.all, partition, tries)?;
        let begun = clock::instant();
        loop {
            let stable = self.end(&self.committed, partition, tries)?.end;
            if stable >= wanted.end || begun.elapsed() > patience || stop() {
                return Ok((wanted, stable.min(wanted.end)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The same for one partition, once it is stable.
    ///
    /// # Errors
    /// As [`Log::high_watermarks`].
    pub fn settled_end(&self, partition: i32, stop: &dyn Fn() -> bool) -> Result<Range, Failure> {
        let (wanted, stable) = self.high_watermark(partition, HIDDEN, stop)?;
        if stable < wanted.end && !stop() {
            return Err(self.hidden(partition));
        }
        Ok(wanted)
    }

    fn hidden(&self, partition: i32) -> Failure {
        Failure::Internal(format!(
            "a transaction on {} partition {partition} has been open for more than {} s and hides records; \
             find it with kafka-transactions.sh find-hanging",
            self.topic,
            HIDDEN.as_secs()
        ))
    }

    fn ends(&self, consumer: &BaseConsumer<Reader>) -> Result<Vec<Range>, Failure> {
        let range = |partition: &i32| self.end(consumer, *partition, (TRIES, ANSWER));
        self.partitions.iter().map(range).collect()
    }

    /// Asks so many times at most, and waits so long each time.
    fn end(
        &self,
        consumer: &BaseConsumer<Reader>,
        partition: i32,
        (tries, answer): (usize, Duration),
    ) -> Result<Range, Failure> {
        let ask = || consumer.fetch_watermarks(&self.topic, partition, answer);
        let (low, end) = retried(tries, ask, is_moving)
            .map_err(|error| self.failure("reading the end of", error))?;
        Ok(Range {
            partition,
            low,
            end,
        })
    }

    /// The same ranges from the first record of the time `at` or later; where there is none, nothing is left.
    ///
    /// # Errors
    /// [`Failure`] when the broker does not answer.
    pub fn since(&self, ranges: &[Range], at: EpochMs) -> Result<Vec<Range>, Failure> {
        let failure = |error| self.failure("looking up a time in", error);
        let mut asked = TopicPartitionList::new();
        for range in ranges {
            let time = Offset::Offset(at.0.max(0));
            asked
                .add_partition_offset(&self.topic, range.partition, time)
                .map_err(failure)?;
        }
        let found = settled(|| {
            let found = self.committed.offsets_for_times(asked.clone(), ANSWER)?;
            // Errors are per partition; a failed partition would otherwise look empty.
            let mut elements = found.elements().into_iter();
            elements.try_for_each(|element| element.error())?;
            Ok(found)
        })
        .map_err(failure)?;
        let later = |range: &Range| {
            let element = found.find_partition(&self.topic, range.partition);
            let low = match element.map(|element| element.offset()) {
                Some(Offset::Offset(first)) => first.clamp(range.low, range.end.max(range.low)),
                _ => range.end,
            };
            Range { low, ..*range }
        };
        Ok(ranges.iter().map(later).collect())
    }

    /// Visits every committed record below the ends, partition by partition in offset order, partitions mixed.
    ///
    /// # Errors
    /// The error of `visit`; a [`Failure`] when permission is denied or no broker responds for 30 s.
    pub fn read<E: From<Failure>>(
        &self,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        visit: impl FnMut(&BorrowedMessage<'_>) -> Visit<E>,
    ) -> Result<Reading, E> {
        self.read_with(&self.committed, ranges, stop, visit)
    }

    /// The same for every record, also of transactions that are open or were aborted.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read_uncommitted<E: From<Failure>>(
        &self,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        visit: impl FnMut(&BorrowedMessage<'_>) -> Visit<E>,
    ) -> Result<Reading, E> {
        self.read_with(&self.all, ranges, stop, visit)
    }

    fn read_with<E: From<Failure>>(
        &self,
        consumer: &BaseConsumer<Reader>,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(&BorrowedMessage<'_>) -> Visit<E>,
    ) -> Result<Reading, E> {
        let mut open: Vec<Range> = ranges
            .iter()
            .copied()
            .filter(|range| range.low < range.end)
            .collect();
        self.assign(consumer, &open)?;
        let result = self.read_assigned(consumer, &mut open, stop, &mut visit);
        // The next read assigns again; prefetched records are useless.
        consumer
            .unassign()
            .map_err(|error| self.failure("leaving", error))?;
        result
    }

    fn assign(&self, consumer: &BaseConsumer<Reader>, ranges: &[Range]) -> Result<(), Failure> {
        let mut list = TopicPartitionList::new();
        for range in ranges {
            list.add_partition_offset(&self.topic, range.partition, Offset::Offset(range.low))
                .map_err(|error| self.failure("assigning", error))?;
        }
        consumer
            .assign(&list)
            .map_err(|error| self.failure("assigning", error))
    }

    fn read_assigned<E: From<Failure>>(
        &self,
        consumer: &BaseConsumer<Reader>,
        open: &mut Vec<Range>,
        stop: &dyn Fn() -> bool,
        visit: &mut impl FnMut(&BorrowedMessage<'_>) -> Visit<E>,
    ) -> Result<Reading, E> {
        const POLL: Duration = Duration::from_millis(100);
        let mut heard = clock::instant();
        while !open.is_empty() {
            if stop() {
                return Ok(Reading::Stopped);
            }
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let next = message.offset() + 1;
                    let within = open
                        .iter()
                        .any(|r| r.partition == message.partition() && next <= r.end);
                    if within && visit(&message)?.is_break() {
                        return Ok(Reading::Stopped);
                    }
                    open.retain(|range| range.partition != message.partition() || next < range.end);
                    heard = clock::instant();
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.retain(|range| range.partition != partition);
                    heard = clock::instant();
                }
                Some(Err(error)) if !is_unreachable(&error) => {
                    return Err(self.failure("reading", error).into());
                }
                // Connections come and go; only a long outage is an error.
                Some(Err(error)) => self.silent_since(heard, error)?,
                None => {
                    let error = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
                    self.silent_since(heard, error)?;
                }
            }
        }
        Ok(Reading::Complete)
    }

    fn silent_since(&self, heard: std::time::Instant, error: KafkaError) -> Result<(), Failure> {
        if heard.elapsed() > SILENCE {
            Err(self.failure("reading", error))
        } else {
            Ok(())
        }
    }

    fn failure(&self, doing: &str, error: KafkaError) -> Failure {
        Failure::from_client(format!("{doing} {}", self.topic), error)
    }
}

/// A topic that is read again and again, each time from the end of the last complete reading.
pub(super) struct Tail {
    log: Log,
    /// By partition: where the next reading begins.
    read_to: HashMap<i32, i64>,
}

impl Tail {
    /// Connects, and reads nothing yet.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub(super) fn open(
        settings: &Settings,
        topic: String,
        purpose: &'static str,
    ) -> Result<Self, Failure> {
        Ok(Self {
            log: Log::open(settings, topic, purpose)?,
            read_to: HashMap::new(),
        })
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// As [`Log::read`] up to `ends`, without what was read before.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub(super) fn read<E: From<Failure>>(
        &mut self,
        ends: &[Range],
        stop: &dyn Fn() -> bool,
        visit: impl FnMut(&BorrowedMessage<'_>) -> Visit<E>,
    ) -> Result<Reading, E> {
        let rest = |range: &Range| Range {
            low: self
                .read_to
                .get(&range.partition)
                .map_or(range.low, |read_to| range.low.max(*read_to)),
            ..*range
        };
        let ranges: Vec<Range> = ends.iter().map(rest).collect();
        let reading = self.log.read(&ranges, stop, visit)?;
        if reading == Reading::Complete {
            let ends = ends.iter().map(|range| (range.partition, range.end));
            self.read_to = ends.collect();
        }
        Ok(reading)
    }
}

/// Retries while a partition has no leader, a group has no coordinator, or either has just moved, as after the creation of
/// a topic or the restart of a broker.
pub(crate) fn settled<T>(ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    retried(TRIES, ask, is_moving)
}

/// Asks up to `tries` times, with a pause in between, while the error is one that passes.
fn retried<T, E>(
    tries: usize,
    ask: impl Fn() -> Result<T, E>,
    passes: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 1..tries {
        match ask() {
            Err(error) if passes(&error) => std::thread::sleep(BETWEEN_TRIES),
            answer => return answer,
        }
    }
    ask()
}

/// Whether a partition has no leader, or a group no coordinator, for the moment.
fn is_moving(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::ReplicaNotAvailable
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
        )
    )
}

/// The committed positions of a group, in the order of `partitions`. The client never joins it.
///
/// # Errors
/// [`Failure`] when the coordinator does not respond within `patience`, or refuses.
pub fn positions_of(
    settings: &Settings,
    group: &str,
    purpose: &'static str,
    partitions: &[TopicPartition],
    patience: Duration,
) -> Result<Vec<Option<Position>>, Failure> {
    let asking = || format!("reading the offsets of {group}");
    let consumer: BaseConsumer<LoggedConsumer> = consumer_config(settings, purpose, group)
        .create_with_context(LoggedConsumer(LogContext::new(purpose)))
        .map_err(|error| Failure::from_client(asking(), error))?;
    give_once(&settings.credentials, consumer.client());
    let mut wanted = TopicPartitionList::new();
    for at in partitions {
        wanted.add_partition(&at.topic, at.partition);
    }
    let committed = committed_offsets(&consumer, &wanted, patience, asking)?;
    let position = |at: &TopicPartition| {
        let found = committed.find_partition(&at.topic, at.partition)?;
        match found.offset() {
            Offset::Offset(offset) => Some(Position(offset)),
            _ => None,
        }
    };
    Ok(partitions.iter().map(position).collect())
}

/// The committed offsets of the client's group. The client reports a denied group only as an event, while its requests
/// wait for the group's coordinator: so the first wait is short, and then the events are looked at.
///
/// # Errors
/// [`Failure`] named by `what`, when permission is denied or the coordinator does not respond within `patience`.
pub(crate) fn committed_offsets(
    client: &BaseConsumer<LoggedConsumer>,
    wanted: &TopicPartitionList,
    patience: Duration,
    what: impl Fn() -> String,
) -> Result<TopicPartitionList, Failure> {
    const FIRST: Duration = Duration::from_secs(2);
    let tries = patience.as_millis() / BETWEEN_TRIES.as_millis();
    let tries = usize::try_from(tries).unwrap_or(TRIES).max(1);
    let ask = |time| {
        retried(
            tries,
            || client.committed_offsets(wanted.clone(), time),
            is_moving,
        )
        .map_err(|error| explain(client, &client.context().0, what(), error))
    };
    match ask(FIRST.min(patience)) {
        Err(failure) if failure.is_unreachable() && patience > FIRST => ask(patience),
        answer => answer,
    }
}

/// The topic's partitions, requested by name, which distinguishes a denied topic from a missing one. A topic that was just
/// created is not known to every broker yet, so a missing one is retried for a while.
fn partitions(consumer: &BaseConsumer<Reader>, topic: &str) -> Result<Vec<i32>, Failure> {
    const TRIES: usize = 15;
    let is_missing = |failure: &Failure| matches!(failure, Failure::TopicMissing(_));
    retried(TRIES, || partitions_now(consumer, topic), is_missing)
}

fn partitions_now(consumer: &BaseConsumer<Reader>, topic: &str) -> Result<Vec<i32>, Failure> {
    let what = || format!("describing the topic {topic}");
    let metadata = consumer
        .fetch_metadata(Some(topic), ANSWER)
        .map_err(|error| explain(consumer, &consumer.context().0, what(), error))?;
    let Some(found) = metadata.topics().first() else {
        return Err(Failure::TopicMissing(topic.to_owned()));
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(found
            .partitions()
            .iter()
            .map(rdkafka::metadata::MetadataPartition::id)
            .collect()),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Err(Failure::TopicMissing(topic.to_owned()))
        }
        Some(code) => Err(Failure::from_client(
            what(),
            KafkaError::MetadataFetch(code),
        )),
    }
}
