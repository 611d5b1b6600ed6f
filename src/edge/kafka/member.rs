//! A member of a consumer group whose rebalances are ordinary events of the polling loop.
//!
//! librdkafka tells of a rebalance in a callback inside `poll`; here the callback only takes note, and
//! [`Member::poll`] returns it as [`Polled::Assigned`] or [`Polled::Revoked`]. The role then drains and
//! commits, and answers with [`Member::take`] or [`Member::give_up`]; until it does, the group waits for it.
//! So everything that touches a partition happens on one thread, in order (**Owner only**).
//!
//! The client is not taken at its word in two things: whether it gives each record once (`wanted`), and whether it is
//! still there to be waited for (`health`, and another client that is asked in its place).

use std::cell::{Cell, RefCell};
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
use super::watchdog::bounded;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::error::{Failure, is_denied, is_unreachable};
use crate::edge::kafka::log::LogContext;
use crate::edge::kafka::wait::Pulse;
use crate::model::throttle::Throttle;
use crate::model::units::Position;
use committed::CommittedReader;
use context::{Event, MemberContext, unassign};
use health::ClientHealth;
use partition::plain;
use read_positions::ReadPositions;
use sequence_guard::{Arrival, SequenceGuard};

mod committed;
mod context;
mod gap;
mod health;
mod partition;
mod read_positions;
mod sequence_guard;

pub use committed::Committed;
pub use gap::Gap;
pub use partition::{Commit, TopicPartition, commit_list};

/// What one poll brought.
pub enum Polled<'a> {
    /// A record.
    Message(BorrowedMessage<'a>),
    /// These partitions are to be taken: answer with [`Member::take`], also when there are none.
    Assigned(Vec<TopicPartition>),
    /// These partitions are to be given up: answer with [`Member::give_up`].
    Revoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// They are gone already: another member may own them, so nothing may be committed.
        lost: bool,
    },
    /// The broker has no record at the position that was read from; reading has gone on elsewhere.
    Gap(Gap),
    /// Nothing within the time allowed.
    Idle,
}

/// A member of one consumer group; to be used from one thread.
pub struct Member {
    consumer: Arc<BaseConsumer<MemberContext>>,
    settings: Settings,
    purpose: &'static str,
    pulse: Pulse,
    group: String,
    /// The generation in which the partitions were taken. Never read afresh at commit time: after an
    /// eviction that would name no generation at all, which a broker accepts from anybody.
    metadata: RefCell<Option<Arc<ConsumerGroupMetadata>>>,
    read_positions: RefCell<ReadPositions>,
    sequence: RefCell<SequenceGuard>,
    repeats: RefCell<Throttle>,
    /// A position was out of range, and it is not yet known which.
    out_of_range: Cell<bool>,
}

impl Member {
    /// Joins `group` for `topics`. `extra` properties are for this role's way of reading; `pulse` is felt while a
    /// broker is waited for.
    ///
    /// # Errors
    /// [`Failure`] when the client cannot be made, which is a matter of settings.
    pub fn join(
        settings: &Settings,
        pulse: Pulse,
        purpose: &'static str,
        group: &str,
        topics: &[&str],
        extra: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let mut config = consumer_config(settings, purpose, group);
        // What is not there any more must be told, not skipped: see `Gap`.
        config.set("auto.offset.reset", "error");
        config.set("statistics.interval.ms", "3000");
        let timeout = config
            .get("socket.timeout.ms")
            .and_then(|ms| ms.parse().ok());
        for (key, value) in extra {
            // What the operator says goes before what suits this role.
            if !settings.properties.iter().any(|(given, _)| given == key) {
                config.set(*key, *value);
            }
        }
        let context = MemberContext {
            log: LogContext::new(purpose),
            events: Mutex::default(),
            closing: AtomicBool::new(false),
            // The client refuses a property that is no number, and has a minute where none is set.
            health: ClientHealth::new(timeout.unwrap_or(60_000)),
        };
        let consumer: BaseConsumer<MemberContext> =
            config.create_with_context(context).map_err(|error| {
                Failure::from_client(format!("creating the consumer of {purpose}"), error)
            })?;
        consumer.subscribe(topics).map_err(|error| {
            Failure::from_client(format!("subscribing to {}", topics.join(", ")), error)
        })?;
        let consumer = Arc::new(consumer);
        bootstrap::keep(settings, &consumer, |consumer| consumer.client())?;
        Ok(Self {
            consumer,
            settings: settings.clone(),
            purpose,
            pulse,
            group: group.to_owned(),
            metadata: RefCell::default(),
            read_positions: RefCell::default(),
            sequence: RefCell::default(),
            repeats: RefCell::new(Throttle::new(Duration::from_secs(1))),
            out_of_range: Cell::new(false),
        })
    }

    /// Waits at most `timeout`, rounded up to a millisecond, for the next event. Must be called at least every few minutes.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not mend: a topic that is gone, a permission, a fatal client error, a client
    /// that is silent for good.
    pub fn poll(&self, timeout: Duration) -> Result<Polled<'_>, Failure> {
        if self.consumer.context().health.is_forgotten() {
            return Err(Failure::Forgotten(self.purpose));
        }
        if let Some(event) = self.next_event() {
            return Ok(event);
        }
        if self.out_of_range.get() {
            self.look_for_gaps()?;
            if let Some(event) = self.next_event() {
                return Ok(event);
            }
        }
        failpoint::point("poll.before");
        // The client waits for whole milliseconds; the binding spins through what is left.
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
                        self.tell_repeat(topic, partition, offset);
                        Ok(Polled::Idle)
                    }
                    // What was given may be committed by now: the next owner must not read on behind this.
                    Arrival::Skipped => Err(Failure::Internal(format!(
                        "the client gave {topic} {partition}:{offset} after later records: nothing more is committed; this is a defect of the client, and a restart reads from the committed positions"
                    ))),
                }
            }
            Some(Err(error)) => self.tolerate(error),
            None => Ok(self.next_event().unwrap_or(Polled::Idle)),
        }
    }

    fn tell_repeat(&self, topic: &str, partition: i32, offset: i64) {
        if let Some(untold) = self.repeats.borrow_mut().pass(clock::instant()) {
            tracing::warn!(
                group = self.group,
                untold,
                "the client gave {topic} {partition}:{offset} a second time: it is not taken again"
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
                self.missing_topic().map_or(Ok(Polled::Idle), Err)
            }
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.out_of_range.set(true);
                Ok(Polled::Idle)
            }
            _ if is_denied(&error) => Err(Failure::from_client(
                format!("reading as group {}", self.group),
                error,
            )),
            // The client tells of that by itself.
            _ if is_unreachable(&error) => Ok(Polled::Idle),
            _ => {
                tracing::warn!(group = self.group, "reading: {error}");
                Ok(Polled::Idle)
            }
        }
    }

    /// Compares every position with what the broker has, and reads on from its earliest record where there is none.
    fn look_for_gaps(&self) -> Result<(), Failure> {
        const ANSWER: Duration = Duration::from_secs(5);
        let mut found = Vec::new();
        let positions = self.read_positions.borrow().current(&self.consumer)?;
        for (at, from) in &positions {
            let ends = self
                .consumer
                .fetch_watermarks(&at.topic, at.partition, ANSWER);
            match ends {
                Ok((low, high)) => found.extend(Gap::find(at, *from, low, high)),
                // Asked again at the next poll.
                Err(error) => {
                    tracing::warn!(group = self.group, "looking for a gap: {error}");
                    return Ok(());
                }
            }
        }
        self.out_of_range.set(false);
        if found.is_empty() {
            // What the broker said has changed meanwhile; the client has stopped a partition all the same.
            return positions
                .into_iter()
                .try_for_each(|(at, from)| self.start_at(at, from));
        }
        for gap in found {
            gap.log();
            self.start_at(gap.at.clone(), gap.to)?;
            self.consumer.context().push_event(Event::Gap(gap));
        }
        Ok(())
    }

    /// The client has stopped this partition, so it cannot be sought; the group is not asked.
    fn start_at(&self, at: TopicPartition, position: Position) -> Result<(), Failure> {
        self.give_up(std::slice::from_ref(&at))?;
        self.take(&[(at, Some(position))])
    }

    /// Of each partition in which the client has passed offsets that hold no record for its reader, such as the marker at
    /// the end of a transaction, since the last record that it gave: where it is. When all that it gave is done, that
    /// position may be committed. This asks no broker.
    ///
    /// # Errors
    /// [`Failure`] when the client refuses, which it does not while it is sound.
    pub fn passed(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        let reading_at = self.read_positions.borrow().current(&self.consumer)?;
        let mut sequence = self.sequence.borrow_mut();
        let passed = reading_at.into_iter().filter(|(at, position)| {
            let next = sequence.next(&at.topic, at.partition);
            next.is_some_and(|next| position.0 > next)
        });
        Ok(passed.collect())
    }

    /// Records that reading starts at `positions`.
    fn started(&self, positions: &[(TopicPartition, Option<Position>)]) -> Result<(), Failure> {
        let mut sequence = self.sequence.borrow_mut();
        for (at, position) in positions {
            let start = position.unwrap_or_default();
            sequence.start(&at.topic, at.partition, start.0);
        }
        self.read_positions
            .borrow_mut()
            .start(&self.consumer, positions)
    }

    /// A leader change looks like a missing topic for a moment; only what the metadata lacks is missing.
    fn missing_topic(&self) -> Option<Failure> {
        let subscribed = self.consumer.subscription().ok()?;
        let metadata = self
            .consumer
            .fetch_metadata(None, Duration::from_secs(5))
            .ok()?;
        subscribed
            .elements()
            .iter()
            .map(|element| element.topic().to_owned())
            .find(|topic| !metadata.topics().iter().any(|found| found.name() == topic))
            .map(Failure::TopicMissing)
    }

    /// What the group has committed for `partitions`: see [`CommittedReader::read`].
    ///
    /// # Errors
    /// As [`CommittedReader::read`].
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        let reader = CommittedReader {
            consumer: &self.consumer,
            settings: &self.settings,
            purpose: self.purpose,
            group: &self.group,
            pulse: &self.pulse,
        };
        reader.read(partitions)
    }

    /// Takes `partitions`, reading from the positions given, or from the earliest record.
    ///
    /// # Errors
    /// [`Failure`] when the client refuses, which it does not while it is sound.
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
                "in some partitions nothing is committed, since nothing was read there yet, or it has expired: whatever they hold is read"
            );
        }
        self.metadata
            .replace(self.consumer.group_metadata().map(Arc::new));
        // A partition that was paused before it was revoked is still paused.
        if !partitions.is_empty() {
            self.consumer
                .resume(&assigned)
                .map_err(|error| Failure::from_client("resuming partitions", error))?;
        }
        Ok(())
    }

    /// Takes `partitions`, reading from what the group has committed.
    ///
    /// # Errors
    /// As [`Member::committed`] and [`Member::take`].
    pub fn take_committed(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.take(&self.positions(partitions)?)
    }

    /// Reads `partitions` again from what the group has committed.
    ///
    /// # Errors
    /// As [`Member::committed`]; and when a partition cannot be sought within 10 s.
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

    /// Gives `partitions` up; everything about them must be committed or dropped by now.
    ///
    /// # Errors
    /// [`Failure`] when the client refuses, which it does not while it is sound.
    pub fn give_up(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        unassign(&self.consumer, &plain(partitions))
            .map_err(|error| Failure::from_client("giving partitions up", error))
    }

    /// The generation in which the current partitions were taken.
    #[must_use]
    pub fn generation(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        self.metadata.borrow().clone()
    }

    /// Takes the group's present generation over, if this process is a member of it. The broker is asked by
    /// committing `anchor`, which must be what is committed already: it refuses that from a member that it has
    /// evicted, and no later generation can have begun without a rebalance that this thread knows of. Without an
    /// anchor nothing changes.
    ///
    /// # Errors
    /// The broker's refusal: this process is no member any more, or not yet again.
    pub fn renew_generation(&self, anchor: &[Commit]) -> Result<(), KafkaError> {
        if anchor.is_empty() {
            return Ok(());
        }
        let present = self.consumer.group_metadata();
        self.commit(anchor)?;
        self.metadata.replace(present.map(Arc::new));
        Ok(())
    }

    /// Commits, and waits for the broker's answer.
    ///
    /// # Errors
    /// The client's error: whether to try again is for the caller to say.
    pub fn commit(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        if commits.is_empty() {
            return Ok(());
        }
        let list = commit_list(commits)?;
        let commit = || {
            failpoint::point("snapshot-commit.before");
            self.consumer.commit(&list, CommitMode::Sync)
        };
        bounded("committing positions", commit)?;
        failpoint::point("snapshot-commit.after");
        Ok(())
    }

    /// Whether a connection broke, or an answer did not come in time, since this was last asked. The client may then have
    /// sent a commit twice, and the first copy may still be under way.
    #[must_use]
    pub fn was_disturbed(&self) -> bool {
        self.consumer.context().health.was_disturbed()
    }

    /// Goes back to `positions`, dropping what was read ahead.
    fn seek(&self, positions: &[(TopicPartition, Option<Position>)]) -> Result<(), Failure> {
        if positions.is_empty() {
            return Ok(());
        }
        /// A partition that was taken a moment ago cannot be sought until the client has started it.
        const STARTING: Duration = Duration::from_millis(50);
        const TRIES: usize = 200;
        let failed = |error| Failure::from_client("going back to the committed positions", error);
        let mut wanted = TopicPartitionList::with_capacity(positions.len());
        for (at, position) in positions {
            let offset = position.map_or(rdkafka::Offset::Beginning, |position| {
                rdkafka::Offset::Offset(position.0)
            });
            wanted
                .add_partition_offset(&at.topic, at.partition, offset)
                .map_err(failed)?;
        }
        let mut last = KafkaError::Seek("no try was made".to_owned());
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

    /// Stops fetching `partitions`. What was fetched and not polled is thrown away: for long waits only.
    ///
    /// # Errors
    /// [`Failure`] when the client refuses.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.consumer
            .pause(&plain(partitions))
            .map_err(|error| Failure::from_client("pausing partitions", error))
    }

    /// Fetches `partitions` again.
    ///
    /// # Errors
    /// [`Failure`] when the client refuses.
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.consumer
            .resume(&plain(partitions))
            .map_err(|error| Failure::from_client("resuming partitions", error))
    }

    /// Leaves the group at the end of a role that `ended` so.
    ///
    /// # Errors
    /// What it ended with. A role whose client was forgotten does not begin anew within this process when the client does
    /// not let go: the broker may count it as a member still, and a rebalance waits for each member for minutes.
    pub fn leave(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        /// For the last requests to the coordinator.
        const CLOSE: Duration = Duration::from_secs(5);
        let purpose = self.purpose;
        if self.close(CLOSE) {
            return ended;
        }
        tracing::warn!(
            "leaving the group took too long; the broker will notice by the session timeout"
        );
        match ended {
            Err(forgotten @ Failure::Forgotten(_)) => Err(Failure::Internal(format!(
                "{forgotten}, and does not leave the group of {purpose} either: only the end of the process makes it"
            ))),
            ended => ended,
        }
    }

    /// Closing can block without limit when the coordinator does not answer (rdkafka 453, 611), so it happens on a
    /// thread of its own; after `deadline` this returns `false` and leaves the thread behind: it leaves when it can, or
    /// ends with the process.
    fn close(self, deadline: Duration) -> bool {
        self.consumer
            .context()
            .closing
            .store(true, Ordering::Relaxed);
        let (done, closed) = std::sync::mpsc::channel();
        let mut consumer = self.consumer;
        std::thread::spawn(move || {
            failpoint::point("close.before");
            // Whoever watches the client lets go of it within a moment.
            while let Err(still) = Arc::try_unwrap(consumer) {
                consumer = still;
                std::thread::sleep(Duration::from_millis(5));
            }
            // The receiver is gone when the deadline has passed; then nobody waits for this.
            done.send(()).ok();
        });
        closed.recv_timeout(deadline).is_ok()
    }
}
