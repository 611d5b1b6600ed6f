//! A member of a consumer group whose rebalances are ordinary events of the poll loop.
//!
//! librdkafka reports a rebalance in a callback inside `poll`. Here the callback only queues it, and [`Member::poll`]
//! returns it as [`Polled::Assigned`] or [`Polled::Revoked`]. The role then drains, commits, and responds with
//! [`Member::take`] or [`Member::give_up`]; the group waits until it does. So everything that touches a partition
//! happens on one thread, in order (**Owner only**).
//!
//! Two properties of the client are verified rather than trusted: that it returns each record once (`sequence_guard`),
//! and that it is not stuck (`health`, and a second client that reads committed offsets in its place).

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::bootstrap;
use super::watchdog::Link;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::error::{Failure, is_denied, is_unreachable};
use crate::edge::kafka::log::LogContext;
use crate::edge::kafka::wait::KeepWaiting;
use crate::model::throttle::Throttle;
use crate::model::units::Position;
use committed::CommittedReader;
use context::{Event, MemberContext, unassign};
use gap_search::GapSearch;
use health::ClientHealth;
use partition::plain;
use read_positions::ReadPositions;
use sequence_guard::{Arrival, SequenceGuard};

mod committed;
mod context;
mod gap;
mod gap_search;
mod gaps;
mod hanging;
mod health;
mod partition;
mod read_positions;
mod sequence_guard;

pub use committed::Committed;
pub use gap::Gap;
pub use partition::{Commit, TopicPartition, commit_list};

/// The result of one poll.
pub enum Polled<'a> {
    /// A record.
    Message(BorrowedMessage<'a>),
    /// Partitions were assigned; the list may be empty. Respond with [`Member::take`].
    Assigned(Vec<TopicPartition>),
    /// Partitions were revoked. Respond with [`Member::give_up`].
    Revoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// The partitions are lost: another member may own them already, so nothing may be committed.
        lost: bool,
    },
    /// The broker had no record at the read position; reading resumed elsewhere.
    Gap(Gap),
    /// Nothing within the time allowed.
    Idle,
}

/// A member of one consumer group; used from one thread.
pub struct Member {
    consumer: Arc<BaseConsumer<MemberContext>>,
    link: Link,
    settings: Settings,
    purpose: &'static str,
    keep_waiting: KeepWaiting,
    group: String,
    /// The generation in which the partitions were taken. Never refreshed at commit time: after an eviction it would
    /// be empty, and a broker accepts an empty generation from anybody.
    metadata: RefCell<Option<Arc<ConsumerGroupMetadata>>>,
    read_positions: RefCell<ReadPositions>,
    sequence: RefCell<SequenceGuard>,
    repeats: RefCell<Throttle>,
    /// Limits how often to look for deleted topics.
    deletions: RefCell<Throttle>,
    /// Locates positions that are out of range.
    gap_search: RefCell<GapSearch>,
}

impl Member {
    /// Joins `group` for `topics`. `extra` are properties of this role; `keep_waiting` is called while the member waits for a
    /// broker.
    ///
    /// # Errors
    /// [`Failure`] when the settings do not allow a client to be created.
    pub fn join(
        settings: &Settings,
        keep_waiting: KeepWaiting,
        purpose: &'static str,
        group: &str,
        topics: &[&str],
        extra: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let mut config = consumer_config(settings, purpose, group);
        // Deleted records must be reported, not skipped: see `Gap`.
        config.set("auto.offset.reset", "error");
        config.set("statistics.interval.ms", "3000");
        let timeout = config
            .get("socket.timeout.ms")
            .and_then(|ms| ms.parse().ok());
        for (key, value) in extra {
            // The operator's properties take precedence.
            if !settings.properties.iter().any(|(given, _)| given == key) {
                config.set(*key, *value);
            }
        }
        let context = MemberContext {
            log: LogContext::new(purpose),
            events: Mutex::default(),
            closing: AtomicBool::new(false),
            // The client rejects a value that is no number; its own default is one minute.
            health: ClientHealth::new(timeout.unwrap_or(60_000)),
            refused: Mutex::default(),
        };
        let consumer: BaseConsumer<MemberContext> =
            config.create_with_context(context).map_err(|error| {
                Failure::from_client(format!("creating the consumer of {purpose}"), error)
            })?;
        consumer.subscribe(topics).map_err(|error| {
            Failure::from_client(format!("subscribing to {}", topics.join(", ")), error)
        })?;
        let consumer = Arc::new(consumer);
        let link = bootstrap::keep(settings, &consumer, |consumer| consumer.client(), purpose)?;
        Ok(Self {
            consumer,
            link,
            settings: settings.clone(),
            purpose,
            keep_waiting,
            group: group.to_owned(),
            metadata: RefCell::default(),
            read_positions: RefCell::default(),
            sequence: RefCell::default(),
            repeats: RefCell::new(Throttle::new(Duration::from_secs(1))),
            deletions: RefCell::new(Throttle::new(Duration::from_secs(5))),
            gap_search: RefCell::default(),
        })
    }

    /// Waits for the next event for at most `timeout`, rounded up to a millisecond. Must be called at least every few
    /// minutes.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not fix: a denied permission, a fatal client error, a stuck client.
    pub fn poll(&self, timeout: Duration) -> Result<Polled<'_>, Failure> {
        if self.consumer.context().health.is_stuck() {
            return Err(Failure::Stuck(self.purpose));
        }
        if let Some(event) = self.next_event() {
            return Ok(event);
        }
        if self.gap_search.borrow().is_wanted() {
            self.look_for_gaps()?;
            if let Some(event) = self.next_event() {
                return Ok(event);
            }
        }
        failpoint::point("poll.before");
        // The client waits for whole milliseconds; the binding would busy-loop through the remainder.
        let whole = timeout.as_nanos().div_ceil(1_000_000);
        let whole = Duration::from_millis(u64::try_from(whole).unwrap_or(u64::MAX));
        match self.consumer.poll(whole) {
            Some(Ok(message)) => {
                failpoint::point("poll.after");
                let (topic, partition, offset) =
                    (message.topic(), message.partition(), message.offset());
                let arrival = self.sequence.borrow_mut().take(topic, partition, offset);
                match arrival {
                    Arrival::New => Ok(Polled::Message(message)),
                    Arrival::Repeated => {
                        self.log_repeat(topic, partition, offset);
                        Ok(Polled::Idle)
                    }
                    // Later records may be committed by now: the next owner must not continue behind this one.
                    Arrival::Skipped => Err(Failure::Internal(format!(
                        "the Kafka client returned {topic} {partition}:{offset} after later records, which is a client bug; stopping without a commit, restart to resume at the committed offsets"
                    ))),
                }
            }
            Some(Err(error)) => self.tolerate(error),
            None => Ok(self.next_event().unwrap_or(Polled::Idle)),
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

    fn next_event(&self) -> Option<Polled<'static>> {
        Some(match self.consumer.context().next_event()? {
            Event::Assign(partitions) => Polled::Assigned(partitions),
            Event::Revoke { partitions, lost } => Polled::Revoked { partitions, lost },
            Event::Gap(gap) => Polled::Gap(gap),
        })
    }

    fn tolerate(&self, error: KafkaError) -> Result<Polled<'static>, Failure> {
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Err(Failure::from_client(
                format!("the consumer of {}", self.group),
                error,
            ));
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.look_for_deleted_topics()?;
                Ok(self.next_event().unwrap_or(Polled::Idle))
            }
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.gap_search.borrow_mut().want();
                Ok(Polled::Idle)
            }
            _ if is_denied(&error) => Err(Failure::from_client(
                format!("reading as group {}", self.group),
                error,
            )),
            // The client logs this itself.
            _ if is_unreachable(&error) => Ok(Polled::Idle),
            _ => {
                tracing::warn!(group = self.group, "poll failed: {error}");
                Ok(Polled::Idle)
            }
        }
    }

    /// Reassigns one partition: the client has stopped it, so seeking fails. The group is not involved.
    fn start_at(&self, at: TopicPartition, position: Position) -> Result<(), Failure> {
        self.give_up(std::slice::from_ref(&at))?;
        self.take(&[(at, Some(position))])
    }

    /// The positions of partitions in which the client has skipped offsets without a record, such as transaction
    /// markers, since the last record that it returned. Once all returned records are done, such a position may be
    /// committed. Sends no request to a broker.
    ///
    /// # Errors
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn passed(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        let reading_at = self.read_positions.borrow().current(&self.consumer)?;
        let mut sequence = self.sequence.borrow_mut();
        let passed = reading_at.into_iter().filter(|(at, position)| {
            let next = sequence.next(&at.topic, at.partition);
            next.is_some_and(|next| position.0 > next)
        });
        Ok(passed.collect())
    }

    /// Notes that reading starts at `positions`.
    fn started(&self, positions: &[(TopicPartition, Option<Position>)]) -> Result<(), Failure> {
        let mut sequence = self.sequence.borrow_mut();
        for (at, position) in positions {
            self.consumer.context().health.forget_end(at);
            let start = position.unwrap_or_default();
            sequence.start(&at.topic, at.partition, start.0);
        }
        self.read_positions
            .borrow_mut()
            .start(&self.consumer, positions)
    }

    /// The committed offsets of `partitions`. Waits while an open transaction holds them, and while no broker is
    /// reachable.
    ///
    /// # Errors
    /// [`Failure`] when permission is denied, when the process is stopping, or when the client is stuck.
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        let reader = CommittedReader {
            consumer: &self.consumer,
            link: &self.link,
            settings: &self.settings,
            purpose: self.purpose,
            group: &self.group,
            keep_waiting: &self.keep_waiting,
        };
        reader.read(partitions)
    }

    /// Takes `partitions` and reads from the given positions, or from the earliest record.
    ///
    /// # Errors
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn take(&self, partitions: &[(TopicPartition, Option<Position>)]) -> Result<(), Failure> {
        let mut assigned = TopicPartitionList::new();
        for (at, position) in partitions {
            let offset = position.map_or(rdkafka::Offset::Beginning, |position| {
                rdkafka::Offset::Offset(position.0)
            });
            assigned
                .add_partition_offset(&at.topic, at.partition, offset)
                .map_err(|error| Failure::from_client("taking partitions", error))?;
        }
        let taken = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&assigned),
            _ => self.consumer.assign(&assigned),
        };
        taken.map_err(|error| Failure::from_client("taking partitions", error))?;
        failpoint::point("assigned.after");
        self.started(partitions)?;
        let fresh = partitions.iter().filter(|(_, position)| position.is_none());
        let fresh = fresh.count();
        if fresh > 0 {
            tracing::info!(
                group = self.group,
                partitions = fresh,
                "no committed offset; starting at the earliest record"
            );
        }
        self.metadata
            .replace(self.consumer.group_metadata().map(Arc::new));
        // A partition stays paused across a revocation.
        if !partitions.is_empty() {
            self.consumer
                .resume(&assigned)
                .map_err(|error| Failure::from_client("resuming partitions", error))?;
        }
        Ok(())
    }

    /// Takes `partitions` and reads from their committed offsets.
    ///
    /// # Errors
    /// As [`Member::committed`] and [`Member::take`].
    pub fn take_committed(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.take(&self.positions(partitions)?)
    }

    /// Seeks `partitions` back to their committed offsets.
    ///
    /// # Errors
    /// As [`Member::committed`]; and when seeking a partition takes longer than 10 s.
    pub fn rewind(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.seek(&self.positions(partitions)?)
    }

    fn positions(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<(TopicPartition, Option<Position>)>, Failure> {
        let committed = self.committed(partitions)?;
        Ok(committed
            .into_iter()
            .map(|found| (found.at, found.position))
            .collect())
    }

    /// Gives up `partitions`; all their work must be committed or dropped by now.
    ///
    /// # Errors
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn give_up(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        unassign(&self.consumer, &plain(partitions))
            .map_err(|error| Failure::from_client("giving up partitions", error))
    }

    /// The generation in which the current partitions were taken.
    #[must_use]
    pub fn generation(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        self.metadata.borrow().clone()
    }

    /// Adopts the current generation of the group, if this process is a member of it. Membership is verified by
    /// committing `anchor`, which must equal what is already committed: the broker rejects the commit of an evicted
    /// member, and no later generation can start without a rebalance that this thread sees. Does nothing without an
    /// anchor.
    ///
    /// # Errors
    /// The broker's rejection: this process is not a member.
    pub fn renew_generation(&self, anchor: &[Commit]) -> Result<(), KafkaError> {
        if anchor.is_empty() {
            return Ok(());
        }
        let present = self.consumer.group_metadata();
        self.commit(anchor)?;
        self.metadata.replace(present.map(Arc::new));
        Ok(())
    }

    /// Commits and waits for the response.
    ///
    /// # Errors
    /// The client's error; the caller decides whether to retry.
    pub fn commit(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        if commits.is_empty() {
            return Ok(());
        }
        let list = commit_list(commits)?;
        let commit = || {
            failpoint::point("snapshot-commit.before");
            self.consumer.commit(&list, CommitMode::Sync)
        };
        self.link.bounded("committing positions", commit)?;
        failpoint::point("snapshot-commit.after");
        Ok(())
    }

    /// Partitions whose commit the broker has refused since the last call, as known after a poll. It may have taken those
    /// of other partitions in the same request, and [`Member::commit`] has returned no error then.
    #[must_use]
    pub fn refused_commits(&self) -> Vec<(TopicPartition, KafkaError)> {
        self.consumer.context().take_refused()
    }

    /// Whether a connection broke or a request timed out since the last call. The client may then have sent a commit
    /// twice, and the first copy may still be in flight.
    #[must_use]
    pub fn was_disturbed(&self) -> bool {
        self.consumer.context().health.was_disturbed()
    }

    /// Seeks back to `positions` and drops prefetched records.
    fn seek(&self, positions: &[(TopicPartition, Option<Position>)]) -> Result<(), Failure> {
        if positions.is_empty() {
            return Ok(());
        }
        /// A partition that was just assigned cannot be sought until the client has started fetching it.
        const STARTING: Duration = Duration::from_millis(50);
        const TRIES: usize = 200;
        let failed = |error| Failure::from_client("seeking to the committed offsets", error);
        let mut wanted = TopicPartitionList::with_capacity(positions.len());
        for (at, position) in positions {
            let offset = position.map_or(rdkafka::Offset::Beginning, |position| {
                rdkafka::Offset::Offset(position.0)
            });
            wanted
                .add_partition_offset(&at.topic, at.partition, offset)
                .map_err(failed)?;
        }
        let mut last = KafkaError::Seek("not attempted".to_owned());
        for _ in 0..TRIES {
            match self.try_seek(wanted.clone()) {
                Ok(()) => return self.started(positions),
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

    /// Pauses fetching of `partitions`. Prefetched records are discarded, so use this for long waits only.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.consumer
            .pause(&plain(partitions))
            .map_err(|error| Failure::from_client("pausing partitions", error))
    }

    /// Resumes fetching of `partitions`.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.consumer
            .resume(&plain(partitions))
            .map_err(|error| Failure::from_client("resuming partitions", error))
    }

    /// Leaves the group when the role has ended with the result `ended`.
    ///
    /// # Errors
    /// The result of the role. A role with a stuck client is not restarted within this process if the client does not
    /// close: the broker may still count it as a member, and a rebalance waits minutes for each member.
    pub fn leave(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        /// Time for the last requests to the coordinator.
        const CLOSE: Duration = Duration::from_secs(5);
        let purpose = self.purpose;
        if self.close(CLOSE) {
            return ended;
        }
        tracing::warn!(
            "group not left in time; the broker evicts this member after the session timeout"
        );
        match ended {
            Err(stuck @ Failure::Stuck(_)) => Err(Failure::Internal(format!(
                "{stuck}, and its client did not leave the group of {purpose} in time; exiting to release the membership"
            ))),
            ended => ended,
        }
    }

    /// Closing can block forever when the coordinator does not respond (rdkafka 453, 611), so it runs on its own thread.
    /// After `deadline` this returns `false` and leaves the thread behind; it finishes when it can, or ends with the
    /// process.
    fn close(self, deadline: Duration) -> bool {
        self.consumer
            .context()
            .closing
            .store(true, Ordering::Relaxed);
        let (done, closed) = std::sync::mpsc::channel();
        let mut consumer = self.consumer;
        std::thread::spawn(move || {
            failpoint::point("close.before");
            // Watching threads release the client within a moment.
            while let Err(still) = Arc::try_unwrap(consumer) {
                consumer = still;
                std::thread::sleep(Duration::from_millis(5));
            }
            // After the deadline the receiver is gone, and nobody waits for this.
            done.send(()).ok();
        });
        closed.recv_timeout(deadline).is_ok()
    }
}
