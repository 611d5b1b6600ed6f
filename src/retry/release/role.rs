//! The shell of release: polls the tiers, and does what [`Machine`] decides.
//!
//! Each batch and the positions that it came from are one transaction (**One lineage**).

use std::sync::Arc;
use std::time::Duration;

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;

use super::machine::{
    Batch, Destination, Flow, HeldRecord, Limits, Machine, Next, Now, TierPartition,
};
use crate::config::Guarantee;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::member::{Commit, Member, Polled, TopicPartition};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::{
    Newer, command_headers, log_set_aside, read_command, send_invalid,
};
use crate::edge::otlp::Together;
use crate::model::command::{Cause, Command};
use crate::model::span;
use crate::model::throttle::Throttle;
use crate::model::transaction_end::TransactionEnd;
use crate::model::units::{EpochMs, Offset};
use crate::retry::metrics::{ReleaseMetrics, Released};
use crate::runtime::context::RoleContext;
use crate::runtime::metrics::TransactionalRole;

/// Records polled before anything else is looked at.
const TURN: usize = 512;

/// Runs until told to stop.
///
/// # Errors
/// [`Failure`] when the role cannot continue.
pub fn run(context: &RoleContext, metrics: &ReleaseMetrics) -> Result<(), Failure> {
    let settings = &context.settings;
    let tiers = settings.retry_topics();
    let mut needed = tiers.clone();
    needed.extend([settings.topics.commands(), settings.topics.invalid_events()]);
    if !context.wait_until_possible("release", &needed)? {
        return Ok(());
    }
    let producer = Producer::new(settings, &context.keep_waiting(), "release", 0)?;
    let group = format!("{}release", settings.group_prefix);
    let subscribed: Vec<&str> = tiers.iter().map(String::as_str).collect();
    // Small fetches: when a partition is paused, the client drops the records that it has fetched ahead.
    let extra = [
        ("fetch.message.max.bytes", "262144"),
        ("queued.max.messages.kbytes", "4096"),
    ];
    let member = Member::join(
        settings,
        context.keep_waiting(),
        "release",
        &group,
        &subscribed,
        &extra,
    )?;
    let mut release = Release {
        context,
        metrics,
        producer,
        machine: Machine::new(settings.tiers.clone(), Limits::default(), clock::instant()),
        topics: Topics {
            tiers: tiers.into_iter().map(Arc::from).collect(),
            commands: settings.topics.commands(),
            invalid: settings.topics.invalid_events(),
        },
        stopped_lines: Throttle::new(Duration::from_secs(1)),
        set_aside_lines: settings
            .tiers
            .delays()
            .iter()
            .map(|_| Throttle::new(Duration::from_secs(1)))
            .collect(),
    };
    context.ready();
    let ended = release.run(&member);
    context.draining();
    drop(release);
    member.leave(ended)
}

/// The names of the topics that release reads and writes.
struct Topics {
    /// By the tier's index.
    tiers: Vec<Arc<str>>,
    commands: String,
    invalid: String,
}

impl Topics {
    fn tier_partition(&self, topic: &str, partition: i32) -> Option<TierPartition> {
        let tier = self.tiers.iter().position(|name| &**name == topic)?;
        Some(TierPartition { tier, partition })
    }

    fn tier_partitions(
        &self,
        partitions: &[TopicPartition],
    ) -> impl Iterator<Item = TierPartition> {
        partitions
            .iter()
            .filter_map(|at| self.tier_partition(&at.topic, at.partition))
    }

    fn topic_partition(&self, at: TierPartition) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.tiers[at.tier]),
            partition: at.partition,
        }
    }
}

struct Release<'a> {
    context: &'a RoleContext,
    metrics: &'a ReleaseMetrics,
    producer: Producer,
    machine: Machine,
    topics: Topics,
    stopped_lines: Throttle,
    /// By the tier's index, so that each topic is named.
    set_aside_lines: Vec<Throttle>,
}

impl Release<'_> {
    fn run(&mut self, member: &Member) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.context.heartbeat();
            self.poll(member)?;
            self.count_stopped();
            for (at, change) in self.machine.flow() {
                let at = [self.topics.topic_partition(at)];
                match change {
                    Flow::Pause => member.pause(&at)?,
                    Flow::Resume => member.resume(&at)?,
                }
            }
            if let Some(batch) = self.machine.next_batch(now()) {
                self.move_batch(member, &batch)?;
            }
        }
        Ok(())
    }

    fn poll(&mut self, member: &Member) -> Result<(), Failure> {
        let mut wait = self.machine.wait(now());
        for _ in 0..TURN {
            match member.poll(wait)? {
                Polled::Message(message) => self.take(&message),
                Polled::Gap(gap) => {
                    let metrics = &self.context.metrics;
                    metrics.lost_offsets(&gap.at.topic, gap.lost());
                    let at = &gap.at;
                    if let Some(at) = self.topics.tier_partition(&at.topic, at.partition) {
                        self.machine.gap(at, gap.from, gap.to);
                    }
                    return Ok(());
                }
                Polled::Assigned(partitions) => {
                    member.take_committed(&partitions)?;
                    self.machine
                        .assigned(self.topics.tier_partitions(&partitions));
                    if !partitions.is_empty() {
                        tracing::info!(partitions = partitions.len(), "tier partitions assigned");
                    }
                    return Ok(());
                }
                Polled::Revoked { partitions, .. } => {
                    self.machine
                        .revoked(self.topics.tier_partitions(&partitions));
                    tracing::info!(partitions = partitions.len(), "tier partitions revoked");
                    return member.give_up(&partitions);
                }
                Polled::Idle => return Ok(()),
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let at = self
            .topics
            .tier_partition(message.topic(), message.partition());
        let Some(at) = at.filter(|&at| self.machine.takes(at)) else {
            return;
        };
        match read_command(message) {
            Ok(content) => {
                let record = HeldRecord {
                    offset: Offset(message.offset()),
                    appended: EpochMs(message.timestamp().to_millis().unwrap_or_default()),
                    content,
                };
                self.machine.take(at, record);
            }
            Err(Newer { version }) => {
                self.machine.stop(at);
                if let Some(suppressed) = self.stopped_lines.pass(clock::instant()) {
                    tracing::error!(
                        topic = message.topic(),
                        partition = message.partition(),
                        offset = message.offset(),
                        version,
                        metric = "hookstream_stopped_partitions",
                        suppressed,
                        "partition stopped: this record was written by a newer hookstream; upgrade every replica",
                    );
                }
            }
        }
    }

    fn count_stopped(&self) {
        for (tier, topic) in self.topics.tiers.iter().enumerate() {
            let stopped = i64::try_from(self.machine.stopped(tier)).unwrap_or(i64::MAX);
            self.context.metrics.stopped_partitions(topic).set(stopped);
        }
    }

    fn move_batch(&mut self, member: &Member, batch: &Batch) -> Result<(), Failure> {
        let started = clock::instant();
        let mut spans = Together::default();
        let result = self
            .write(batch, &mut spans)
            .and_then(|()| self.commit(member, batch));
        let ended = clock::instant();
        self.context.metrics.transaction(
            TransactionalRole::Release,
            result.is_ok(),
            ended - started,
        );
        let end = result
            .as_ref()
            .map_or_else(BatchError::end, |()| TransactionEnd::Committed);
        match (self.machine.ended(batch, end, ended), result) {
            (Next::ReadAgain(partitions), Err(error)) => {
                tracing::warn!("reading the tiers again from the committed positions: {error}");
                self.producer.renew()?;
                let partitions: Vec<_> = partitions
                    .into_iter()
                    .map(|at| self.topics.topic_partition(at))
                    .collect();
                member.rewind(&partitions)
            }
            (_, Err(BatchError::Failed(failure))) => Err(failure),
            (Next::WriteLess, Err(_)) => self.producer.renew(),
            (Next::SetAside(at), Err(error)) => {
                tracing::error!(
                    topic = %self.topics.tiers[at.tier],
                    partition = at.partition,
                    "a record cannot be moved, see `hookstream topics check`: {error}"
                );
                self.machine.set_aside(at, &self.topics.tiers[at.tier]);
                self.producer.renew()
            }
            (_, Err(error)) => Err(Failure::Internal(error.to_string())),
            (_, Ok(())) => {
                self.count(batch);
                spans.end();
                Ok(())
            }
        }
    }

    fn write(&mut self, batch: &Batch, spans: &mut Together) -> Result<(), BatchError> {
        for (tag, one) in self.machine.moves(batch).enumerate() {
            let (command, topic): (&Command, &str) = match one.to {
                Destination::Commands(command) => (command, &self.topics.commands),
                Destination::Tier(tier, command) => (command, &self.topics.tiers[tier]),
                Destination::Invalid(record) => {
                    let mut record = record.clone();
                    send_invalid(&mut record, &self.topics.invalid, tag, |record| {
                        self.producer.send(record)
                    })?;
                    if let Some(suppressed) =
                        self.set_aside_lines[one.from.tier].pass(clock::instant())
                    {
                        log_set_aside(&record, suppressed);
                    }
                    continue;
                }
            };
            self.producer.send(Record {
                topic,
                partition: None,
                key: Some(command.subscriber.as_bytes()),
                value: Some(&command.body),
                headers: command_headers(&command.envelope()),
                tag,
            })?;
            let carried = command.traceparent.as_deref();
            if let Some(span) = self.context.tracer.of_command(carried) {
                let at = span::Place {
                    topic: &self.topics.tiers[one.from.tier],
                    partition: one.from.partition,
                    offset: one.offset.0,
                };
                let waited = batch.now.since(one.appended);
                spans.add(span, span::release(command, at, topic, waited));
            }
        }
        Ok(())
    }

    fn commit(&mut self, member: &Member, batch: &Batch) -> Result<(), BatchError> {
        let commits: Vec<Commit> = batch
            .portions
            .iter()
            .map(|portion| Commit {
                at: self.topics.topic_partition(portion.from),
                position: portion.position,
                metadata: String::new(),
            })
            .collect();
        self.producer
            .finish(&commits, member.generation().as_deref())?;
        match self.context.settings.guarantee {
            Guarantee::ExactlyOnce => Ok(()),
            Guarantee::AtLeastOnce => member.commit(&commits).map_err(BatchError::Aborted),
        }
    }

    fn count(&self, batch: &Batch) {
        self.metrics.released(Released::Tier).inc_by(batch.hops);
        for (&tier, &count) in &batch.set_aside {
            let topic = &self.topics.tiers[tier];
            self.context.metrics.set_aside(topic).inc_by(count);
        }
        for (cause, count) in Cause::ALL.into_iter().zip(batch.released) {
            self.metrics.released(Released::Commands).inc_by(count);
            self.context.metrics.commands(cause).inc_by(count);
        }
    }
}

fn now() -> Now {
    Now {
        wall: clock::now(),
        steady: clock::instant(),
    }
}
