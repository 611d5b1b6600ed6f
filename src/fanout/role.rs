//! Fan-out: one command per event and matching subscription, all of them or none.
//!
//! Events are transformed as they are polled, into the open batch of a [`Pipeline`]; the batch ends when the
//! input pauses (so a lone event does not wait) or when it is large. Its commands, what was unreadable, and the
//! positions of its events become visible in one transaction (**Complete**). After any failure, and when
//! partitions move while a batch is open, batches that are not committed are given up and their events read again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;

use super::metrics::{EventResult, FanoutMetrics};
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::client::RECORD_OVERHEAD;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::member::{Commit, Member, Polled, TopicPartition};
use crate::edge::kafka::pipeline::Pipeline;
use crate::edge::kafka::producer::{BatchError, Record};
use crate::edge::kafka::record::{command_headers, invalid_headers, invalid_record};
use crate::edge::otlp::{Open, Together};
use crate::model::command::{Cause, ContentType, Envelope};
use crate::model::event;
use crate::model::event::Format;
use crate::model::event::{Event, RawEvent};
use crate::model::span;
use crate::model::subscription::{Order, Subscription};
use crate::model::throttle::Throttle;
use crate::model::units::{EpochMs, Offset, Position};
use crate::runtime::context::RoleContext;
use crate::runtime::metrics::{Metrics, TransactionalRole};

/// Events in a batch, at most.
const BATCH_EVENTS: usize = 1000;
/// Bytes of commands in a batch, at most, except that an event's commands stay together.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How long a batch stays open under a steady load.
const BATCH_TIME: Duration = Duration::from_millis(50);
/// Producers used in turn: one produces while another commits, and one is at hand after a slow commit.
const PRODUCERS: usize = 3;
/// How often the ends of transactions that the client has passed are committed too.
const PASSED_EVERY: Duration = Duration::from_secs(1);
/// How long one wait for events lasts.
const WAIT: Duration = Duration::from_millis(100);

/// Runs until told to stop.
///
/// # Errors
/// [`Failure`] when the role cannot go on.
pub fn run(context: &RoleContext, metrics: &FanoutMetrics) -> Result<(), Failure> {
    let settings = &context.settings;
    if !context.wait_until_possible("fanout", &needed_topics(settings))? {
        return Ok(());
    }
    let common = context.metrics.clone();
    let observe = move |committed, took| {
        common.transaction(TransactionalRole::Fanout, committed, took);
    };
    let pipeline = Pipeline::new(settings, &context.pulse(), "fanout", PRODUCERS, observe)?;
    let group = format!("{}fanout", settings.group_prefix);
    let topics: Vec<&str> = settings.topics.events.iter().map(String::as_str).collect();
    let member = Member::join(settings, context.pulse(), "fanout", &group, &topics, &[])?;
    let mut fanout = Fanout {
        context,
        metrics,
        pipeline,
        work: Work::new(settings),
        owned: HashSet::new(),
        passed: HashMap::new(),
        next_passed: clock::instant(),
    };
    context.ready();
    let ended = fanout.go(&member);
    context.draining();
    let ended = ended.and_then(|()| fanout.finish(&member));
    drop(fanout);
    member.leave(ended)
}

fn needed_topics(settings: &Settings) -> Vec<String> {
    let topics = &settings.topics;
    let mut needed = topics.events.clone();
    needed.extend([
        topics.commands(),
        topics.subscriptions(),
        topics.invalid_events(),
    ]);
    needed
}

/// What a batch is counted as when it is visible.
#[derive(Default)]
struct Tally {
    results: [u64; 3],
    commands: u64,
}

impl Tally {
    const RESULTS: [EventResult; 3] = [
        EventResult::FannedOut,
        EventResult::Unmatched,
        EventResult::Invalid,
    ];

    fn add(&mut self, result: EventResult) {
        for (known, count) in Self::RESULTS.iter().zip(&mut self.results) {
            *count += u64::from(*known == result);
        }
    }

    fn count(&self, metrics: &FanoutMetrics, common: &Metrics) {
        for (result, count) in Self::RESULTS.into_iter().zip(self.results) {
            metrics.events(result).inc_by(count);
        }
        common.commands(Cause::New).inc_by(self.commands);
    }
}

/// What is in the open batch.
#[derive(Default)]
struct Batch {
    tally: Tally,
    events: usize,
    bytes: usize,
    /// Behind the last event of each partition.
    positions: HashMap<TopicPartition, Position>,
    began: Option<Instant>,
    /// Of the events that are traced.
    spans: Together,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.events >= BATCH_EVENTS
            || self.bytes >= BATCH_BYTES
            || self
                .began
                .is_some_and(|began| clock::instant() - began >= BATCH_TIME)
    }
}

/// Where recent events came from, by the number that their records carry as a tag.
#[derive(Default)]
struct Origins {
    first: usize,
    recent: VecDeque<(TopicPartition, Offset)>,
}

impl Origins {
    /// More than all batches that can be under way hold together.
    const KEPT: usize = BATCH_EVENTS * (PRODUCERS + 2);

    fn add(&mut self, at: TopicPartition, offset: Offset) -> usize {
        if self.recent.len() == Self::KEPT {
            self.recent.pop_front();
            self.first += 1;
        }
        self.recent.push_back((at, offset));
        self.first + self.recent.len() - 1
    }

    fn of(&self, tag: usize) -> Option<&(TopicPartition, Offset)> {
        self.recent.get(tag.checked_sub(self.first)?)
    }
}

/// The open batch, and what making its records needs.
struct Work {
    batch: Batch,
    origins: Origins,
    /// How many events are still to be written one by one, because one of them has a record that the broker refuses
    /// for its size: it refuses all records that it gets together with that one.
    suspects: usize,
    /// Events of which the broker refused a record for its size: they are invalid.
    oversized: HashSet<(TopicPartition, Offset)>,
    found: Vec<Arc<Subscription>>,
    /// Invalid events in the log.
    told: Throttle,
    topics: HashMap<String, Arc<str>>,
    commands: String,
    invalid: String,
    max_event_bytes: usize,
}

impl Work {
    fn new(settings: &Settings) -> Self {
        Self {
            batch: Batch::default(),
            origins: Origins::default(),
            suspects: 0,
            oversized: HashSet::new(),
            found: Vec::new(),
            told: Throttle::new(Duration::from_secs(1)),
            topics: settings
                .topics
                .events
                .iter()
                .map(|topic| (topic.clone(), Arc::from(topic.as_str())))
                .collect(),
            commands: settings.topics.commands(),
            invalid: settings.topics.invalid_events(),
            max_event_bytes: settings.max_event_bytes,
        }
    }

    fn place(&mut self, message: &BorrowedMessage<'_>) -> TopicPartition {
        if !self.topics.contains_key(message.topic()) {
            self.topics
                .insert(message.topic().to_owned(), Arc::from(message.topic()));
        }
        let topic = &self.topics[message.topic()];
        TopicPartition {
            topic: Arc::clone(topic),
            partition: message.partition(),
        }
    }
}

struct Fanout<'a> {
    context: &'a RoleContext,
    metrics: &'a FanoutMetrics,
    pipeline: Pipeline,
    work: Work,
    owned: HashSet<TopicPartition>,
    /// Positions that were committed although there is no record before them: see [`Member::passed`].
    passed: HashMap<TopicPartition, Position>,
    /// When to look for more of them.
    next_passed: Instant,
}

impl Fanout<'_> {
    fn go(&mut self, member: &Member) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.context.beat();
            let done = self.turn(member);
            self.mend(member, done)?;
        }
        Ok(())
    }

    /// Ends what is open, and leaves nothing under way.
    fn finish(&mut self, member: &Member) -> Result<(), Failure> {
        let done = self.end_batch(member).and_then(|()| self.pipeline.settle());
        if let Err(error) = done {
            // What is not committed will be done by the next owner.
            tracing::info!("the last batch is given up: {error}");
            self.pipeline.recover()?;
        }
        Ok(())
    }

    fn turn(&mut self, member: &Member) -> Result<(), BatchError> {
        self.pipeline.check()?;
        // While a batch is open, an empty queue ends it; then there is time to wait.
        let wait = if self.work.batch.began.is_some() {
            Duration::ZERO
        } else {
            WAIT
        };
        match member.poll(wait).map_err(BatchError::Failed)? {
            Polled::Message(message) => {
                self.take(&message)?;
                if self.work.suspects > 0 || self.work.batch.is_full() {
                    self.end_batch(member)
                } else {
                    Ok(())
                }
            }
            Polled::Idle => self.end_batch(member),
            Polled::Gap(gap) => {
                self.context.metrics.lost_offsets(&gap.at.topic, gap.lost());
                Ok(())
            }
            Polled::Assigned(partitions) => self.assigned(member, &partitions),
            Polled::Revoked { partitions, lost } => self.revoked(member, &partitions, lost),
        }
    }

    /// Ends the open batch, with the positions of its events. At rest, where nothing else is to be committed, the positions
    /// behind the ends of transactions are: else the group would seem to be behind for as long as no event comes.
    fn end_batch(&mut self, member: &Member) -> Result<(), BatchError> {
        let passed = self.passed(member)?;
        if self.work.batch.began.is_none() && passed.is_empty() {
            return Ok(());
        }
        // All that the client has given is in this batch or in one before it, and commits stay in order.
        self.work.batch.positions.extend(passed);
        let batch = std::mem::take(&mut self.work.batch);
        let commits: Vec<Commit> = batch
            .positions
            .into_iter()
            .map(|(at, position)| Commit {
                at,
                position,
                metadata: String::new(),
            })
            .collect();
        let (metrics, common) = (self.metrics.clone(), self.context.metrics.clone());
        let committed = Box::new(move || {
            batch.tally.count(&metrics, &common);
            batch.spans.end();
        });
        match self.context.settings.guarantee {
            Guarantee::ExactlyOnce => {
                self.pipeline
                    .commit(commits, member.generation(), committed)?;
                if self.work.suspects > 0 {
                    self.work.suspects -= 1;
                    self.pipeline.settle()?;
                }
                Ok(())
            }
            Guarantee::AtLeastOnce => {
                self.pipeline.commit(Vec::new(), None, committed)?;
                self.pipeline.settle()?;
                member.commit(&commits).map_err(BatchError::Aborted)
            }
        }
    }

    /// What is news of [`Member::passed`], once in [`PASSED_EVERY`].
    fn passed(&mut self, member: &Member) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        let now = clock::instant();
        if now < self.next_passed {
            return Ok(Vec::new());
        }
        self.next_passed = now + PASSED_EVERY;
        let mut passed = member.passed()?;
        passed
            .retain(|(at, position)| self.passed.insert(at.clone(), *position) != Some(*position));
        Ok(passed)
    }

    fn assigned(
        &mut self,
        member: &Member,
        partitions: &[TopicPartition],
    ) -> Result<(), BatchError> {
        // Those that stay are read on; what is under way for them is of the former generation, and may be refused.
        let settled = self.end_batch(member).and_then(|()| self.pipeline.settle());
        self.mend(member, settled)?;
        member.take_committed(partitions)?;
        self.owned.extend(partitions.iter().cloned());
        log_partitions("partitions assigned", partitions);
        Ok(())
    }

    fn revoked(
        &mut self,
        member: &Member,
        partitions: &[TopicPartition],
        lost: bool,
    ) -> Result<(), BatchError> {
        log_partitions(
            if lost {
                "partitions lost"
            } else {
                "partitions revoked"
            },
            partitions,
        );
        for at in partitions {
            self.owned.remove(at);
        }
        if lost {
            self.start_again(member, &"partitions were lost")?;
        } else {
            let settled = self.end_batch(member).and_then(|()| self.pipeline.settle());
            self.mend(member, settled)?;
        }
        self.work
            .oversized
            .retain(|(at, _)| !partitions.contains(at));
        self.passed.retain(|at, _| !partitions.contains(at));
        Ok(member.give_up(partitions)?)
    }

    /// After a failure: gives up what is not committed, and reads on from what is.
    fn mend(&mut self, member: &Member, done: Result<(), BatchError>) -> Result<(), Failure> {
        let error = match done {
            Ok(()) => return Ok(()),
            Err(BatchError::Failed(failure)) => return Err(failure),
            Err(error) => error,
        };
        if let BatchError::TooLarge { tag } = error {
            self.note_oversized(tag)?;
        }
        self.start_again(member, &error)
    }

    fn start_again(
        &mut self,
        member: &Member,
        reason: &dyn std::fmt::Display,
    ) -> Result<(), Failure> {
        tracing::warn!("reading again from the committed positions: {reason}");
        self.work.batch = Batch::default();
        self.passed.clear();
        self.pipeline.recover()?;
        let owned: Vec<_> = self.owned.iter().cloned().collect();
        member.rewind(&owned)
    }

    /// Of a batch of many events, any may be the one whose record is too large; of a batch of one, it is that one.
    fn note_oversized(&mut self, tag: usize) -> Result<(), Failure> {
        if self.work.suspects == 0 {
            self.work.suspects = Origins::KEPT;
            return Ok(());
        }
        self.work.suspects = 0;
        let Some(origin) = self.work.origins.of(tag).cloned() else {
            return Err(Failure::Internal(
                "the broker refused a record whose event is not known".to_owned(),
            ));
        };
        let (at, offset) = origin.clone();
        if self.work.oversized.insert(origin) {
            return Ok(());
        }
        Err(Failure::Internal(format!(
            "the event at {} {} {offset} is too large even for {}: raise max.message.bytes there (`hookstream topics check` tells)",
            at.topic, at.partition, self.work.invalid
        )))
    }

    /// Adds an event's records to the open batch.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), BatchError> {
        let at = self.work.place(message);
        let offset = Offset(message.offset());
        let tag = self.work.origins.add(at.clone(), offset);
        self.work.batch.began.get_or_insert_with(clock::instant);
        self.work.batch.events += 1;
        self.work.batch.positions.insert(at.clone(), offset.next());
        let oversized =
            !self.work.oversized.is_empty() && self.work.oversized.contains(&(at, offset));
        let headers: Vec<(&str, &[u8])> = crate::edge::kafka::record::each_header(message)
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect();
        let raw = RawEvent {
            topic: message.topic(),
            payload: message.payload(),
            headers: &headers,
            timestamp: EpochMs(message.timestamp().to_millis().unwrap_or_default()),
        };
        let result = match event::read(&raw, self.work.max_event_bytes) {
            Ok(_) if oversized => {
                let error = "a command for this event would be larger than the broker's limit (max.message.bytes of the commands topic)";
                self.refuse(message, error.to_owned(), tag)?
            }
            Ok(event) => self.fan_out(&event, tag)?,
            Err(error) => self.refuse(message, error.to_string(), tag)?,
        };
        self.work.batch.tally.add(result);
        Ok(())
    }

    fn refuse(
        &mut self,
        message: &BorrowedMessage<'_>,
        error: String,
        tag: usize,
    ) -> Result<EventResult, BatchError> {
        let record = invalid_record(message, error);
        // An event topic that holds something else altogether must not flood the log.
        if let Some(untold) = self.work.told.pass(clock::instant()) {
            tracing::warn!(
                topic = record.topic,
                partition = record.partition,
                offset = record.offset.0,
                untold,
                "invalid event: {}",
                record.error,
            );
        }
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        self.work.batch.bytes += record.weight();
        let headers = invalid_headers(&record);
        self.pipeline.send(Record {
            topic: &self.work.invalid,
            partition: None,
            key,
            value,
            headers,
            tag,
        })?;
        Ok(EventResult::Invalid)
    }

    fn fan_out(&mut self, event: &Event<'_>, tag: usize) -> Result<EventResult, BatchError> {
        let mut found = std::mem::take(&mut self.work.found);
        self.context.table.index().matching(event, &mut found);
        let span = self.context.tracer.of_event(event.traceparent());
        let own = span.as_ref().map(Open::traceparent);
        let traceparent = own.as_deref().or(event.traceparent());
        let written = self.write_all(event, &found, traceparent, tag);
        if let (Some(span), Some((at, offset))) = (span, self.work.origins.of(tag)) {
            let at = span::Place {
                topic: &at.topic,
                partition: at.partition,
                offset: offset.0,
            };
            let facts = span::fanout(event, at, found.len());
            self.work.batch.spans.add(span, facts);
        }
        let result = if found.is_empty() {
            EventResult::Unmatched
        } else {
            EventResult::FannedOut
        };
        found.clear();
        self.work.found = found;
        written.map(|()| result)
    }

    fn write_all(
        &mut self,
        event: &Event<'_>,
        found: &[Arc<Subscription>],
        traceparent: Option<&str>,
        tag: usize,
    ) -> Result<(), BatchError> {
        let enqueued = clock::now();
        let mut bodies: [Option<Vec<u8>>; 2] = [None, None];
        if found.iter().any(|one| one.order != Order::None) {
            self.pipeline.keep_order();
        }
        for subscription in found {
            let (slot, content_type) = match subscription.format {
                Format::Standard => (0, ContentType::Json),
                Format::CloudEvents => (1, ContentType::CloudEvents),
            };
            let body = bodies[slot].get_or_insert_with(|| event.body(subscription.format));
            if body.len() > self.work.max_event_bytes + RECORD_OVERHEAD / 2 {
                return Err(BatchError::TooLarge { tag });
            }
            let webhook_id = event::webhook_id(event.source(), event.id(), &subscription.id);
            let envelope = Envelope {
                webhook_id: &webhook_id,
                subscription: &subscription.id,
                event_id: event.id(),
                event_type: event.event_type(),
                event_time: event.time(),
                subject: event.subject(),
                content_type,
                attempt: 0,
                due: None,
                enqueued,
                cause: Cause::New,
                first_failure: None,
                sequence: None,
                cluster: None,
                traceparent,
            };
            self.work.batch.bytes += body.len();
            self.pipeline.send(Record {
                topic: &self.work.commands,
                partition: None,
                key: Some(subscription.subscriber.as_bytes()),
                value: Some(body),
                headers: command_headers(&envelope),
                tag,
            })?;
            self.work.batch.tally.commands += 1;
        }
        Ok(())
    }
}

fn log_partitions(what: &str, partitions: &[TopicPartition]) {
    if !partitions.is_empty() {
        let list: Vec<String> = partitions
            .iter()
            .map(|at| format!("{} {}", at.topic, at.partition))
            .collect();
        tracing::info!("{what}: {}", list.join(", "));
    }
}
