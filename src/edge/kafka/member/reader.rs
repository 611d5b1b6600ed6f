//! The client that reads. It belongs to no group, so that a rebalance does not stop it: it reads what the member hands
//! it until that is taken away.
//!
//! It is never waited for within the library: its queue is polled, and an empty one wakes the member's thread when it
//! gets a record.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Thread;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::known_ends::KnownEnds;
use super::partition::{TopicPartition, plain, starting};
use super::read_positions::ReadPositions;
use super::reader_context::ReaderContext;
use super::sequence_guard::{Arrival, SequenceGuard};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::bootstrap;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::watchdog::Link;
use crate::model::throttle::Throttle;
use crate::model::units::Position;

/// The result of one look into the queue.
pub(super) enum Read<'a> {
    /// A record of a partition that is read.
    Record(BorrowedMessage<'a>),
    /// A record that the role must not see: a duplicate, or one of a partition that is not read any more.
    Dropped,
    /// An error event.
    Failed(KafkaError),
    /// Nothing.
    Empty,
}

/// A consumer without a group.
pub(super) struct Reader {
    consumer: Arc<BaseConsumer<ReaderContext>>,
    /// Known to the watchdog while this client is in use.
    _link: Link,
    group: String,
    read_positions: RefCell<ReadPositions>,
    sequence: RefCell<SequenceGuard>,
    repeats: RefCell<Throttle>,
}

impl Reader {
    /// Reads nothing yet; wakes `thread` when there is something to poll.
    pub(super) fn new(
        settings: &Settings,
        purpose: &'static str,
        group: &str,
        extra: &[(&str, &str)],
        thread: Thread,
    ) -> Result<Self, Failure> {
        let context = ReaderContext::new(purpose);
        let config = reader_config(settings, purpose, group, extra);
        let mut consumer: BaseConsumer<ReaderContext> =
            config.create_with_context(context).map_err(|error| {
                Failure::from_client(format!("creating the consumer of {purpose}"), error)
            })?;
        consumer.set_nonempty_callback(move || thread.unpark());
        let consumer = Arc::new(consumer);
        let link = bootstrap::keep(settings, &consumer, |consumer| consumer.client(), purpose)?;
        Ok(Self {
            consumer,
            _link: link,
            group: group.to_owned(),
            read_positions: RefCell::default(),
            sequence: RefCell::default(),
            repeats: RefCell::new(Throttle::new(Duration::from_secs(1))),
        })
    }

    /// Takes the next event from the queue, without waiting.
    pub(super) fn poll(&self) -> Result<Read<'_>, Failure> {
        let called_back = &self.consumer.context().called_back;
        let message = loop {
            match self.consumer.poll(Duration::ZERO) {
                // A callback ends a poll, and the queue signals only when it was empty.
                None if called_back.swap(false, Ordering::Relaxed) => {}
                None => return Ok(Read::Empty),
                Some(Err(error)) => return Ok(Read::Failed(error)),
                Some(Ok(message)) => break message,
            }
        };
        failpoint::point("poll.after");
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        let arrival = self.sequence.borrow_mut().take(topic, partition, offset);
        match arrival {
            Arrival::New => Ok(Read::Record(message)),
            Arrival::Unread => Ok(Read::Dropped),
            Arrival::Repeated => {
                self.log_repeat(topic, partition, offset);
                Ok(Read::Dropped)
            }
            // Later records may be committed by now: the next owner must not continue behind this one.
            Arrival::Skipped => Err(Failure::Internal(format!(
                "the Kafka client returned {topic} {partition}:{offset} after later records, which is a client bug; stopping without a commit, restart to resume at the committed offsets"
            ))),
        }
    }

    fn log_repeat(&self, topic: &str, partition: i32, offset: i64) {
        if let Some(suppressed) = self.repeats.borrow_mut().pass(clock::instant()) {
            tracing::warn!(
                group = self.group,
                topic,
                partition,
                offset,
                suppressed,
                "duplicate record from the Kafka client ignored"
            );
        }
    }

    /// Reads partitions from these positions, or from the earliest record.
    pub(super) fn start(
        &self,
        positions: &[(TopicPartition, Option<Position>)],
    ) -> Result<(), Failure> {
        if positions.is_empty() {
            return Ok(());
        }
        let failed = |error| Failure::from_client("reading partitions", error);
        let wanted = starting(positions).map_err(failed)?;
        let all: Vec<_> = positions.iter().map(|(at, _)| at.clone()).collect();
        self.stop(&all)?;
        self.consumer.incremental_assign(&wanted).map_err(failed)?;
        // A partition stays paused when it is not read for a while.
        self.consumer.resume(&wanted).map_err(failed)?;
        self.started(positions)
    }

    /// Notes that reading starts at `positions`.
    fn started(&self, positions: &[(TopicPartition, Option<Position>)]) -> Result<(), Failure> {
        let mut sequence = self.sequence.borrow_mut();
        for (at, position) in positions {
            self.known_ends().forget(at);
            let start = position.unwrap_or_default();
            sequence.start(&at.topic, at.partition, start.0);
        }
        self.read_positions
            .borrow_mut()
            .start(&self.consumer, positions)
    }

    /// Stops reading those of `partitions` that are read. No record of them is returned after this.
    pub(super) fn stop(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        let read = self.read_of(partitions);
        if read.is_empty() {
            return Ok(());
        }
        let mut sequence = self.sequence.borrow_mut();
        for at in &read {
            sequence.stop(&at.topic, at.partition);
        }
        self.consumer
            .incremental_unassign(&plain(&read))
            .map_err(|error| Failure::from_client("ending to read partitions", error))
    }

    /// Those of `partitions` that are read.
    fn read_of(&self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let mut sequence = self.sequence.borrow_mut();
        let read = |at: &&TopicPartition| sequence.next(&at.topic, at.partition).is_some();
        partitions.iter().filter(read).cloned().collect()
    }

    /// Pauses those of `partitions` that are read.
    pub(super) fn pause(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.consumer
            .pause(&plain(&self.read_of(partitions)))
            .map_err(|error| Failure::from_client("pausing partitions", error))
    }

    /// Resumes those of `partitions` that are read.
    pub(super) fn resume(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.consumer
            .resume(&plain(&self.read_of(partitions)))
            .map_err(|error| Failure::from_client("resuming partitions", error))
    }

    /// The next offset to read, per partition that is read.
    pub(super) fn positions(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        self.read_positions.borrow().current(&self.consumer)
    }

    /// As [`super::Member::passed`].
    pub(super) fn passed(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        let reading_at = self.positions()?;
        let mut sequence = self.sequence.borrow_mut();
        let passed = reading_at.into_iter().filter(|(at, position)| {
            let next = sequence.next(&at.topic, at.partition);
            next.is_some_and(|next| position.0 > next)
        });
        Ok(passed.collect())
    }

    /// The client, to ask for the ends of partitions.
    pub(super) fn client(&self) -> &Arc<BaseConsumer<ReaderContext>> {
        &self.consumer
    }

    /// The ends of partitions as far as known.
    pub(super) fn known_ends(&self) -> &KnownEnds {
        &self.consumer.context().ends
    }

    /// The partition's topic is deleted. Returns whether its position was known.
    pub(super) fn forget(&self, at: &TopicPartition) -> bool {
        self.read_positions.borrow_mut().forget(at)
    }

    /// Learns of partitions that are newer than what this client knows of their topic.
    pub(super) fn refresh(&self, wait: Duration) {
        if let Err(error) = self.consumer.fetch_metadata(None, wait) {
            tracing::debug!(group = self.group, "reading metadata failed: {error}");
        }
    }

    /// Seeks those of `positions` that are read, and drops prefetched records.
    pub(super) fn seek(
        &self,
        mut positions: Vec<(TopicPartition, Option<Position>)>,
    ) -> Result<(), Failure> {
        /// A partition that was just assigned cannot be sought until the client has started fetching it.
        const STARTING: Duration = Duration::from_millis(50);
        const TRIES: usize = 200;
        positions.retain(|(at, _)| !self.read_of(std::slice::from_ref(at)).is_empty());
        if positions.is_empty() {
            return Ok(());
        }
        let failed = |error| Failure::from_client("seeking to the committed offsets", error);
        let wanted = starting(&positions).map_err(failed)?;
        let mut last = KafkaError::Seek("not attempted".to_owned());
        for _ in 0..TRIES {
            match self.try_seek(wanted.clone()) {
                Ok(()) => return self.started(&positions),
                Err(error) => last = error,
            }
            std::thread::sleep(STARTING);
        }
        Err(failed(last))
    }

    fn try_seek(&self, wanted: TopicPartitionList) -> Result<(), KafkaError> {
        let found = self
            .consumer
            .seek_partitions(wanted, Duration::from_secs(10))?;
        found
            .elements()
            .iter()
            .try_for_each(|element| element.error())
    }

    /// The client, to be closed.
    pub(super) fn into_client(self) -> Arc<BaseConsumer<ReaderContext>> {
        let context = self.consumer.context();
        context.closing.store(true, Ordering::Relaxed);
        self.consumer
    }
}

/// The settings of a reader, with those of a role.
fn reader_config(
    settings: &Settings,
    purpose: &str,
    group: &str,
    extra: &[(&str, &str)],
) -> ClientConfig {
    let mut config = consumer_config(settings, &format!("{purpose}-reader"), group);
    // Deleted records must be reported, not skipped: see `Gap`.
    config.set("auto.offset.reset", "error");
    config.set("statistics.interval.ms", "3000");
    for (key, value) in extra {
        // The operator's properties take precedence.
        if !settings.properties.iter().any(|(given, _)| given == key) {
            config.set(*key, *value);
        }
    }
    config
}
