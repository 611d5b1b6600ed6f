//! Writes outcomes without waiting for partitions that refuse them: what [`Outbox`] decides, over two producers.
//!
//! One producer writes all outcomes but those for partitions that are known to fail; the other probes these, one outcome
//! at a time. Neither keeps the role's thread waiting: a batch is sent, and looked after at each commit until it is
//! acknowledged or refused. Only then are its offsets committed with it, so the snapshot is as of that moment.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::messages::Decided;
use super::outbox::{Batch, Entry, Outbox, Purpose, Recovered};
use super::outcome_records::{Destination, OutcomeTopics, write};
use super::oversize::{Source, smaller};
use super::partition::effect::Outcome;
use crate::config::Guarantee;
use crate::edge::clock;
use crate::edge::kafka::subscription_cache::SubscriptionCache;
use crate::edge::port::failure::{BatchError, ClientError, Failure, Refused};
use crate::edge::port::task::KeepWaiting;
use crate::edge::port::{Port, Producer as _, ProducerKind, WRITE_DEADLINE};
use crate::edge::writer::{Ready, Writer};
use crate::model::clock_skew::ClockSkew;
use crate::model::throttle::Throttle;
use crate::model::units::Offset;
use crate::model::unwritable::{ProbeIds, Target};
use crate::runtime::context::RoleContext;
use crate::runtime::metrics::{Metrics, TransactionalRole};

/// How long a commit waits for the acknowledgement of a batch, which usually takes a few milliseconds. After that, it
/// goes on with the positions.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same for a probe, which may well fail.
const PROBE_PATIENCE: Duration = Duration::from_millis(20);
/// Past this, a batch is given up whatever the client reports.
const LATE: Duration = WRITE_DEADLINE.saturating_mul(2);
/// So many statuses wait at most for a partition that cannot be written; others are dropped.
const MAX_HELD_STATUSES: usize = 1_000;
const ROLE: TransactionalRole = TransactionalRole::Deliver;

/// Which of the two producers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All outcomes but those held back.
    Main,
    /// One of those held back.
    Probe,
}

/// A batch that is not acknowledged yet.
struct UnderWay {
    batch: Batch<Outcome>,
    began: Instant,
    sent: bool,
}

struct Half<P: Port> {
    writer: Writer<P>,
    under_way: Option<UnderWay>,
}

/// Writes outcomes.
pub(super) struct OutcomeWriter<P: Port> {
    port: P,
    main: Half<P>,
    probe: Half<P>,
    outbox: Outbox<Outcome>,
    topics: Arc<OutcomeTopics>,
    transactional: bool,
    /// The transactional id of each failing partition's probes.
    slots: ProbeIds,
    /// The one that the probing producer has.
    probing: usize,
    goes_on: KeepWaiting,
    lines: Throttle,
    smaller_lines: Throttle,
    /// Where the commands come from.
    commands: String,
    /// How far this clock is from those of the brokers that stamp outcomes.
    brokers: ClockSkew,
    /// Partitions with a series of the metric.
    exported: BTreeSet<Target>,
    metrics: Metrics,
}

impl<P: Port> OutcomeWriter<P> {
    /// Without outcomes.
    ///
    /// # Errors
    /// [`Failure`] when the producer cannot be created.
    pub(super) async fn new(port: &P, context: &RoleContext) -> Result<Self, Failure> {
        const PURPOSE: &str = "deliver";
        const LINES: Duration = Duration::from_secs(5);
        let settings = &context.settings;
        let (keep_waiting, kind) = (context.keep_waiting(), ProducerKind::Writer);
        let producer = port
            .producer(settings, &keep_waiting, PURPOSE, kind)
            .await?;
        let half = || Half {
            writer: Writer::new(port, settings, context.unless_stopping(), PURPOSE),
            under_way: None,
        };
        let (main, probe) = (half(), half());
        Ok(Self {
            port: port.clone(),
            main: Half {
                writer: main.writer.with(producer),
                ..main
            },
            probe,
            outbox: Outbox::default(),
            topics: Arc::new(OutcomeTopics::new(settings)),
            transactional: settings.guarantee == Guarantee::ExactlyOnce,
            slots: ProbeIds::default(),
            probing: 0,
            goes_on: context.unless_stopping(),
            lines: Throttle::new(LINES),
            smaller_lines: Throttle::new(LINES),
            commands: settings.topics.commands(),
            brokers: ClockSkew::of(1),
            exported: BTreeSet::new(),
            metrics: context.metrics.clone(),
        })
    }

    /// Adds an outcome of a partition.
    pub(super) fn add(&mut self, partition: i32, decided: Decided) {
        let Decided {
            offset,
            move_number,
            outcome,
        } = decided;
        let (topic, hash) = self.topics.of(&outcome);
        if let Outcome::Status(status) = &outcome
            && !status.must
            && self.outbox.held_for(topic) >= MAX_HELD_STATUSES
        {
            // A later one is written when its topic can be written again.
            return;
        }
        self.outbox.add(Entry {
            partition,
            offset,
            move_number,
            topic,
            hash,
            weight: weight(&outcome),
            load: outcome.weight(),
            record: outcome,
        });
    }

    /// By how many seconds this clock is ahead of those of the brokers, if that is known.
    pub(super) fn ahead_of_brokers(&self) -> Option<f64> {
        self.brokers.ahead(clock::instant())
    }

    fn half(&mut self, which: Which) -> &mut Half<P> {
        match which {
            Which::Main => &mut self.main,
            Which::Probe => &mut self.probe,
        }
    }

    /// The producer that has written the acknowledged batch.
    pub(super) fn producer(&mut self, which: Which) -> Option<&mut P::Producer> {
        self.half(which).writer.producer()
    }

    /// Sends the next batch, or looks after the one under way. Returns a batch whose records are all acknowledged: commit
    /// it, and report with [`OutcomeWriter::committed`] or [`OutcomeWriter::not_committed`].
    ///
    /// # Errors
    /// [`Failure`] when this process cannot write at all.
    pub(super) async fn advance(
        &mut self,
        which: Which,
        table: &SubscriptionCache,
    ) -> Result<Option<Batch<Outcome>>, Failure> {
        let now = clock::instant();
        let Some(mut under_way) = self.take_up(which, now)? else {
            return Ok(None);
        };
        let sent = std::mem::replace(&mut under_way.sent, true);
        let patience = match (which, sent) {
            (Which::Main, false) => PATIENCE,
            (Which::Probe, false) => PROBE_PATIENCE,
            (_, true) => Duration::ZERO,
        };
        if !sent {
            let batch = std::mem::take(&mut under_way.batch.entries);
            let purpose = under_way.batch.purpose;
            match self.send(which, purpose, batch, table).await? {
                Some(sent) => under_way.batch.entries = sent,
                None => return Ok(None),
            }
        }
        let Some(producer) = self.half(which).writer.producer() else {
            self.outbox.back(under_way.batch, now);
            return Ok(None);
        };
        let acknowledged = producer.acknowledged_within(patience).await;
        if let Some(stamp) = producer.stamp() {
            self.brokers.note(&stamp.leader(), stamp.ahead(), now);
        }
        match acknowledged {
            Some(refused) if refused.is_empty() => Ok(Some(under_way.batch)),
            Some(refused) => self.refused(which, under_way, refused).await,
            None if now.saturating_duration_since(under_way.began) > LATE => {
                tracing::error!("outcomes neither acknowledged nor refused, writing them again");
                self.give_up(which, under_way.batch);
                Ok(None)
            }
            None => {
                self.half(which).under_way = Some(under_way);
                Ok(None)
            }
        }
    }

    /// The batch under way, or the next one, if the producer is ready for it.
    fn take_up(&mut self, which: Which, now: Instant) -> Result<Option<UnderWay>, Failure> {
        if which == Which::Probe && self.probe.under_way.is_none() {
            let Some(batch) = self.outbox.next_probe(now) else {
                self.probe.writer.close();
                return Ok(None);
            };
            let slot = self.slot(&batch);
            if self.probe.writer.producer().is_none() || slot != self.probing {
                self.probe.writer.close();
                self.probe.writer.open_probe(slot);
                self.probing = slot;
            }
            self.probe.under_way = Some(UnderWay {
                batch,
                began: now,
                sent: false,
            });
        }
        let goes_on = (self.goes_on)();
        let half = self.half(which);
        let ready = match half.writer.ready() {
            Ok(ready) => ready,
            // Its transactional id is stuck: the partition does still not take the end of an earlier transaction.
            Err(failure) if which == Which::Probe => {
                tracing::debug!("probe not possible: {failure}");
                if let Some(under_way) = half.under_way.take() {
                    self.outbox.back(under_way.batch, now);
                }
                return Ok(None);
            }
            // The next owner does what is left.
            Err(_) if !goes_on => return Ok(None),
            Err(failure) => return Err(failure),
        };
        match ready {
            Ready::Yes(_) => {}
            Ready::NotYet => return Ok(None),
            Ready::No => {
                if let Some(under_way) = half.under_way.take() {
                    self.outbox.back(under_way.batch, now);
                }
                return Ok(None);
            }
        }
        if let Some(under_way) = half.under_way.take() {
            return Ok(Some(under_way));
        }
        let batch = self.outbox.next_batch();
        Ok(batch.map(|batch| UnderWay {
            batch,
            began: now,
            sent: false,
        }))
    }

    /// The transactional id that probes this batch's partition.
    fn slot(&mut self, batch: &Batch<Outcome>) -> usize {
        let target = match batch.purpose {
            Purpose::Probe(target) => target,
            Purpose::Ordinary => return 0,
        };
        self.slots.of(target)
    }

    /// Sends the records of a batch. Returns what is under way then; `None` when the batch was given up.
    async fn send(
        &mut self,
        which: Which,
        purpose: Purpose,
        entries: Vec<Entry<Outcome>>,
        table: &SubscriptionCache,
    ) -> Result<Option<Vec<Entry<Outcome>>>, Failure> {
        let topics = Arc::clone(&self.topics);
        let mut sent: Vec<Entry<Outcome>> = Vec::with_capacity(entries.len());
        let mut rest = entries.into_iter();
        while let Some(entry) = rest.next() {
            let tag = sent.len();
            let target = self.outbox.target(&entry);
            let to = Destination {
                topic: &Arc::clone(self.topics.name(target.topic)),
                partition: target.partition,
                tag,
            };
            let Some(producer) = self.half(which).writer.producer() else {
                return Ok(None);
            };
            let now = clock::instant();
            match write(producer, &entry.record, to, &topics, table).await {
                Ok(()) => sent.push(entry),
                Err(BatchError::Failed(failure)) => return Err(failure),
                // Refused by the client, which has not taken it: the others are not affected.
                Err(BatchError::TooLarge { .. }) => self.write_smaller(entry, purpose, now),
                Err(BatchError::Aborted(error)) if error.is_of_partition() => {
                    let by = BTreeSet::from([target]);
                    let batch = Batch {
                        purpose,
                        entries: vec![entry],
                    };
                    self.note_refused(batch, &by, &error, now).await;
                }
                Err(BatchError::Aborted(error)) => {
                    tracing::warn!("outcomes were not written: {error}; they are written again");
                    let mut entries = sent;
                    entries.push(entry);
                    entries.extend(rest);
                    self.give_up(which, Batch { purpose, entries });
                    return Ok(None);
                }
            }
        }
        if sent.is_empty() && purpose != Purpose::Ordinary {
            self.half(which).writer.close();
            return Ok(None);
        }
        Ok(Some(sent))
    }

    /// Some records of a batch were refused. Returns what is durable of it nevertheless.
    async fn refused(
        &mut self,
        which: Which,
        under_way: UnderWay,
        refused: Vec<Refused>,
    ) -> Result<Option<Batch<Outcome>>, Failure> {
        let now = clock::instant();
        let UnderWay { batch, began, .. } = under_way;
        self.metrics.transaction(ROLE, false, now - began);
        let of = |one: &Refused| {
            let entry = batch.entries.get(one.tag)?;
            Some(Target {
                topic: entry.topic,
                partition: one.partition,
            })
        };
        let large = refused.iter().find(|one| one.error.is_too_large());
        let large = large.and_then(of);
        // When no broker is reachable, no partition is to blame.
        let away = self.port.outage(now);
        let reachable = away.is_none_or(|away| away < began);
        let blamed: Vec<&Refused> = refused
            .iter()
            .filter(|one| reachable && one.error.is_of_partition())
            .collect();
        let by: BTreeSet<Target> = blamed.iter().filter_map(|one| of(one)).collect();
        let first = blamed
            .first()
            .or(refused.first().as_ref())
            .map(|one| one.error.clone());
        let error = first.unwrap_or_else(ClientError::canceled);
        let purpose = batch.purpose;
        let (written, failed) = if self.transactional {
            (Vec::new(), batch.entries)
        } else {
            split(batch.entries, &refused)
        };
        let failed = Batch {
            purpose,
            entries: failed,
        };
        match large {
            Some(_) if failed.entries.len() == 1 => {
                for entry in failed.entries {
                    self.write_smaller(entry, purpose, now);
                }
            }
            Some(target) => {
                tracing::warn!(
                    topic = &**self.topics.name(target.topic),
                    partition = target.partition,
                    "an outcome is larger than its topic allows: they are written one by one"
                );
                self.learn_counts([target.topic]).await;
                self.outbox.too_large(failed, target, now);
            }
            None if by.is_empty() => {
                tracing::warn!("outcomes were not written: {error}; they are written again");
                self.outbox.back(failed, now);
            }
            None => self.note_refused(failed, &by, &error, now).await,
        }
        match which {
            Which::Main => self.main.writer.replace(),
            Which::Probe => self.probe.writer.close(),
        }
        let entries = written;
        // Without transactions the producer is no longer needed for these.
        Ok((!entries.is_empty()).then_some(Batch { purpose, entries }))
    }

    async fn note_refused(
        &mut self,
        batch: Batch<Outcome>,
        by: &BTreeSet<Target>,
        error: &ClientError,
        now: Instant,
    ) {
        self.learn_counts(by.iter().map(|target| target.topic))
            .await;
        self.outbox.refused(batch, by, now);
        for &target in by {
            if let Some(suppressed) = self.lines.pass(now) {
                let waiting = self.outbox.failing().find(|(other, ..)| *other == target);
                tracing::error!(
                    topic = &**self.topics.name(target.topic),
                    partition = target.partition,
                    waiting = waiting.map(|(_, _, waiting)| waiting),
                    suppressed,
                    metric = "hookstream_unwritable_seconds",
                    "outcomes cannot be written to this partition: {error}; their commands stay unfinished, everything else goes on"
                );
            }
        }
    }

    /// Replaces an outcome that its topic refuses for its size.
    fn write_smaller(&mut self, entry: Entry<Outcome>, purpose: Purpose, now: Instant) {
        if let Some(suppressed) = self.smaller_lines.pass(now) {
            tracing::error!(
                topic = &**self.topics.name(entry.topic),
                partition = entry.partition,
                offset = entry.offset.map(|offset| offset.0),
                bytes = entry.weight,
                suppressed,
                "the outcome of this command is larger than max.message.bytes of its topic allows, see `hookstream topics check`; less is written instead"
            );
        }
        let source = Source {
            topic: &self.commands,
            partition: entry.partition,
            offset: entry.offset.unwrap_or(Offset(-1)),
        };
        let smaller = smaller(entry.record, source, clock::now()).map(|record| {
            let (topic, hash) = self.topics.of(&record);
            Entry {
                topic,
                hash,
                weight: weight(&record),
                record,
                ..entry
            }
        });
        self.outbox.is_too_large(smaller, purpose, now);
    }

    /// So that later outcomes for a failing partition are known as such.
    async fn learn_counts(&mut self, topics: impl IntoIterator<Item = usize>) {
        for topic in topics {
            if !self.outbox.needs_count(topic) {
                continue;
            }
            let name = Arc::clone(self.topics.name(topic));
            let either = [&mut self.main, &mut self.probe].into_iter();
            let mut count = None;
            for producer in either.filter_map(|half| half.writer.producer()) {
                count = producer.partitions(&name).await;
                if count.is_some() {
                    break;
                }
            }
            if let Some(count) = count {
                self.outbox.learn_count(topic, count);
            }
        }
    }

    /// Gives up a batch that was not committed; its outcomes are written again.
    fn give_up(&mut self, which: Which, batch: Batch<Outcome>) {
        self.outbox.back(batch, clock::instant());
        match which {
            Which::Main => self.main.writer.replace(),
            Which::Probe => self.probe.writer.close(),
        }
    }

    /// A batch is committed.
    pub(super) fn committed(&mut self, purpose: Purpose) {
        if let Some(Recovered { target, after }) = self.outbox.written(purpose, clock::instant()) {
            self.slots.free(target);
            tracing::info!(
                topic = &**self.topics.name(target.topic),
                partition = target.partition,
                ?after,
                "outcomes can be written to this partition again"
            );
        }
    }

    /// A batch was acknowledged and not committed; its producer has been renewed.
    pub(super) fn not_committed(&mut self, which: Which, batch: Batch<Outcome>) {
        self.outbox.back(batch, clock::instant());
        if which == Which::Probe {
            self.probe.writer.close();
        }
    }

    /// Drops what belongs to partitions that this process gives up.
    pub(super) fn forget(&mut self, partitions: &HashSet<i32>) {
        for which in [Which::Main, Which::Probe] {
            let half = self.half(which);
            let concerned = half.under_way.take_if(|under_way| {
                let mut entries = under_way.batch.entries.iter();
                entries.any(|entry| partitions.contains(&entry.partition))
            });
            if let Some(under_way) = concerned {
                if under_way.sent {
                    self.give_up(which, under_way.batch);
                } else {
                    self.outbox.back(under_way.batch, clock::instant());
                    self.half(which).writer.close();
                }
            }
        }
        self.outbox.forget(partitions);
    }

    /// A commit of this partition cannot say that an offset from `end` on is finished: outcomes of such offsets wait.
    pub(super) fn reaches(&mut self, partition: i32, end: Offset) {
        self.outbox.reaches(partition, end);
    }

    /// Whether every outcome that can be written at present is.
    pub(super) fn is_settled(&self) -> bool {
        self.main.under_way.is_none() && self.outbox.is_settled()
    }

    /// Updates the metric of the partitions that cannot be written.
    pub(super) fn observe(&mut self) {
        let now = clock::instant();
        let before = std::mem::take(&mut self.exported);
        for (target, since, _) in self.outbox.failing() {
            let time = now.saturating_duration_since(since);
            let topic = self.topics.name(target.topic);
            self.metrics.unwritable(ROLE, topic, target.partition, time);
            self.exported.insert(target);
        }
        for target in before.difference(&self.exported) {
            let topic = self.topics.name(target.topic);
            self.metrics.writable(ROLE, topic, target.partition);
        }
    }

    /// Gives up what is under way, and removes the series.
    pub(super) fn end(mut self) {
        for target in &self.exported {
            let topic = self.topics.name(target.topic);
            self.metrics.writable(ROLE, topic, target.partition);
        }
        self.main.writer.close();
        self.probe.writer.close();
    }
}

/// Bytes of the record that is written for an outcome.
fn weight(outcome: &Outcome) -> usize {
    outcome.weight().unwrap_or(512)
}

/// Those written, and those refused.
fn split(
    entries: Vec<Entry<Outcome>>,
    refused: &[Refused],
) -> (Vec<Entry<Outcome>>, Vec<Entry<Outcome>>) {
    let tags: HashSet<usize> = refused.iter().map(|one| one.tag).collect();
    let each = entries.into_iter().enumerate();
    let (written, failed): (Vec<_>, Vec<_>) = each.partition(|(tag, _)| !tags.contains(tag));
    let entries = |all: Vec<(usize, Entry<Outcome>)>| all.into_iter().map(|(_, one)| one).collect();
    (entries(written), entries(failed))
}

/// The offsets that a batch ends, by partition.
pub(super) fn offsets(batch: &Batch<Outcome>) -> BTreeMap<i32, Vec<Offset>> {
    let mut all: BTreeMap<i32, Vec<Offset>> = BTreeMap::new();
    for entry in &batch.entries {
        all.entry(entry.partition).or_default().extend(entry.offset);
    }
    all
}
