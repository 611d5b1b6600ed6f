//! Commits: outcomes and positions together, or positions alone.
//!
//! After a failed transaction the outcomes are kept and written again with the next state, unless the broker's
//! committed offsets show that the transaction succeeded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rdkafka::message::OwnedHeaders;

use super::messages::{Message, PartitionState, WorkerState};
use super::outage::{Health, Step};
use super::partition::effect::Outcome;
use super::role::Delivery;
use crate::config::Guarantee;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::member::{Commit, TopicPartition};
use crate::edge::kafka::producer::{BatchError, Record};
use crate::edge::kafka::record::{command_headers, invalid_headers, with_header};
use crate::model::command::{Command, Envelope};
use crate::model::invalid_record::InvalidRecord;
use crate::model::subscription::{State, Subscription, with_state};
use crate::model::window::Snapshot;
use crate::runtime::metrics::TransactionalRole;

impl Delivery<'_> {
    /// Commits what has changed since the last commit. Returns `Ok(false)` when the commit failed and is to be retried.
    pub(super) fn commit(&mut self) -> Result<bool, Failure> {
        let mut reports = self.workers.states()?;
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
        let mut commits = Vec::new();
        let mut outcomes = std::mem::take(&mut self.kept);
        let mut wanted: HashMap<i32, Snapshot> = HashMap::new();
        let now = clock::instant();
        if self.member.was_disturbed() {
            self.recommit.begin(now);
        }
        let again = self.recommit.is_due(now);
        for state in states {
            self.observe(&state);
            let Some(owned) = self.partitions.get(&state.partition) else {
                continue;
            };
            outcomes.extend(
                state
                    .outcomes
                    .into_iter()
                    .map(|outcome| (state.partition, outcome)),
            );
            if again || owned.committed.as_ref() != Some(&state.snapshot) {
                let at = TopicPartition {
                    topic: Arc::clone(&self.topic),
                    partition: state.partition,
                };
                let Snapshot { position, metadata } = state.snapshot.clone();
                commits.push(Commit {
                    at,
                    position,
                    metadata,
                });
                wanted.insert(state.partition, state.snapshot);
            }
        }
        if commits.is_empty() && outcomes.is_empty() {
            return Ok(true);
        }
        let done = if outcomes.is_empty() {
            self.commit_positions(&commits)
        } else {
            self.commit_outcomes(outcomes, &commits, &wanted)?
        };
        if done {
            for (number, snapshot) in wanted {
                if let Some(owned) = self.partitions.get_mut(&number) {
                    owned.committed = Some(snapshot);
                }
            }
        }
        Ok(done)
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

    fn commit_positions(&mut self, commits: &[Commit]) -> bool {
        match self.member.commit(commits) {
            Ok(()) => true,
            Err(error) => {
                self.recommit.begin(clock::instant());
                tracing::warn!(
                    "committing positions: {error}; they are committed with the next ones"
                );
                false
            }
        }
    }

    fn commit_outcomes(
        &mut self,
        outcomes: Vec<(i32, Outcome)>,
        commits: &[Commit],
        wanted: &HashMap<i32, Snapshot>,
    ) -> Result<bool, Failure> {
        let started = clock::instant();
        let generation = self.member.generation();
        let written = self
            .write(&outcomes)
            .and_then(|()| self.producer.finish(commits, generation.as_deref()));
        let took = clock::instant() - started;
        self.context
            .metrics
            .transaction(TransactionalRole::Deliver, written.is_ok(), took);
        match written {
            Ok(()) => {
                self.are_durable(&outcomes);
                self.one_by_one = false;
                if self.context.settings.guarantee == Guarantee::AtLeastOnce {
                    return Ok(self.commit_positions(commits));
                }
                Ok(true)
            }
            Err(BatchError::Failed(failure)) => Err(failure),
            Err(BatchError::TooLarge { tag }) if self.one_by_one => {
                let what = outcomes.get(tag).map_or(-1, |(partition, _)| *partition);
                Err(Failure::Internal(format!(
                    "an outcome of partition {what} is larger than its topic allows; `hookstream topics check` names the topic whose max.message.bytes is too small"
                )))
            }
            Err(BatchError::TooLarge { .. }) => {
                tracing::warn!(
                    "a batch of outcomes is larger than its topic allows: they are written one by one"
                );
                self.one_by_one = true;
                self.producer.renew()?;
                self.kept = outcomes;
                Ok(false)
            }
            Err(BatchError::Aborted(error)) => {
                tracing::warn!("outcomes were not committed: {error}; they are written again");
                self.producer.renew()?;
                self.keep_unless_durable(outcomes, wanted)
            }
        }
    }

    /// Releases the memory of outcomes that are durable. Until then they count in their partitions, so intake stops
    /// when they cannot be written.
    fn are_durable(&self, outcomes: &[(i32, Outcome)]) {
        for (partition, outcome) in outcomes {
            let Some(owned) = self.partitions.get(partition) else {
                continue;
            };
            owned.load.add_durable();
            if let Some(weight) = outcome.weight() {
                owned.load.sub(1, weight);
            }
        }
    }

    /// Resolves a commit whose result was unknown by the committed positions. Only partitions with outcomes are
    /// conclusive: each outcome ends an offset, so only this transaction can have committed the position that it
    /// wanted. For other partitions a plain commit may have done so. (A late copy of an earlier commit that arrives
    /// between the transaction and this check would hide it; no such case is known.)
    fn keep_unless_durable(
        &mut self,
        outcomes: Vec<(i32, Outcome)>,
        wanted: &HashMap<i32, Snapshot>,
    ) -> Result<bool, Failure> {
        let telling: HashSet<i32> = outcomes.iter().map(|(number, _)| *number).collect();
        let asked: Vec<_> = telling
            .into_iter()
            .map(|partition| TopicPartition {
                topic: Arc::clone(&self.topic),
                partition,
            })
            .collect();
        if self.context.settings.guarantee == Guarantee::ExactlyOnce {
            for found in self.member.committed(&asked)? {
                let metadata = found.metadata;
                let snapshot = found
                    .position
                    .map(|position| Snapshot { position, metadata });
                if snapshot.is_some() && snapshot.as_ref() == wanted.get(&found.at.partition) {
                    tracing::info!("the outcomes had been committed after all");
                    self.are_durable(&outcomes);
                    return Ok(true);
                }
            }
        }
        self.kept = outcomes;
        Ok(false)
    }

    fn write(&mut self, outcomes: &[(i32, Outcome)]) -> Result<(), BatchError> {
        let settings = Arc::clone(&self.context.settings);
        let tiers = settings.retry_topics();
        let dead_letters = settings.topics.dead_letters();
        for (tag, (_, outcome)) in outcomes.iter().enumerate() {
            match outcome {
                Outcome::Tier(tier, command) => self.write_command(
                    &tiers[*tier],
                    command,
                    command_headers(&command.envelope()),
                    tag,
                )?,
                Outcome::DeadLetter(command, info) => {
                    let headers = info
                        .headers()
                        .iter()
                        .fold(dead_letter_headers(command), |headers, (name, value)| {
                            with_header(headers, name, value)
                        });
                    self.write_command(&dead_letters, command, headers, tag)?;
                }
                Outcome::Invalid(record) => self.write_invalid(record, tag)?,
                Outcome::Disable(subscription) => self.write_disabled(subscription, tag)?,
            }
            if self.one_by_one {
                self.producer.acknowledged()?;
            }
        }
        Ok(())
    }

    fn write_command(
        &mut self,
        topic: &str,
        command: &Command,
        headers: OwnedHeaders,
        tag: usize,
    ) -> Result<(), BatchError> {
        let key = Some(command.subscriber.as_bytes());
        self.producer.send(Record {
            topic,
            partition: None,
            key,
            value: Some(&command.body),
            headers,
            tag,
        })
    }

    fn write_invalid(&mut self, record: &InvalidRecord, tag: usize) -> Result<(), BatchError> {
        let topic = self.context.settings.topics.invalid_events();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        self.producer.send(Record {
            topic: &topic,
            partition: None,
            key,
            value,
            headers: invalid_headers(record),
            tag,
        })
    }

    /// Disables a subscription, unless it has changed since that decision.
    fn write_disabled(
        &mut self,
        decided_on: &Arc<Subscription>,
        tag: usize,
    ) -> Result<(), BatchError> {
        let id = &*decided_on.id;
        let Some(record) = self.context.table.record_of(decided_on) else {
            tracing::info!(
                subscription = id,
                "not disabled: the subscription has changed"
            );
            return Ok(());
        };
        let disabled = match with_state(&record, State::Disabled) {
            Ok(disabled) => disabled,
            Err(error) => {
                tracing::error!(
                    subscription = id,
                    "cannot disable the subscription: {error}"
                );
                return Ok(());
            }
        };
        let topic = self.context.settings.topics.subscriptions();
        let (key, value) = (Some(id.as_bytes()), Some(disabled.as_slice()));
        self.producer.send(Record {
            topic: &topic,
            partition: None,
            key,
            value,
            headers: OwnedHeaders::new(),
            tag,
        })
    }

    fn observe_workers(&mut self) {
        let now = clock::instant();
        let (total, threads) = (self.workers.busy(), self.workers.all.len());
        if let Some(ratio) = self.busy.observe(total, threads, now) {
            self.metrics.worker_busy(ratio);
        }
    }

    fn observe(&self, state: &PartitionState) {
        let metrics = self.metrics;
        metrics.window(state.partition, state.span);
        metrics.stalled(state.partition, state.stalled);
        metrics.runnable_commands(state.partition, state.runnable);
    }
}

fn dead_letter_headers(command: &Command) -> OwnedHeaders {
    // The dead letter's own headers about failures replace the command's, and a replay gets a new sequence.
    command_headers(&Envelope {
        first_failure: None,
        last_failure: None,
        sequence: None,
        cluster: None,
        ..command.envelope()
    })
}
