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
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use crate::edge::kafka::member::sequence_guard::{Turn, Wanted};
use health::ClientHealth;

use super::bootstrap;
use super::watchdog::{bounded, was_unreachable_within};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::wait::Pulse;
use crate::model::throttle::Throttle;
use crate::model::units::Position;

mod health;
mod sequence_guard;

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

/// A position to commit, with the metadata that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where.
    pub at: TopicPartition,
    /// The next record to read after a restart.
    pub position: Position,
    /// At most 4,096 characters at the broker; empty where a position says all.
    pub metadata: String,
}

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Where.
    pub at: TopicPartition,
    /// `None` when the group has never committed here.
    pub position: Option<Position>,
    /// As it was committed.
    pub metadata: String,
}

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

/// A hole in what was read, or an end of the topic that lies before what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where.
    pub at: TopicPartition,
    /// What was to be read next.
    pub from: Position,
    /// The earliest record that the broker has: reading goes on there.
    pub to: Position,
}

impl Gap {
    /// The gap between the position `from` and a log that holds what lies from `low` up to `high`, if there is one.
    fn find(at: &TopicPartition, from: Position, low: i64, high: i64) -> Option<Self> {
        let outside = from.0 < low || from.0 > high;
        outside.then(|| Self {
            at: at.clone(),
            from,
            to: Position(low),
        })
    }

    /// How many offsets are lost; 0 when the topic ends before the position, so that it was truncated or made again.
    #[must_use]
    pub fn lost(&self) -> u64 {
        u64::try_from(self.to.0 - self.from.0).unwrap_or(0)
    }

    /// Tells of it: lost records by their exact range.
    pub fn log(&self) {
        let (topic, partition, from, to) =
            (&self.at.topic, self.at.partition, self.from.0, self.to.0);
        if self.lost() > 0 {
            tracing::error!(
                topic = %topic, partition, from, to,
                "LOST: the offsets from {from} to {} of {topic} {partition} were deleted before they were read: retention has overtaken this group, or an operator deleted them; reading goes on at {to}",
                to - 1,
            );
        } else {
            tracing::error!(
                topic = %topic, partition, from, to,
                "{topic} {partition} ends before the position {from} of this group: it was truncated or made again; all that it holds is read, from {to}, and may be done a second time",
            );
        }
    }
}

enum Event {
    Assign(Vec<TopicPartition>),
    Revoke {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
    Gap(Gap),
}

/// Takes note of rebalances.
pub struct MemberContext {
    log: LogContext,
    events: Mutex<VecDeque<Event>>,
    closing: AtomicBool,
    health: ClientHealth,
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if crate::edge::kafka::error::is_unreachable(&error) {
            self.health.disturb();
        }
        self.log.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.health.read(statistics);
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let assigning = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Relaxed) {
            // The final commit is done; all that is left is to let go.
            if !assigning && let Err(error) = unassign(consumer, partitions) {
                tracing::debug!(
                    client = self.log.purpose,
                    "giving partitions up while closing: {error}"
                );
            }
            return;
        }
        let listed = list(partitions);
        let event = if assigning {
            Event::Assign(listed)
        } else {
            Event::Revoke {
                partitions: listed,
                lost: consumer.assignment_lost(),
            }
        };
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(event);
    }
}

fn list(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    let mut topics: HashMap<String, Arc<str>> = HashMap::new();
    partitions
        .elements()
        .iter()
        .map(|element| {
            let topic = topics
                .entry(element.topic().to_owned())
                .or_insert_with(|| Arc::from(element.topic()));
            TopicPartition {
                topic: Arc::clone(topic),
                partition: element.partition(),
            }
        })
        .collect()
}

fn unassign(
    consumer: &BaseConsumer<MemberContext>,
    partitions: &TopicPartitionList,
) -> Result<(), KafkaError> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
        _ => consumer.unassign(),
    }
}

/// Where reading began, and the position that the client told at that time: until that changes, nothing was read.
struct Began {
    at: Position,
    told: Option<Position>,
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
    /// Where each partition's reading last began.
    began: RefCell<HashMap<TopicPartition, Began>>,
    wanted: RefCell<Wanted>,
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
        let mut config = crate::edge::kafka::client::consumer_config(settings, purpose, group);
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
            began: RefCell::default(),
            wanted: RefCell::default(),
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
                let turn = self.wanted.borrow_mut().take(topic, partition, offset);
                match turn {
                    Turn::New => Ok(Polled::Message(message)),
                    Turn::Again => {
                        self.tell_repeat(topic, partition, offset);
                        Ok(Polled::Idle)
                    }
                    // What was given may be committed by now: the next owner must not read on behind this.
                    Turn::LeftOut => Err(Failure::Internal(format!(
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
        let event = self
            .consumer
            .context()
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()?;
        Some(match event {
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
            _ if crate::edge::kafka::error::is_denied(&error) => Err(Failure::from_client(
                format!("reading as group {}", self.group),
                error,
            )),
            // The client tells of that by itself.
            _ if crate::edge::kafka::error::is_unreachable(&error) => Ok(Polled::Idle),
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
        let positions = self.reading_at()?;
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
            self.note(Event::Gap(gap));
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
        let reading_at = self.reading_at()?;
        let mut wanted = self.wanted.borrow_mut();
        let passed = reading_at.into_iter().filter(|(at, position)| {
            let next = wanted.next(&at.topic, at.partition);
            next.is_some_and(|next| position.0 > next)
        });
        Ok(passed.collect())
    }

    /// What is to be read next, of each partition.
    fn reading_at(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        let began = self.began.borrow();
        let told = self.told_positions()?;
        let each = began.iter().filter_map(|(at, began)| {
            let told = *told.get(at)?;
            // Nothing has come since it began there.
            let now = if told == began.told {
                Some(began.at)
            } else {
                told
            };
            Some((at.clone(), now?))
        });
        Ok(each.collect())
    }

    /// Behind the last record that the client gave, of each assigned partition.
    fn told_positions(&self) -> Result<HashMap<TopicPartition, Option<Position>>, Failure> {
        let positions = self
            .consumer
            .position()
            .map_err(|error| Failure::from_client("asking for positions", error))?;
        let each = positions.elements().into_iter().map(|element| {
            let at = TopicPartition {
                topic: Arc::from(element.topic()),
                partition: element.partition(),
            };
            let position = match element.offset() {
                rdkafka::Offset::Offset(offset) => Some(Position(offset)),
                _ => None,
            };
            (at, position)
        });
        Ok(each.collect())
    }

    /// Reading of `positions` begins anew; the client tells no new position before the first record.
    fn begins(&self, positions: &[(TopicPartition, Option<Position>)]) -> Result<(), Failure> {
        let told = self.told_positions()?;
        let mut began = self.began.borrow_mut();
        for (at, position) in positions {
            let start = Began {
                at: position.unwrap_or_default(),
                told: told.get(at).copied().flatten(),
            };
            self.wanted
                .borrow_mut()
                .start(&at.topic, at.partition, start.at.0);
            began.insert(at.clone(), start);
        }
        Ok(())
    }

    fn note(&self, event: Event) {
        let mut events = self
            .consumer
            .context()
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        events.push_back(event);
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

    /// What the group has committed for `partitions`; waits while a transaction that holds them is open, and while no
    /// broker answers. Soon after no broker answered, a coordinator that has just begun may tell old positions for a
    /// moment (seen once, of Kafka 4.0.2 after all brokers had been killed): then two readings have to agree.
    ///
    /// # Errors
    /// [`Failure`] when permission is denied; when the process is told to stop before there is an answer; and when
    /// another client got one, and this one still does not.
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        const TRY: Duration = Duration::from_secs(5);
        /// After this, longer than a request of ours can take, another client is asked, and again as much later.
        const ANSWERED: Duration = Duration::from_secs(15);
        /// Of so many tries the last says what the matter is. A transaction of ours ends within
        /// [`crate::edge::kafka::client::TRANSACTION_TIMEOUT`], and ten seconds that a broker may take to notice.
        const HANGING: usize = 6;
        /// For so long after no broker answered a reading is made again, so much later.
        const UNSETTLED: Duration = Duration::from_secs(60);
        const AGAIN: Duration = Duration::from_secs(1);
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        if failpoint::fails("forgotten") {
            return Err(Failure::Forgotten(self.purpose));
        }
        let wanted = plain(partitions);
        let mut tries = 0;
        let mut asked = clock::instant();
        let mut another_has_read = false;
        let mut before = None;
        loop {
            tries += 1;
            let read = || {
                failpoint::point("committed-read.before");
                self.consumer.committed_offsets(wanted.clone(), TRY)
            };
            match bounded("reading committed offsets", read) {
                Ok(found) => {
                    failpoint::point("committed-read.after");
                    let found = read_committed(partitions, &found)?;
                    if !was_unreachable_within(UNSETTLED)
                        || before.as_ref() == Some(&found)
                        || !(self.pulse)()
                    {
                        return Ok(found);
                    }
                    before = Some(found);
                    std::thread::sleep(AGAIN);
                }
                Err(error) if crate::edge::kafka::error::is_denied(&error) || !(self.pulse)() => {
                    return Err(Failure::from_client(
                        format!("reading the committed offsets of {}", self.group),
                        error,
                    ));
                }
                Err(error) => {
                    tracing::warn!(
                        group = self.group,
                        "reading committed offsets: {error}; trying again"
                    );
                    if another_has_read {
                        return Err(Failure::Forgotten(self.purpose));
                    }
                    if clock::instant().saturating_duration_since(asked) >= ANSWERED {
                        another_has_read = self.another_reads(&wanted, "read_committed", TRY);
                        asked = clock::instant();
                    }
                    if tries % HANGING == 0 && self.another_reads(&wanted, "read_uncommitted", TRY)
                    {
                        tracing::error!(
                            group = self.group,
                            "the positions of this group hang in a transaction that should have ended long ago: a broker has lost its end; see the runbook, HangingTransaction; waiting"
                        );
                    }
                }
            }
        }
    }

    /// Whether a client that is no member reads what the group has committed: if it does as `read_committed`, no open
    /// transaction and no missing broker keeps this one from it.
    fn another_reads(
        &self,
        wanted: &TopicPartitionList,
        isolation: &str,
        timeout: Duration,
    ) -> bool {
        let mut config =
            crate::edge::kafka::client::consumer_config(&self.settings, self.purpose, &self.group);
        config.set("isolation.level", isolation);
        let context = LoggedConsumer(LogContext::new(self.purpose));
        let another: Result<BaseConsumer<LoggedConsumer>, _> = config.create_with_context(context);
        let Ok(client) = another else { return false };
        let read = || client.committed_offsets(wanted.clone(), timeout);
        let reads = bounded("reading committed offsets by another client", read).is_ok();
        // Dropping it can block while no coordinator answers.
        std::thread::spawn(move || drop(client));
        reads
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
        self.begins(partitions)?;
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
                Ok(()) => return self.begins(positions),
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

fn plain(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for at in partitions {
        list.add_partition(&at.topic, at.partition);
    }
    list
}

/// As the client wants commits.
///
/// # Errors
/// The client's error for an offset it cannot hold.
pub fn commit_list(commits: &[Commit]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(&commit.at.topic, commit.at.partition);
        element.set_offset(rdkafka::Offset::Offset(commit.position.0))?;
        if !commit.metadata.is_empty() {
            element.set_metadata(&commit.metadata);
        }
    }
    Ok(list)
}

fn read_committed(
    partitions: &[TopicPartition],
    found: &TopicPartitionList,
) -> Result<Vec<Committed>, Failure> {
    partitions
        .iter()
        .map(|at| {
            let Some(element) = found.find_partition(&at.topic, at.partition) else {
                return Ok(Committed {
                    at: at.clone(),
                    position: None,
                    metadata: String::new(),
                });
            };
            element.error().map_err(|error| {
                Failure::from_client(
                    format!("the offset of {} {}", at.topic, at.partition),
                    error,
                )
            })?;
            let position = match element.offset() {
                rdkafka::Offset::Offset(offset) => Some(Position(offset)),
                _ => None,
            };
            // The client panics on metadata that is not UTF-8, but brokers keep it as a string.
            Ok(Committed {
                at: at.clone(),
                position,
                metadata: element.metadata().to_owned(),
            })
        })
        .collect()
}
