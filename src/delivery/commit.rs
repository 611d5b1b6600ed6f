//! Commits: outcomes and positions together, or positions alone.
//!
//! An outcome that is not durable leaves its offset open in what is committed, so positions move on whatever cannot be
//! written. After a failed transaction the outcomes are written again, unless the broker's committed offsets show that
//! the transaction succeeded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::drain::Drain;
use super::messages::{Message, PartitionState, WorkerState};
use super::metrics::Against;
use super::outage::{Health, Step};
use super::outbox::Batch;
use super::partition::effect::Outcome;
use super::role::{Delivery, as_gauge};
use super::writing::{Which, offsets};
use crate::config::Guarantee;
use crate::edge::clock;
use crate::edge::kafka::record::log_set_aside;
use crate::edge::port::failure::{BatchError, ClientError, ErrorKind, Failure};
use crate::edge::port::records::{Commit, TopicPartition};
use crate::edge::port::{Member as _, Port, Producer as _};
use crate::model::units::Offset;
use crate::model::window::{METADATA_LIMIT, Snapshot, Window};
use crate::runtime::metrics::TransactionalRole;

impl<P: Port> Delivery<'_, P> {
    /// Commits what has changed since the last commit; with `last`, all of the partitions that leave. Returns whether nothing
    /// is left that can be committed at present.
    pub(super) async fn commit(&mut self, last: bool) -> Result<bool, Failure> {
        let mut reports = self.workers.states().await?;
        self.report_attempts(&mut reports);
        let mut health = Health::default();
        for worker in &mut reports {
            health.add(std::mem::take(&mut worker.health));
        }
        self.watch(&health);
        let states: Vec<PartitionState> = reports
            .into_iter()
            .flat_map(|worker| worker.partitions)
            .collect();
        let ages = states.iter().map(|state| state.oldest);
        self.oldest = ages.max().unwrap_or_default();
        self.metrics.oldest_attempt(self.oldest);
        self.observe_workers();
        let holes = states.iter().map(|state| state.holes).sum();
        self.metrics.source_holes().set(as_gauge(holes));
        let now = clock::instant();
        if self.member.was_disturbed() {
            self.recommit.begin(now);
        }
        let again = self.recommit.is_due(now);
        self.note_refused_commits();
        let mut snapshots = BTreeMap::new();
        for state in states {
            self.observe(&state);
            if !self.partitions.contains_key(&state.partition) {
                continue;
            }
            for decided in state.outcomes {
                self.outcomes.add(state.partition, decided);
            }
            if self.metadata_limit < METADATA_LIMIT {
                let end = state.snapshot.position.0 + i64::try_from(state.reach).unwrap_or(0);
                self.outcomes.reaches(
                    state.partition,
                    Offset(end.max(state.snapshot.position.0 + 1)),
                );
            }
            snapshots.insert(state.partition, state.snapshot);
        }
        let mut all_well = true;
        for which in [Which::Main, Which::Probe] {
            all_well &= self.write_outcomes(which, &mut snapshots).await?;
        }
        self.outcomes.observe();
        snapshots.retain(|number, snapshot| {
            let leaves = |drain: &Drain| drain.leaves(*number);
            let whole = again || last && self.drain.as_ref().is_some_and(leaves);
            let owned = self.partitions.get(number);
            owned.is_some_and(|owned| whole || owned.committed.as_ref() != Some(snapshot))
        });
        let all_well = self.commit_positions(snapshots).await && all_well;
        Ok(all_well && self.outcomes.is_settled())
    }

    /// Writes outcomes, and commits the snapshots that belong to them; these are removed from `snapshots`. Returns whether
    /// no commit failed.
    async fn write_outcomes(
        &mut self,
        which: Which,
        snapshots: &mut BTreeMap<i32, Snapshot>,
    ) -> Result<bool, Failure> {
        /// So that positions are committed, and records polled, however many outcomes there are.
        const TURN: Duration = Duration::from_millis(200);
        let began = clock::instant();
        while let Some(batch) = self.outcomes.advance(which, &self.context.table).await? {
            let offsets = offsets(&batch);
            for number in offsets.keys() {
                snapshots.remove(number);
            }
            let wanted = self.workers.snapshots_with(&offsets).await?;
            if !self.commit_outcomes(which, batch, offsets, wanted).await? {
                return Ok(false);
            }
            if clock::instant() - began > TURN {
                break;
            }
        }
        Ok(true)
    }

    fn report_attempts(&mut self, workers: &mut [WorkerState]) {
        let now = clock::instant();
        for worker in workers {
            for (subscriber, counts) in worker.attempts.drain(..) {
                self.top_subscribers.count(subscriber, &counts, now);
            }
        }
        if let Some(report) = self.top_subscribers.report(now) {
            self.metrics.subscriber_attempts(&report);
        }
    }

    /// Looks for an egress outage, and tells the workers of its begin and end.
    fn watch(&mut self, health: &Health) {
        let gauge = self.metrics.systemic_failure();
        match self.outage.observe(health, clock::instant()) {
            Step::Stay => {}
            Step::Begin { hosts, subscribers } => {
                gauge.set(1);
                tracing::error!(
                    failing_hosts = hosts.failing,
                    of_hosts = hosts.of,
                    failing_subscribers = subscribers.failing,
                    of_subscribers = subscribers.of,
                    "egress outage: most endpoints do not respond; those get only probes until one of them responds",
                );
                self.workers.send_all(|| Message::OutageBegan);
            }
            Step::Probe => self.workers.send_all(|| Message::Probe),
            Step::End { length, heard } => {
                gauge.set(0);
                tracing::info!(lasted = ?length, responded = heard, "egress outage over");
                self.workers.send_all(|| Message::OutageEnded(heard));
            }
        }
    }

    /// A broker refuses the commit of a partition and takes those of others in the same request.
    fn note_refused_commits(&mut self) {
        let mut refused = 0;
        for (at, error) in self.member.refused_commits() {
            if let Some(owned) = self.partitions.get_mut(&at.partition)
                && let Some(snapshot) = owned.committed.take()
                && is_metadata_too_large(&error)
            {
                refused = refused.max(snapshot.metadata.len());
            }
            tracing::warn!(
                topic = &*at.topic,
                partition = at.partition,
                "position not committed: {error}; it is committed again"
            );
        }
        self.shorten_metadata(refused);
    }

    /// The broker has refused so many characters of metadata: it keeps fewer with a position than was assumed.
    fn shorten_metadata(&mut self, refused: usize) {
        /// Below this nothing fits: positions are committed alone.
        const LEAST: usize = 64;
        let mut limit = self.metadata_limit;
        while limit > 0 && limit >= refused {
            limit = if limit / 2 < LEAST { 0 } else { limit / 2 };
        }
        if refused == 0 || limit == self.metadata_limit {
            return;
        }
        self.metadata_limit = limit;
        tracing::error!(
            limit,
            offsets = Window::reach(limit),
            "the broker keeps less metadata with a position than the default of 4096 characters (offset.metadata.max.bytes): while a command is unfinished, its partition is read for at most this many offsets beyond it, or none; finished commands beyond that may be delivered again after a restart. Set offset.metadata.max.bytes to 4096"
        );
        self.workers.send_all(|| Message::Limit(limit));
        for owned in self.partitions.values_mut() {
            owned.committed = None;
        }
    }

    /// Commits positions alone. Returns whether that succeeded.
    async fn commit_positions(&mut self, snapshots: BTreeMap<i32, Snapshot>) -> bool {
        if snapshots.is_empty() {
            return true;
        }
        let began = clock::instant();
        match self.member.commit(&self.commits(&snapshots)).await {
            Ok(()) => {
                let now = clock::instant();
                self.recommit.answered(now - began, now);
                self.are_committed(snapshots);
                true
            }
            Err(error) => {
                if is_metadata_too_large(&error) {
                    self.shorten_metadata(longest(&snapshots));
                    return false;
                }
                self.recommit.begin(clock::instant());
                self.note_eviction(&error);
                tracing::warn!(
                    "committing positions: {error}; they are committed with the next ones"
                );
                false
            }
        }
    }

    fn commits(&self, snapshots: &BTreeMap<i32, Snapshot>) -> Vec<Commit> {
        let each = snapshots.iter().map(|(&partition, snapshot)| {
            let at = TopicPartition {
                topic: Arc::clone(&self.topic),
                partition,
            };
            let Snapshot { position, metadata } = snapshot.clone();
            Commit {
                at,
                position,
                metadata,
            }
        });
        each.collect()
    }

    fn are_committed(&mut self, snapshots: BTreeMap<i32, Snapshot>) {
        for (number, snapshot) in snapshots {
            if let Some(owned) = self.partitions.get_mut(&number) {
                owned.committed = Some(snapshot);
            }
        }
    }

    /// Commits a batch whose records are acknowledged: with transactions, together with the snapshots in which its offsets
    /// are finished; without, the records are durable already. Returns whether all of that succeeded.
    async fn commit_outcomes(
        &mut self,
        which: Which,
        batch: Batch<Outcome>,
        offsets: BTreeMap<i32, Vec<Offset>>,
        wanted: BTreeMap<i32, Snapshot>,
    ) -> Result<bool, Failure> {
        if self.context.settings.guarantee == Guarantee::AtLeastOnce {
            self.context
                .metrics
                .transaction(TransactionalRole::Deliver, true, Duration::ZERO);
            self.are_durable(&batch, offsets);
            return Ok(self.commit_positions(wanted).await);
        }
        let started = clock::instant();
        let commits = self.commits(&wanted);
        let generation = self.member.generation();
        let Some(producer) = self.outcomes.producer(which) else {
            self.outcomes.not_committed(which, batch);
            return Ok(false);
        };
        let ended = producer.finish(&commits, generation.as_ref()).await;
        let took = clock::instant() - started;
        self.context
            .metrics
            .transaction(TransactionalRole::Deliver, ended.is_ok(), took);
        match ended {
            Ok(()) => {
                self.are_durable(&batch, offsets);
                self.are_committed(wanted);
                Ok(true)
            }
            Err(BatchError::Failed(failure)) => Err(failure),
            Err(error) => {
                tracing::warn!("outcomes were not committed: {error}; they are written again");
                if let BatchError::Aborted(error) = &error {
                    // Before the producer is renewed, which may take a while.
                    self.note_eviction(error);
                }
                if let Some(producer) = self.outcomes.producer(which) {
                    producer.renew().await?;
                }
                if matches!(&error, BatchError::Aborted(error) if is_metadata_too_large(error)) {
                    self.shorten_metadata(longest(&wanted));
                    self.outcomes.not_committed(which, batch);
                    return Ok(false);
                }
                if self.is_committed(&batch, &wanted).await? {
                    tracing::info!("the outcomes had been committed after all");
                    self.are_durable(&batch, offsets);
                    self.are_committed(wanted);
                    return Ok(true);
                }
                self.outcomes.not_committed(which, batch);
                Ok(false)
            }
        }
    }

    /// Outcomes are durable: their offsets end, and their memory is free. Until then they count in their partitions, so
    /// intake stops when they cannot be written.
    fn are_durable(&mut self, batch: &Batch<Outcome>, offsets: BTreeMap<i32, Vec<Offset>>) {
        for entry in &batch.entries {
            if let Some(owned) = self.partitions.get_mut(&entry.partition) {
                if let Some(number) = entry.move_number {
                    let durable = owned.durable_moves.add(number);
                    owned.load.moves_are_durable(durable);
                }
                if let Some(load) = entry.load {
                    owned.load.sub(1, load);
                }
            }
            if let Outcome::Invalid(record) = &entry.record {
                self.context.metrics.set_aside(&record.topic).inc();
                if let Some(suppressed) = self.set_aside_lines.pass(clock::instant()) {
                    log_set_aside(record, suppressed);
                }
            }
        }
        for (number, offsets) in offsets {
            let worker = self.workers.of(number);
            worker.send(Message::Durable(number, offsets));
        }
        self.outcomes.committed(batch.purpose);
    }

    /// Resolves a commit whose result was unknown by the committed positions. Only partitions with outcomes are
    /// conclusive: each outcome ends an offset, so only this transaction can have committed the position that it
    /// wanted. For other partitions a plain commit may have done so. (A late copy of an earlier commit that arrives
    /// between the transaction and this check would hide it; no such case is known.)
    async fn is_committed(
        &self,
        batch: &Batch<Outcome>,
        wanted: &BTreeMap<i32, Snapshot>,
    ) -> Result<bool, Failure> {
        let ends = batch.entries.iter().filter(|entry| entry.offset.is_some());
        let telling: BTreeSet<i32> = ends.map(|entry| entry.partition).collect();
        let asked: Vec<_> = telling
            .into_iter()
            .map(|partition| TopicPartition {
                topic: Arc::clone(&self.topic),
                partition,
            })
            .collect();
        let found = self.member.committed(&asked).await?;
        Ok(found.into_iter().any(|found| {
            let metadata = found.metadata;
            let snapshot = found
                .position
                .map(|position| Snapshot { position, metadata });
            snapshot.is_some() && snapshot.as_ref() == wanted.get(&found.at.partition)
        }))
    }

    fn observe_workers(&mut self) {
        let now = clock::instant();
        let (total, threads) = (self.workers.busy(), self.workers.all.len());
        if let Some(ratio) = self.busy.observe(total, threads, now) {
            self.metrics.worker_busy(ratio);
            let (endpoints, brokers) = (Against::Endpoints, Against::Brokers);
            let ahead = self.workers.clocks.ahead();
            self.metrics.clock_skew(endpoints, ahead);
            let ahead = self.outcomes.ahead_of_brokers();
            self.metrics.clock_skew(brokers, ahead);
        }
    }

    fn observe(&self, state: &PartitionState) {
        let metrics = self.metrics;
        metrics.window(state.partition, state.span);
        metrics.stalled(state.partition, state.stalled);
        metrics.runnable_commands(state.partition, state.runnable);
        metrics.deferred_commands(state.partition, state.deferred);
    }
}

fn longest(snapshots: &BTreeMap<i32, Snapshot>) -> usize {
    let lengths = snapshots.values().map(|one| one.metadata.len());
    lengths.max().unwrap_or(0)
}

fn is_metadata_too_large(error: &ClientError) -> bool {
    error.kind() == ErrorKind::MetadataTooLarge
}
