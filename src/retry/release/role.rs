//! Release: moves what is due from the tiers back to `webhook-commands`, or to a lower tier.
//!
//! A tier's partition is in due order, so only its head decides. What comes behind is kept in a bounded buffer;
//! a partition whose buffer is full is paused, for what is in it takes a while to fall due, and resumed when half
//! of it has gone: so memory is bounded whatever the backlog, and each record is fetched about once.
//! Each batch and the positions that it came from are one transaction (**One lineage**).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;

use crate::config::Guarantee;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::member::{Commit, Member, Polled, TopicPartition};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::{command_headers, invalid_headers, read_command};
use crate::edge::otlp::Together;
use crate::model::command::{Cause, Command};
use crate::model::invalid_record::InvalidRecord;
use crate::model::span;
use crate::model::tiers::{Head, Tiers};
use crate::model::units::{EpochMs, Offset, Position};
use crate::retry::metrics::{ReleaseMetrics, Released};
use crate::runtime::context::RoleContext;
use crate::runtime::metrics::{Metrics, TransactionalRole};

/// What all buffers hold together, bytes, except that each holds at least one record.
const BUFFER_BYTES: usize = 64 * 1024 * 1024;
/// A buffer is worth having only if it saves fetches.
const LEAST_BUFFER: usize = 128 * 1024;
/// Records in a batch, at most.
const BATCH_RECORDS: usize = 2000;
/// Of one tier's partition in a batch, at most: what falls due all at once, as after an outage, comes back among the new
/// commands of its partition, and not before them all.
const PORTION: usize = 500;
/// And at least, however many share the batch.
const LEAST_PORTION: usize = 20;
/// Bytes in a batch, at most, except that one record always fits.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Records taken in one turn before anything else is looked at.
const TURN: usize = 512;
/// How long one wait lasts at most.
const WAIT: Duration = Duration::from_millis(100);
/// After a batch, the next one waits this long, so that a steady trickle is moved in batches.
const GATHER: Duration = Duration::from_millis(20);

/// Runs until told to stop.
///
/// # Errors
/// [`Failure`] when the role cannot go on.
pub fn run(context: &RoleContext, metrics: &ReleaseMetrics) -> Result<(), Failure> {
    let settings = &context.settings;
    let tiers: Vec<String> = settings
        .tiers
        .delays()
        .iter()
        .map(|&delay| settings.topics.retry(delay))
        .collect();
    let mut needed = tiers.clone();
    needed.extend([settings.topics.commands(), settings.topics.invalid_events()]);
    if !context.wait_until_possible("release", &needed)? {
        return Ok(());
    }
    let producer = Producer::new(settings, &context.pulse(), "release", 0)?;
    let group = format!("{}release", settings.group_prefix);
    let subscribed: Vec<&str> = tiers.iter().map(String::as_str).collect();
    // Small fetches: what is fetched behind a head that is not due is thrown away when its partition is paused.
    let extra = [
        ("fetch.message.max.bytes", "262144"),
        ("queued.max.messages.kbytes", "4096"),
    ];
    let member = Member::join(
        settings,
        context.pulse(),
        "release",
        &group,
        &subscribed,
        &extra,
    )?;
    let topics: Vec<Arc<str>> = tiers
        .iter()
        .map(|topic| Arc::from(topic.as_str()))
        .collect();
    let mut release = Release {
        context,
        metrics,
        producer,
        buffers: HashMap::new(),
        topics,
        next_batch: clock::instant(),
    };
    context.ready();
    let ended = release.go(&member);
    context.draining();
    drop(release);
    member.leave(ended)
}

/// A record of a tier.
struct Held {
    offset: Offset,
    appended: EpochMs,
    content: Result<Box<Command>, Box<InvalidRecord>>,
}

impl Held {
    fn of(message: &BorrowedMessage<'_>) -> Result<Self, Failure> {
        Ok(Self {
            offset: Offset(message.offset()),
            appended: EpochMs(message.timestamp().to_millis().unwrap_or_default()),
            content: read_command(message)?,
        })
    }

    fn weight(&self) -> usize {
        match &self.content {
            Ok(command) => command.weight(),
            Err(record) => record.weight(),
        }
    }

    fn decide(&self, tier: usize, tiers: &Tiers, now: EpochMs) -> Head {
        match &self.content {
            Ok(command) => tiers.at_head(
                tier,
                self.appended,
                command.due.unwrap_or(self.appended),
                now,
            ),
            // It is no command: there is nothing to wait for.
            Err(_) => Head::Due,
        }
    }
}

/// A tier by its index, and one of its partitions.
type Place = (usize, i32);

/// The head of a tier's partition, and what is known behind it.
#[derive(Default)]
struct Buffer {
    queue: VecDeque<Held>,
    bytes: usize,
    paused: bool,
}

struct Release<'a> {
    context: &'a RoleContext,
    metrics: &'a ReleaseMetrics,
    producer: Producer,
    buffers: HashMap<Place, Buffer>,
    /// Of each tier, by its index.
    topics: Vec<Arc<str>>,
    next_batch: Instant,
}

/// What one batch moves.
#[derive(Default)]
struct Batch {
    moved: Vec<(Place, usize)>,
    records: usize,
    bytes: usize,
    commits: Vec<Commit>,
    /// Moved to a lower tier.
    hopped: u64,
    /// Moved to the commands, by cause.
    released: HashMap<&'static str, (Cause, u64)>,
    /// Of the commands that are traced.
    spans: Together,
}

impl Batch {
    fn tally(&mut self, command: &Command, decision: Head) {
        match decision {
            Head::Hop(_) => self.hopped += 1,
            Head::Due | Head::Wait(_) => {
                let cause = command.cause;
                self.released.entry(cause.as_str()).or_insert((cause, 0)).1 += 1;
            }
        }
    }

    fn count(&self, metrics: &ReleaseMetrics, common: &Metrics) {
        metrics.released(Released::Tier).inc_by(self.hopped);
        for &(cause, count) in self.released.values() {
            metrics.released(Released::Commands).inc_by(count);
            common.commands(cause).inc_by(count);
        }
    }
}

impl Release<'_> {
    fn go(&mut self, member: &Member) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.context.beat();
            self.turn(member)?;
            self.flow(member)?;
            if clock::instant() >= self.next_batch && self.any_due() {
                self.move_due(member)?;
                self.next_batch = clock::instant() + GATHER;
            }
        }
        Ok(())
    }

    /// Until the next head is due, or a little.
    fn wait(&self) -> Duration {
        let now = clock::now();
        let until_due = self.heads(now).map(|head| match head {
            Head::Wait(until) => until.since(now),
            Head::Due | Head::Hop(_) => Duration::ZERO,
        });
        let gather = self.next_batch.saturating_duration_since(clock::instant());
        until_due.min().unwrap_or(WAIT).max(gather).min(WAIT)
    }

    fn heads(&self, now: EpochMs) -> impl Iterator<Item = Head> + '_ {
        let tiers = &self.context.settings.tiers;
        self.buffers.iter().filter_map(move |(&(tier, _), buffer)| {
            Some(buffer.queue.front()?.decide(tier, tiers, now))
        })
    }

    fn any_due(&self) -> bool {
        self.heads(clock::now())
            .any(|head| !matches!(head, Head::Wait(_)))
    }

    fn turn(&mut self, member: &Member) -> Result<(), Failure> {
        let mut wait = self.wait();
        for _ in 0..TURN {
            match member.poll(wait)? {
                Polled::Message(message) => {
                    // What was still in the client's queue of a partition that was given up is not ours.
                    if let Some(tier) = self.tier_of(message.topic())
                        && let Some(buffer) = self.buffers.get_mut(&(tier, message.partition()))
                    {
                        let held = Held::of(&message)?;
                        buffer.bytes += held.weight();
                        buffer.queue.push_back(held);
                    }
                }
                Polled::Gap(gap) => {
                    let metrics = &self.context.metrics;
                    metrics.lost_offsets(&gap.at.topic, gap.lost());
                    if let Some(tier) = self.tier_of(&gap.at.topic) {
                        let place = (tier, gap.at.partition);
                        self.buffers.insert(place, Buffer::default());
                    }
                    return Ok(());
                }
                Polled::Assigned(partitions) => return self.assigned(member, &partitions),
                Polled::Revoked { partitions, .. } => {
                    // Batches are moved and committed within one turn, so nothing is under way here.
                    for at in &partitions {
                        if let Some(tier) = self.tier_of(&at.topic) {
                            self.buffers.remove(&(tier, at.partition));
                        }
                    }
                    tracing::info!(partitions = partitions.len(), "tier partitions revoked");
                    return member.give_up(&partitions);
                }
                Polled::Idle => return Ok(()),
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn assigned(&mut self, member: &Member, partitions: &[TopicPartition]) -> Result<(), Failure> {
        member.take_committed(partitions)?;
        for at in partitions {
            if let Some(tier) = self.tier_of(&at.topic) {
                self.buffers.insert((tier, at.partition), Buffer::default());
            }
        }
        if !partitions.is_empty() {
            tracing::info!(partitions = partitions.len(), "tier partitions assigned");
        }
        Ok(())
    }

    fn tier_of(&self, topic: &str) -> Option<usize> {
        self.topics.iter().position(|name| &**name == topic)
    }

    fn flow(&mut self, member: &Member) -> Result<(), Failure> {
        let share = (BUFFER_BYTES / self.buffers.len().max(1)).max(LEAST_BUFFER);
        for (&place, buffer) in &mut self.buffers {
            if !buffer.paused && buffer.bytes > share {
                member.pause(&[at(&self.topics, place)])?;
                buffer.paused = true;
            } else if buffer.paused && buffer.bytes < share / 2 {
                member.resume(&[at(&self.topics, place)])?;
                buffer.paused = false;
            }
        }
        Ok(())
    }

    fn move_due(&mut self, member: &Member) -> Result<(), Failure> {
        let started = clock::instant();
        let mut batch = Batch::default();
        let written = self
            .write_due(&mut batch)
            .and_then(|()| self.finish(member, &batch));
        self.context.metrics.transaction(
            TransactionalRole::Release,
            written.is_ok(),
            clock::instant() - started,
        );
        match written {
            Ok(()) => {
                batch.count(self.metrics, &self.context.metrics);
                self.forget(&batch);
                batch.spans.end();
                Ok(())
            }
            Err(BatchError::Failed(failure)) => Err(failure),
            Err(BatchError::TooLarge { .. }) => Err(Failure::Internal(
                "a waiting command is larger than the commands topic allows; `hookstream topics check` names the topic whose max.message.bytes is too small".to_owned(),
            )),
            Err(BatchError::Aborted(error)) => {
                tracing::warn!("reading the tiers again from the committed positions: {error}");
                self.producer.renew()?;
                self.start_again(member)
            }
        }
    }

    fn start_again(&mut self, member: &Member) -> Result<(), Failure> {
        let owned: Vec<_> = self
            .buffers
            .keys()
            .map(|&place| at(&self.topics, place))
            .collect();
        member.rewind(&owned)?;
        for buffer in self.buffers.values_mut() {
            buffer.queue.clear();
            buffer.bytes = 0;
        }
        Ok(())
    }

    fn write_due(&mut self, batch: &mut Batch) -> Result<(), BatchError> {
        let now = clock::now();
        let settings = &self.context.settings;
        let (commands, invalid) = (settings.topics.commands(), settings.topics.invalid_events());
        let due = self
            .heads(now)
            .filter(|head| !matches!(head, Head::Wait(_)))
            .count();
        let portion = (BATCH_RECORDS / due.max(1)).clamp(LEAST_PORTION, PORTION);
        for (&place, buffer) in &self.buffers {
            let mut moved = 0;
            let mut behind: Option<Position> = None;
            for held in buffer.queue.iter().take(portion) {
                if batch.records >= BATCH_RECORDS || batch.bytes >= BATCH_BYTES {
                    break;
                }
                let decision = held.decide(place.0, &settings.tiers, now);
                if matches!(decision, Head::Wait(_)) {
                    break;
                }
                let tag = batch.records;
                match (&held.content, decision) {
                    (Ok(command), decision) => {
                        let topic: &str = match decision {
                            Head::Hop(tier) => &self.topics[tier],
                            Head::Due | Head::Wait(_) => &commands,
                        };
                        self.producer.send(Record {
                            topic,
                            partition: None,
                            key: Some(command.subscriber.as_bytes()),
                            value: Some(&command.body),
                            headers: command_headers(&command.envelope()),
                            tag,
                        })?;
                        batch.tally(command, decision);
                        let carried = command.traceparent.as_deref();
                        if let Some(span) = self.context.tracer.of_command(carried) {
                            let at = span::Place {
                                topic: &self.topics[place.0],
                                partition: place.1,
                                offset: held.offset.0,
                            };
                            let waited = now.since(held.appended);
                            let facts = span::release(command, at, topic, waited);
                            batch.spans.add(span, facts);
                        }
                    }
                    (Err(record), _) => {
                        tracing::error!(
                            topic = record.topic,
                            partition = record.partition,
                            offset = record.offset.0,
                            "not a command: {}",
                            record.error
                        );
                        let (key, value) = (record.key.as_deref(), record.value.as_deref());
                        self.producer.send(Record {
                            topic: &invalid,
                            partition: None,
                            key,
                            value,
                            headers: invalid_headers(record),
                            tag,
                        })?;
                    }
                }
                batch.records += 1;
                batch.bytes += held.weight();
                moved += 1;
                behind = Some(held.offset.next());
            }
            if let Some(position) = behind {
                batch.moved.push((place, moved));
                batch.commits.push(Commit {
                    at: at(&self.topics, place),
                    position,
                    metadata: String::new(),
                });
            }
        }
        Ok(())
    }

    fn finish(&mut self, member: &Member, batch: &Batch) -> Result<(), BatchError> {
        self.producer
            .finish(&batch.commits, member.generation().as_deref())?;
        match self.context.settings.guarantee {
            Guarantee::ExactlyOnce => Ok(()),
            Guarantee::AtLeastOnce => member.commit(&batch.commits).map_err(BatchError::Aborted),
        }
    }

    fn forget(&mut self, batch: &Batch) {
        for (place, moved) in &batch.moved {
            let Some(buffer) = self.buffers.get_mut(place) else {
                continue;
            };
            for held in buffer.queue.drain(..*moved) {
                buffer.bytes -= held.weight();
            }
        }
    }
}

fn at(topics: &[Arc<str>], (tier, partition): Place) -> TopicPartition {
    TopicPartition {
        topic: Arc::clone(&topics[tier]),
        partition,
    }
}
