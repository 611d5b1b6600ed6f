//! The shell of fan-out: polls events, and produces and commits what [`Batch`] decides, over a [`Pipeline`].
//!
//! The batch ends when the input pauses (so that a lone event does not wait) or when it is large. After any failure,
//! and when partitions move while a batch is open, batches that are not committed are given up and their events read
//! again.

mod schema_waits;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::batch::{Batch, Counts, Limits, Next, TooLarge};
use super::blocked::{self, OwnedPartitions};
use super::history::EventPartition;
use super::metrics::{EventResult, FanoutMetrics};
use super::schemas::{Needs, Schemas};
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::client::RECORD_OVERHEAD;
use crate::edge::kafka::record::{
    command_headers, each_header, invalid_record, log_set_aside, send_invalid,
};
use crate::edge::otlp::{Open, Together};
use crate::edge::pipeline::Pipeline;
use crate::edge::port::failure::{BatchError, Failure};
use crate::edge::port::records::{Commit, Committed, Record, RecordView, TopicPartition};
use crate::edge::port::{Member as _, Polled, Port};
use crate::model::command::Cause;
use crate::model::event::{Event, Mapping, RawEvent, record_time};
use crate::model::span;
use crate::model::subscription::Subscription;
use crate::model::throttle::Throttle;
use crate::model::units::{Offset, Position};
use crate::runtime::context::RoleContext;
use crate::runtime::metrics::{Metrics, TransactionalRole};

/// Producers used in turn: one produces while another commits, and one is at hand after a slow commit.
const PRODUCERS: usize = 3;
/// How long one wait for events lasts.
const WAIT: Duration = Duration::from_millis(100);

/// Room in a command's record for the subscription's names and for what is of a fixed size, bytes.
const NAMES: usize = 16 * 1024;

/// Runs until told to stop.
///
/// # Errors
/// [`Failure`] when the role cannot continue.
pub async fn run<P: Port>(
    port: &P,
    context: &RoleContext,
    metrics: &FanoutMetrics,
) -> Result<(), Failure> {
    let settings = &context.settings;
    if !context
        .wait_until_possible(port, "fanout", &needed_topics(settings))
        .await?
    {
        return Ok(());
    }
    let common = context.metrics.clone();
    let observe = move |committed, took| {
        common.transaction(TransactionalRole::Fanout, committed, took);
    };
    let pipeline = Pipeline::new(
        port,
        settings,
        &context.keep_waiting(),
        "fanout",
        PRODUCERS,
        observe,
    )
    .await?;
    let group = format!("{}fanout", settings.group_prefix);
    let topics: Vec<&str> = settings.topics.events.iter().map(String::as_str).collect();
    let keep_waiting = context.keep_waiting();
    let member = port
        .join(settings, keep_waiting, "fanout", &group, &topics, &[])
        .await?;
    let owned = OwnedPartitions::default();
    let watch = blocked::watch(port, settings, metrics, &owned)?;
    let mut fanout = Fanout {
        context,
        metrics,
        pipeline,
        batch: Batch::new(limits(settings), clock::instant()),
        schemas: Schemas::start(settings, metrics, clock::instant())?,
        committed: Arc::default(),
        spans: Together::default(),
        matching: Vec::new(),
        invalid_log: Throttle::new(Duration::from_secs(1)),
        events: EventTopics::new(settings),
        commands: settings.topics.commands(),
        invalid: settings.topics.invalid_events(),
        owned,
    };
    context.ready();
    let ended = fanout.run(&member).await;
    context.draining();
    let ended = match ended {
        Ok(()) => fanout.finish(&member).await,
        failed => failed,
    };
    fanout.pipeline.end().await;
    let ended = member.leave(ended).await;
    watch.end(port).await;
    ended
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

fn limits(settings: &Settings) -> Limits {
    Limits {
        events: 1000,
        bytes: 4 * 1024 * 1024,
        time: Duration::from_millis(50),
        event_bytes: settings.max_event_bytes,
        command_bytes: settings.max_event_bytes + RECORD_OVERHEAD - NAMES,
        batches: PRODUCERS + 2,
    }
}

/// The event topics, by number.
struct EventTopics {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, usize>,
    /// By number.
    mappings: Vec<Option<Mapping>>,
}

impl EventTopics {
    fn new(settings: &Settings) -> Self {
        let mut all = Self {
            names: Vec::new(),
            numbers: HashMap::new(),
            mappings: Vec::new(),
        };
        for topic in &settings.topics.events {
            all.number(topic);
            let mapping = settings.event_mappings.get(topic);
            all.mappings.push(mapping.cloned());
        }
        all
    }

    fn mapping(&self, at: EventPartition) -> Option<&Mapping> {
        self.mappings.get(at.topic)?.as_ref()
    }

    fn number(&mut self, topic: &str) -> usize {
        if let Some(&number) = self.numbers.get(topic) {
            return number;
        }
        let name: Arc<str> = Arc::from(topic);
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, self.names.len() - 1);
        self.names.len() - 1
    }

    fn event_partition(&mut self, topic: &str, partition: i32) -> EventPartition {
        EventPartition {
            topic: self.number(topic),
            partition,
        }
    }

    fn event_partitions(&mut self, partitions: &[TopicPartition]) -> Vec<EventPartition> {
        partitions
            .iter()
            .map(|at| self.event_partition(&at.topic, at.partition))
            .collect()
    }

    fn topic_partition(&self, at: EventPartition) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.names[at.topic]),
            partition: at.partition,
        }
    }
}

struct Fanout<'a, P: Port> {
    context: &'a RoleContext,
    metrics: &'a FanoutMetrics,
    pipeline: Pipeline<P>,
    batch: Batch,
    schemas: Schemas,
    /// Batches that were committed.
    committed: Arc<AtomicU64>,
    /// Of the traced events in the open batch.
    spans: Together,
    /// The subscriptions that match an event; empty between two events.
    matching: Vec<Arc<Subscription>>,
    invalid_log: Throttle,
    events: EventTopics,
    commands: String,
    invalid: String,
    /// For the task that looks for open transactions.
    owned: OwnedPartitions,
}

impl<P: Port> Fanout<'_, P> {
    async fn run(&mut self, member: &P::Member) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.context.heartbeat();
            let done = self.turn(member).await;
            self.recover(member, done).await?;
        }
        Ok(())
    }

    /// Ends the open batch, and waits until no batch is under way.
    async fn finish(&mut self, member: &P::Member) -> Result<(), Failure> {
        if let Err(error) = self.settle(member).await {
            // The next owner reads again what is not committed.
            tracing::info!("last batch not committed: {error}");
            self.pipeline.recover().await?;
        }
        Ok(())
    }

    async fn turn(&mut self, member: &P::Member) -> Result<(), BatchError> {
        self.pipeline.check()?;
        self.read_held(member).await?;
        let wait = if self.batch.is_open() {
            Duration::ZERO
        } else {
            WAIT
        };
        match member.poll(wait).await.map_err(BatchError::Failed)? {
            Polled::Message(message) => self.message(member, &message).await,
            Polled::Idle => self.end_batch(member).await,
            Polled::Gap(gap) => {
                self.context.metrics.lost_offsets(&gap.at.topic, gap.lost());
                Ok(())
            }
            Polled::Assigned(committed) => self.assigned(member, &committed).await,
            Polled::Revoked { partitions, lost } => self.revoked(member, &partitions, lost).await,
        }
    }

    async fn message(
        &mut self,
        member: &P::Member,
        message: &impl RecordView,
    ) -> Result<(), BatchError> {
        let at = self
            .events
            .event_partition(message.topic(), message.partition());
        if self.batch.is_held(at) {
            return Ok(());
        }
        let offset = Offset(message.offset());
        let needs = self.schemas.needs(message);
        if let Needs::Later(schema) = needs {
            return self.wait_for_schema(member, at, offset, schema).await;
        }
        if self.batch.is_suspect(at, offset) {
            self.settle(member).await?;
        }
        let now = clock::instant();
        let tag = self.batch.take(at, offset, now);
        self.write(message, at, tag, &needs).await?;
        if self.batch.is_full(now) {
            self.end_batch(member).await
        } else {
            Ok(())
        }
    }

    /// Reads partitions again that were held because of an event that failed alone, or for a schema.
    async fn read_held(&mut self, member: &P::Member) -> Result<(), Failure> {
        let mut due = self.batch.due(clock::instant());
        due.extend(self.schemas_due());
        let due: Vec<_> = due
            .into_iter()
            .map(|at| self.events.topic_partition(at))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        member.resume(&due)?;
        member.rewind(&due).await
    }

    async fn settle(&mut self, member: &P::Member) -> Result<(), BatchError> {
        self.end_batch(member).await?;
        self.pipeline.settle().await
    }

    /// Ends the open batch, and commits it with the positions of its events.
    async fn end_batch(&mut self, member: &P::Member) -> Result<(), BatchError> {
        let passed = self.passed(member)?;
        let Some(ended) = self.batch.end(passed.into_iter()) else {
            return Ok(());
        };
        let commits: Vec<Commit> = ended
            .positions
            .iter()
            .map(|(&at, &position)| Commit {
                at: self.events.topic_partition(at),
                position,
                metadata: String::new(),
            })
            .collect();
        let (metrics, common) = (self.metrics.clone(), self.context.metrics.clone());
        let (counts, set_aside) = (ended.counts, ended.set_aside);
        let (spans, batches) = (std::mem::take(&mut self.spans), Arc::clone(&self.committed));
        let committed = Box::new(move || {
            batches.fetch_add(1, Ordering::Relaxed);
            count(counts, &set_aside, &metrics, &common);
            spans.end();
        });
        match self.context.settings.guarantee {
            Guarantee::ExactlyOnce => {
                self.pipeline
                    .commit(commits, member.generation(), committed)
                    .await?;
                if ended.alone {
                    self.pipeline.settle().await?;
                }
                Ok(())
            }
            Guarantee::AtLeastOnce => {
                self.pipeline.commit(Vec::new(), None, committed).await?;
                self.pipeline.settle().await?;
                let done = member.commit(&commits).await;
                done.map_err(BatchError::Aborted)
            }
        }
    }

    /// The positions that [`Member::passed`] returns, if it is time to ask for them.
    fn passed(&mut self, member: &P::Member) -> Result<Vec<(EventPartition, Position)>, Failure> {
        if !self.batch.asks_for_passed(clock::instant()) {
            return Ok(Vec::new());
        }
        let passed = member.passed()?.into_iter();
        let passed = passed.map(|(at, position)| {
            (
                self.events.event_partition(&at.topic, at.partition),
                position,
            )
        });
        Ok(passed.collect())
    }

    async fn assigned(
        &mut self,
        member: &P::Member,
        committed: &[Committed],
    ) -> Result<(), BatchError> {
        // Partitions that stay are read on. Their batches under way are of the former generation, and may be refused.
        let settled = self.settle(member).await;
        self.recover(member, settled).await?;
        member.take(committed)?;
        let partitions: Vec<_> = committed.iter().map(|found| found.at.clone()).collect();
        let taken = self.events.event_partitions(&partitions);
        self.batch.assigned(taken.into_iter());
        log_partitions("partitions assigned", &partitions);
        self.note_owned();
        Ok(())
    }

    async fn revoked(
        &mut self,
        member: &P::Member,
        partitions: &[TopicPartition],
        lost: bool,
    ) -> Result<(), BatchError> {
        let what = if lost {
            "partitions lost"
        } else {
            "partitions revoked"
        };
        log_partitions(what, partitions);
        let given_up = self.events.event_partitions(partitions);
        self.batch.revoking(&given_up);
        if lost {
            self.batch.give_up();
            self.read_again(member, &what).await?;
        } else {
            let settled = self.settle(member).await;
            self.recover(member, settled).await?;
        }
        for &at in &given_up {
            self.no_longer_waits(at);
        }
        self.batch.revoked(&given_up);
        self.note_owned();
        Ok(member.give_up(partitions)?)
    }

    fn note_owned(&self) {
        let owned = self.batch.owned();
        let owned = owned.map(|at| self.events.topic_partition(at)).collect();
        *self.owned.lock().unwrap_or_else(PoisonError::into_inner) = owned;
    }

    /// After a failure: gives up all batches that are not committed, and reads again from the committed positions.
    async fn recover(
        &mut self,
        member: &P::Member,
        done: Result<(), BatchError>,
    ) -> Result<(), Failure> {
        let Err(error) = done else { return Ok(()) };
        let committed = self.committed.load(Ordering::Relaxed);
        match self.batch.failed(error.end(), committed, clock::instant()) {
            Next::ReadAgain => self.read_again(member, &error).await,
            Next::Hold { at, offset, wait } => {
                let at = self.events.topic_partition(at);
                self.metrics.held(&at.topic).inc();
                tracing::error!(
                    topic = %at.topic,
                    partition = at.partition,
                    offset = offset.0,
                    retry_in = ?wait,
                    "the commands of this event could not be committed, although it was tried alone; its partition waits, the others go on: {error}",
                );
                self.read_again(member, &error).await?;
                member.pause(&[at])
            }
            Next::Stop => Err(match error {
                BatchError::Failed(failure) => failure,
                error => Failure::Internal(error.to_string()),
            }),
        }
    }

    async fn read_again(
        &mut self,
        member: &P::Member,
        reason: &dyn std::fmt::Display,
    ) -> Result<(), Failure> {
        tracing::warn!("reading again from the committed positions: {reason}");
        self.spans = Together::default();
        self.pipeline.recover().await?;
        let owned: Vec<_> = self
            .batch
            .owned()
            .map(|at| self.events.topic_partition(at))
            .collect();
        member.rewind(&owned).await
    }

    /// Writes an event's records.
    async fn write(
        &mut self,
        message: &impl RecordView,
        at: EventPartition,
        tag: usize,
        needs: &Needs,
    ) -> Result<(), BatchError> {
        let mut headers: Vec<(&str, &[u8])> = each_header(message)
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let json = match self.schemas.decode(needs, message, &mut headers) {
            Ok(json) => json,
            Err(error) => return self.set_aside(message, error, tag).await,
        };
        let (timestamp, replaced) = record_time(message.timestamp().map(|at| at.0), clock::now());
        let raw = RawEvent {
            topic: message.topic(),
            key: message.key(),
            payload: json.as_deref().or_else(|| message.payload()),
            headers: &headers,
            timestamp,
        };
        let mapping = self.events.mapping(at);
        if raw.is_skipped(mapping) {
            self.batch.skip_tombstone();
            return Ok(());
        }
        match self.batch.read(tag, &raw, mapping) {
            Ok(event) => {
                let value = message.payload().unwrap_or_default();
                self.batch.observe(&event, value, replaced);
                let mut matching = std::mem::take(&mut self.matching);
                self.context.table.index().matching(&event, &mut matching);
                let place = span::Place {
                    topic: message.topic(),
                    partition: message.partition(),
                    offset: message.offset(),
                };
                let written = self.fan_out(tag, &event, &matching, place).await;
                matching.clear();
                self.matching = matching;
                match written? {
                    Ok(()) => Ok(()),
                    Err(TooLarge) => self.set_aside(message, TOO_LARGE.to_owned(), tag).await,
                }
            }
            Err(error) => self.set_aside(message, error, tag).await,
        }
    }

    async fn set_aside(
        &mut self,
        message: &impl RecordView,
        error: String,
        tag: usize,
    ) -> Result<(), BatchError> {
        let mut record = invalid_record(message, error);
        record.extent = self.batch.extent(tag);
        send_invalid(&mut record, &self.invalid, tag, async |record| {
            self.pipeline.send(record).await
        })
        .await?;
        // An event topic that holds something else altogether must not flood the log.
        if let Some(suppressed) = self.invalid_log.pass(clock::instant()) {
            log_set_aside(&record, suppressed);
        }
        self.batch.set_aside(&record);
        Ok(())
    }

    async fn fan_out(
        &mut self,
        tag: usize,
        event: &Event<'_>,
        matching: &[Arc<Subscription>],
        at: span::Place<'_>,
    ) -> Result<Result<(), TooLarge>, BatchError> {
        let span = self.context.tracer.of_event(event.traceparent());
        let own = span.as_ref().map(Open::traceparent);
        let traceparent = own.as_deref().or(event.traceparent());
        let commands = match self.batch.fan_out(event, matching) {
            Ok(commands) => commands,
            Err(too_large) => return Ok(Err(too_large)),
        };
        if commands.keep_order() {
            self.pipeline.keep_order().await;
        }
        for command in commands.each(traceparent, clock::now()) {
            let record = Record {
                topic: &self.commands,
                partition: None,
                key: Some(command.subscriber().as_bytes()),
                value: Some(command.body),
                headers: command_headers(&command.envelope()),
                tag,
            };
            self.pipeline.send(record).await?;
        }
        if let Some(span) = span {
            let facts = span::fanout(event, at, matching.len());
            self.spans.add(span, facts);
        }
        Ok(Ok(()))
    }
}

const TOO_LARGE: &str = "a command for this event would be larger than --max-event-bytes allows";

fn count(
    counts: Counts,
    set_aside: &BTreeMap<String, u64>,
    metrics: &FanoutMetrics,
    common: &Metrics,
) {
    for (topic, count) in set_aside {
        common.set_aside(topic).inc_by(*count);
    }
    for (result, count) in [
        (EventResult::FannedOut, counts.fanned_out),
        (EventResult::Unmatched, counts.unmatched),
        (EventResult::Invalid, counts.invalid),
        (EventResult::Tombstone, counts.tombstones),
    ] {
        metrics.events(result).inc_by(count);
    }
    metrics
        .record_times_replaced()
        .inc_by(counts.times_replaced);
    metrics.attributes_left_out().inc_by(counts.left_out);
    metrics.webhook_id_collisions().inc_by(counts.collisions);
    common.commands(Cause::New).inc_by(counts.commands);
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
