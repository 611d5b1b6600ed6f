//! Moves batches without waiting for partitions that refuse them: what [`Machine`](super::machine::Machine) decides, over
//! two producers.
//!
//! One producer moves all records but those for partitions that are known to fail; the other probes these. Neither keeps
//! the role's thread waiting: a batch is sent, and looked after between polls until it is acknowledged or refused.

use std::collections::BTreeSet;
use std::time::Duration;

use super::machine::{Batch, Destination, Next, Purpose, TierPartition};
use super::role::{Half, Release, UnderWay, Which, now};
use crate::config::Guarantee;
use crate::edge::clock;
use crate::edge::kafka::record::{command_headers, log_set_aside, send_invalid};
use crate::edge::otlp::Together;
use crate::edge::port::failure::{BatchError, ClientError, Failure, Refused};
use crate::edge::port::records::{Commit, Record};
use crate::edge::port::{Member as _, Port, Producer as _, WRITE_DEADLINE};
use crate::edge::writer::Ready;
use crate::model::command::{Cause, Command};
use crate::model::span;
use crate::model::transaction_end::TransactionEnd;
use crate::model::unwritable::Target;
use crate::retry::metrics::Released;
use crate::runtime::metrics::TransactionalRole;

/// How long to wait for the acknowledgement of a batch, which usually takes a few milliseconds. After that, polling goes
/// on.
const PATIENCE: Duration = Duration::from_millis(100);
/// Past this, a batch is given up whatever the client reports.
const LATE: Duration = WRITE_DEADLINE.saturating_mul(2);
const ROLE: TransactionalRole = TransactionalRole::Release;

impl<P: Port> Release<'_, P> {
    /// Sends the next batch, or looks after the one under way; finishes it when all of its records are acknowledged.
    pub(super) async fn move_due(
        &mut self,
        member: &P::Member,
        which: Which,
    ) -> Result<(), Failure> {
        let patience = match which {
            Which::Main => PATIENCE,
            Which::Probe => Duration::ZERO,
        };
        self.look_after(member, which, patience).await
    }

    async fn look_after(
        &mut self,
        member: &P::Member,
        which: Which,
        patience: Duration,
    ) -> Result<(), Failure> {
        let Some(mut under_way) = self.take_up(which)? else {
            return Ok(());
        };
        if !std::mem::replace(&mut under_way.sent, true)
            && let Err(refused) = self.send(which, &mut under_way).await
        {
            let (error, target) = *refused;
            return self.not_sent(which, &under_way.batch, error, target).await;
        }
        let now = clock::instant();
        let Some(producer) = self.half(which).writer.producer() else {
            self.machine.gave_up(&under_way.batch);
            return Ok(());
        };
        match producer.acknowledged_within(patience).await {
            Some(refused) if refused.is_empty() => self.finish(member, which, under_way).await,
            Some(refused) => self.refused(which, &under_way, &refused).await,
            None if now.saturating_duration_since(under_way.began) > LATE => {
                tracing::error!("records neither acknowledged nor refused, moving them again");
                self.give_up(which, &under_way.batch);
                Ok(())
            }
            None => {
                self.half(which).under_way = Some(under_way);
                Ok(())
            }
        }
    }

    fn half(&mut self, which: Which) -> &mut Half<P> {
        match which {
            Which::Main => &mut self.main,
            Which::Probe => &mut self.probe,
        }
    }

    /// The batch under way, or the next one, if the producer is ready for it.
    fn take_up(&mut self, which: Which) -> Result<Option<UnderWay>, Failure> {
        let new = |batch| UnderWay {
            batch,
            began: clock::instant(),
            spans: Together::default(),
            set_aside: Vec::new(),
            sent: false,
        };
        if which == Which::Probe && self.probe.under_way.is_none() {
            let Some(batch) = self.machine.next_probe(now()) else {
                self.probe.writer.close();
                return Ok(None);
            };
            self.probe.writer.close();
            self.probe
                .writer
                .open_probe(self.slots.of(probed(batch.purpose)));
            self.probe.under_way = Some(new(batch));
        }
        let stopping = self.context.stopping();
        let half = self.half(which);
        let is_ready = match half.writer.ready() {
            Ok(Ready::NotYet) => return Ok(None),
            Ok(Ready::Yes(_)) => true,
            Ok(Ready::No) => false,
            // Its transactional id is stuck: the partition does still not take the end of an earlier transaction.
            Err(failure) if which == Which::Probe || stopping => {
                tracing::debug!("no producer: {failure}");
                false
            }
            Err(failure) => return Err(failure),
        };
        let under_way = half.under_way.take();
        if is_ready {
            return Ok(under_way.or_else(|| self.machine.next_batch(now()).map(new)));
        }
        if let Some(under_way) = under_way {
            self.machine
                .refused(&under_way.batch, &BTreeSet::new(), clock::instant());
        }
        Ok(None)
    }

    /// A record of the batch was not taken by the client.
    async fn not_sent(
        &mut self,
        which: Which,
        batch: &Batch,
        error: BatchError,
        target: Target,
    ) -> Result<(), Failure> {
        match error {
            BatchError::Failed(failure) => Err(failure),
            BatchError::TooLarge { .. } => {
                self.too_large(batch, target);
                self.abandon(which);
                Ok(())
            }
            BatchError::Aborted(error) if error.is_of_partition() => {
                self.note_refused(batch, &BTreeSet::from([target]), &error)
                    .await;
                self.abandon(which);
                Ok(())
            }
            BatchError::Aborted(error) => {
                tracing::warn!("records were not moved: {error}; they are moved again");
                self.give_up(which, batch);
                Ok(())
            }
        }
    }

    /// Some records of a batch were refused.
    async fn refused(
        &mut self,
        which: Which,
        under_way: &UnderWay,
        refused: &[Refused],
    ) -> Result<(), Failure> {
        let now = clock::instant();
        let batch = &under_way.batch;
        let took = now - under_way.began;
        self.context.metrics.transaction(ROLE, false, took);
        let targets: Vec<Target> = {
            let each = self.machine.moves(batch);
            each.map(|one| self.machine.target(&one.to)).collect()
        };
        let of = |one: &Refused| {
            targets.get(one.tag).map(|target| Target {
                topic: target.topic,
                partition: one.partition,
            })
        };
        let is_large = |one: &&Refused| one.error.is_too_large();
        // When no broker is reachable, no partition is to blame.
        let away = self.port.outage(now);
        let reachable = away.is_none_or(|away| away < under_way.began);
        let blamed = refused
            .iter()
            .filter(|one| reachable && one.error.is_of_partition());
        let by: BTreeSet<Target> = blamed.clone().filter_map(of).collect();
        let first = blamed.clone().next().or(refused.first());
        let error = first.map_or_else(ClientError::canceled, |one| one.error.clone());
        match refused.iter().find(is_large).and_then(of) {
            Some(target) => self.too_large(batch, target),
            None if by.is_empty() => {
                tracing::warn!("records were not moved: {error}; they are moved again");
                self.machine.refused(batch, &by, now);
            }
            None => self.note_refused(batch, &by, &error).await,
        }
        self.abandon(which);
        Ok(())
    }

    async fn note_refused(&mut self, batch: &Batch, by: &BTreeSet<Target>, error: &ClientError) {
        let now = clock::instant();
        for target in by {
            if self.machine.needs_count(target.topic) {
                let name = self.topics.name(target.topic);
                let either = [&mut self.main, &mut self.probe].into_iter();
                let mut count = None;
                for producer in either.filter_map(|half| half.writer.producer()) {
                    count = producer.partitions(name).await;
                    if count.is_some() {
                        break;
                    }
                }
                if let Some(count) = count {
                    self.machine.learn_count(target.topic, count);
                }
            }
            if let Some(suppressed) = self.lines.pass(now) {
                tracing::error!(
                    topic = self.topics.name(target.topic),
                    partition = target.partition,
                    suppressed,
                    metric = "hookstream_unwritable_seconds",
                    "retries cannot be moved to this partition: {error}; the retry partitions that they wait in are held, everything else goes on"
                );
            }
        }
        self.machine.refused(batch, by, now);
    }

    fn too_large(&mut self, batch: &Batch, target: Target) {
        let tag = 0;
        let next = self
            .machine
            .ended(batch, TransactionEnd::TooLarge { tag }, clock::instant());
        if let Next::SetAside(from) = next {
            let topic = &self.topics.tiers[from.tier];
            tracing::error!(
                topic = &**topic,
                partition = from.partition,
                offset = batch.portions.first().map(|portion| portion.position.0 - 1),
                "a record of a retry topic is larger than max.message.bytes of {} allows, see `hookstream topics check`; it is set aside",
                self.topics.name(target.topic)
            );
            self.machine.set_aside(from, topic);
        }
    }

    /// Gives up a batch whose positions were not sent; it is tried again.
    fn give_up(&mut self, which: Which, batch: &Batch) {
        match which {
            Which::Main => self.machine.gave_up(batch),
            Which::Probe => self
                .machine
                .refused(batch, &BTreeSet::new(), clock::instant()),
        }
        self.abandon(which);
    }

    fn abandon(&mut self, which: Which) {
        match which {
            Which::Main => self.main.writer.replace(),
            Which::Probe => self.probe.writer.close(),
        }
    }

    /// Before partitions are given up or read anew: ends the batches with records of them.
    pub(super) async fn end_batches_of(
        &mut self,
        member: &P::Member,
        partitions: &[TierPartition],
    ) -> Result<(), Failure> {
        const LAST: Duration = Duration::from_secs(1);
        for which in [Which::Main, Which::Probe] {
            let has_some = |under_way: &UnderWay| {
                let mut portions = under_way.batch.portions.iter();
                portions.any(|portion| partitions.contains(&portion.from))
            };
            let half = self.half(which);
            if half
                .under_way
                .as_ref()
                .is_some_and(|open| open.sent && has_some(open))
            {
                self.look_after(member, which, LAST).await?;
            }
            let half = self.half(which);
            if let Some(open) = half.under_way.take_if(|open| has_some(open)) {
                self.give_up(which, &open.batch);
            }
        }
        Ok(())
    }

    /// Sends the records of a batch. The error comes with where the record was to go.
    async fn send(
        &mut self,
        which: Which,
        under_way: &mut UnderWay,
    ) -> Result<(), Box<(BatchError, Target)>> {
        let UnderWay {
            batch,
            spans,
            set_aside,
            ..
        } = under_way;
        let half = match which {
            Which::Main => &mut self.main,
            Which::Probe => &mut self.probe,
        };
        let Some(producer) = half.writer.producer() else {
            return Ok(());
        };
        for (tag, one) in self.machine.moves(batch).enumerate() {
            let target = self.machine.target(&one.to);
            let topic = self.topics.name(target.topic);
            let command: &Command = match one.to {
                Destination::Commands(command) | Destination::Tier(_, command) => command,
                Destination::Invalid(record) => {
                    let mut record = record.clone();
                    let partition = target.partition;
                    send_invalid(&mut record, topic, tag, async |record| {
                        let record = Record {
                            partition,
                            ..record
                        };
                        producer.send(record).await
                    })
                    .await
                    .map_err(|error| Box::new((error, target)))?;
                    set_aside.push((one.from.tier, record));
                    continue;
                }
            };
            let record = Record {
                topic,
                partition: target.partition,
                key: Some(command.subscriber.as_bytes()),
                value: Some(&command.body),
                headers: command_headers(&command.envelope()),
                tag,
            };
            producer
                .send(record)
                .await
                .map_err(|error| Box::new((error, target)))?;
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

    /// Commits a batch whose records are all acknowledged.
    async fn finish(
        &mut self,
        member: &P::Member,
        which: Which,
        under_way: UnderWay,
    ) -> Result<(), Failure> {
        let UnderWay {
            batch,
            began,
            spans,
            set_aside,
            ..
        } = under_way;
        let result = self.commit(member, which, &batch).await;
        let ended = clock::instant();
        self.context
            .metrics
            .transaction(ROLE, result.is_ok(), ended - began);
        let end = result
            .as_ref()
            .map_or_else(BatchError::end, |()| TransactionEnd::Committed);
        let next = self.machine.ended(&batch, end, ended);
        match (next, result) {
            (Next::Ask(partitions), Err(error)) => {
                tracing::warn!("a batch may not be committed, asking for the positions: {error}");
                if let Some(producer) = self.half(which).writer.producer() {
                    producer.renew().await?;
                }
                let partitions: Vec<_> = partitions
                    .into_iter()
                    .map(|at| self.topics.topic_partition(at))
                    .collect();
                for found in member.committed(&partitions).await? {
                    let at = &found.at;
                    if let Some(from) = self.topics.tier_partition(&at.topic, at.partition) {
                        let position = found.position.unwrap_or_default();
                        self.machine.committed(from, position);
                        self.committed
                            .extend(found.position.map(|position| (from, position)));
                    }
                }
                Ok(())
            }
            (_, Err(BatchError::Failed(failure))) => Err(failure),
            (_, Err(error)) => Err(Failure::Internal(error.to_string())),
            (_, Ok(())) => {
                if let Some((target, after)) = self.machine.recovered(&batch, ended) {
                    let topic = self.topics.name(target.topic);
                    self.slots.free(target);
                    tracing::info!(
                        topic,
                        partition = target.partition,
                        ?after,
                        "retries can be moved to this partition again"
                    );
                }
                let portions = batch.portions.iter();
                self.committed
                    .extend(portions.map(|portion| (portion.from, portion.position)));
                self.count(&batch);
                for (tier, record) in &set_aside {
                    if let Some(suppressed) = self.set_aside_lines[*tier].pass(ended) {
                        log_set_aside(record, suppressed);
                    }
                }
                spans.end();
                Ok(())
            }
        }
    }

    async fn commit(
        &mut self,
        member: &P::Member,
        which: Which,
        batch: &Batch,
    ) -> Result<(), BatchError> {
        let commits: Vec<Commit> = batch
            .portions
            .iter()
            .map(|portion| Commit {
                at: self.topics.topic_partition(portion.from),
                position: portion.position,
                metadata: String::new(),
            })
            .collect();
        if let Some(producer) = self.half(which).writer.producer() {
            let generation = member.generation();
            producer.finish(&commits, generation.as_ref()).await?;
        }
        match self.context.settings.guarantee {
            Guarantee::ExactlyOnce => Ok(()),
            Guarantee::AtLeastOnce => {
                let began = clock::instant();
                let done = member.commit(&commits).await;
                let ended = clock::instant();
                match &done {
                    Ok(()) => self.recommit.answered(ended - began, ended),
                    Err(_) => self.recommit.begin(ended),
                }
                done.map_err(BatchError::Aborted)
            }
        }
    }

    /// Updates the metric of the partitions that refuse writes.
    pub(super) fn observe(&mut self) {
        let now = clock::instant();
        let before = std::mem::take(&mut self.exported);
        let metrics = &self.context.metrics;
        for (target, since) in self.machine.failing() {
            let time = now.saturating_duration_since(since);
            let topic = self.topics.name(target.topic);
            metrics.unwritable(ROLE, topic, target.partition, time);
            self.exported.insert(target);
        }
        for target in before.difference(&self.exported) {
            let topic = self.topics.name(target.topic);
            metrics.writable(ROLE, topic, target.partition);
        }
    }

    /// Gives up what is under way, and removes the series.
    pub(super) fn end(&mut self) {
        for target in &self.exported {
            let topic = self.topics.name(target.topic);
            self.context.metrics.writable(ROLE, topic, target.partition);
        }
        self.main.writer.close();
        self.probe.writer.close();
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

/// The partition that a batch probes; any other for an ordinary one.
fn probed(purpose: Purpose) -> Target {
    match purpose {
        Purpose::Probe(target) => target,
        Purpose::Ordinary => Target {
            topic: 0,
            partition: None,
        },
    }
}
